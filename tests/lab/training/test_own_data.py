"""Training on a data set of one's own, and what a dry run finds before it."""

import json
from io import StringIO

import pytest
from rich.console import Console

from entrocraft.lab.cli import main
from entrocraft.lab.parsing import config_from_mapping
from entrocraft.lab.records import read_records
from entrocraft.lab.tasks import prompts
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.dry_run import DryRun, end_of_answer
from tests.lab.training.runs import keys, make_home

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# rewards the share of digits, so that untrained models have rewards of many sizes
REWARDS = (
    "def digits(completions, answer, **columns):\n"
    "    texts = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
    "    return [sum(c.isdigit() for c in t) / max(len(t), 1) + (t == a)\n"
    "            for t, a in zip(texts, answer)]\n"
    "def fails(completions, **columns):\n"
    "    return columns['nope']\n"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = make_home(tmp_path_factory.mktemp("home"))
    rows = [{"problem": f"What is {n} + {n}?", "solution": str(2 * n)} for n in range(60)]
    rows.append({"problem": "What is " + "1 + " * 50 + "1?", "solution": "51"})
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "rewards.py").write_text(REWARDS)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def own(home, output, task=None, options=None, **changes):
    columns = {"data": str(home / "sums.jsonl"), "question": "problem", "answer": "solution"}
    columns |= {"reward": f"{home}/rewards.py:digits"} | (options or {})
    section = {"name": "hf", "options": columns, "max_prompt_tokens": 150} | (task or {})
    control = {"schedule": "linear(initial, 0.9*initial, 2)"}
    return keys(home, output, task=section, **({"steps": 2, "control": control} | changes))


def dry(values):
    text = StringIO()
    run = DryRun(config_from_mapping(TrainConfig, values), Console(file=text, width=1000))
    return (
        run.run(),
        [f"{kind} {part}: {words}" for kind, part, words in run.found],
        text.getvalue(),
    )


@pytest.mark.slow
def test_a_chat_model_with_adapters_trains_on_a_file(home, tmp_path, monkeypatch, capsys):
    seen = {}

    def spy(problems, tokenizer, chat, limit):
        seen[len(problems)] = tokenizer.model_input_names
        return prompts.short_enough(problems, tokenizer, chat, limit)

    # a tokenizer that makes token types for a model that takes none
    config = home / "chat" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    monkeypatch.setattr("entrocraft.lab.training.run.short_enough", spy)
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | names))
    try:
        values = own(home, tmp_path / "run", model=str(home / "chat"), lora={"rank": 2})
        file = tmp_path / "c.json"
        file.write_text(json.dumps(values | {"output": str(tmp_path / "run")}))
        assert main(["train", "--config", str(file), "--task.options.system", "Add."]) == 0
    finally:
        config.write_text(before)
    assert "data: rows 61, train 5" in capsys.readouterr().out
    [names] = seen.values()
    assert names == ["input_ids", "attention_mask"]
    rows = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 < row["reward"] < 1 for row in rows[:2])
    assert rows[0]["entropy/kept_fraction"] > 0
    assert {"eval/pass@1", "entropy/probe"} <= set(rows[2])
    saved = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").exists()


def test_a_dry_run_of_a_good_run(home, tmp_path, capsys):
    values = own(home, tmp_path / "run", max_completion_length=20, prompts=16)
    fine, found, text = dry(values)
    assert fine
    kinds = [line.partition(":")[0] for line in found]
    for part in ("batch", "data", "model", "tokenizer", "prompts", "memory", "reward", "sampling"):
        assert f"ok {part}" in kinds
    assert not [line for line in found if line.startswith("fails")]
    assert "true answers 2.0, those of other problems 1.0" in "".join(found)
    assert "1 are longer than task.max_prompt_tokens" in "".join(found)
    assert "dry run: 0 would fail" in text
    assert not (tmp_path / "run").exists()
    file = tmp_path / "c.json"
    file.write_text(json.dumps(values | {"trainer": {"use_vllm": True}}))
    with pytest.raises(SystemExit):
        main(["train", str(file), "--dry-run", "--config", str(file)])
    assert "vllm is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1, "control": {"schedule": "linear(1, 2, 9)"}}, "warning schedule: .*step 9"),
        ({"control": {"schedule": "9.5"}}, "fails model: .*log"),
        ({}, "warning schedule: each optimizer step trains on 16 rollouts, too few"),
        ({"control": {"schedule": "1.5"}}, "warning schedule: .*asks for 1.5 nats"),
        ({}, "warning sampling: .*cut at max_completion_length=6"),
        ({}, "warning evaluation: it samples"),
        ({"max_completion_length": 600}, "fails prompts: .*the model has 512"),
        ({"updates": 3}, "fails trainer: .*do not divide"),
        ({"trainer": {"lostype": 1}}, "fails trainer: .*no option"),
        ({"task": {"max_prompt_tokens": 3}}, "fails prompts: task.max_prompt_tokens is 3"),
        ({"options": {"question": "q"}}, "fails data: .*no column 'q'"),
        ({"options": {"reward": "exact", "answer_after": "What"}}, "fails data: .*no row to train"),
        ({"prompts": 58}, "fails prompts: 5[0-9] are fewer than the 58"),
        ({"chat": True}, "fails model: chat=true"),
        ({"model": "./none"}, "fails model: no model directory"),
        ({"eos": "<nope>"}, "fails model: eos is '<nope>'"),
    ],
)
def test_what_a_dry_run_finds(home, tmp_path, changes, message):
    import re

    found = dry(own(home, tmp_path / "run", **changes))[1]
    assert any(re.match(message, line) for line in found), found


def test_a_reward_that_fails_or_never_differs(home, tmp_path):
    fine, found, _ = dry(own(home, tmp_path, options={"reward": f"{home}/rewards.py:fails"}))
    assert not fine
    assert any(
        "fails reward" in f and "KeyError: 'nope'" in f and "rewards.py:6" in f for f in found
    )
    fine, found, _ = dry(own(home, tmp_path, options={"reward": "exact"}))
    assert fine
    assert any(f.startswith("ok reward: exact gives true answers 1.0") for f in found)
    assert any(f.startswith("warning reward: the rewards are all 0") for f in found)


def test_the_template_decides_which_token_ends_an_answer(home, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "plain")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(home / "plain")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "m")
    assert end_of_answer(tokenizer) == "<|im_end|>"
    fine, found, _ = dry(own(home, tmp_path / "run", model=str(tmp_path / "m")))
    assert not fine
    assert any("ends an answer with <|im_end|>, the tokenizer's eos is <eos>" in f for f in found)
    values = own(home, tmp_path / "run", model=str(tmp_path / "m"), eos="<|im_end|>")
    fine, found, _ = dry(values)
    assert fine
    assert any(f.startswith("ok tokenizer: eos <|im_end|>") for f in found)
    tokenizer.chat_template = "{{ messages[0].nope.nope }}"
    with pytest.raises(ValueError, match="cannot be rendered"):
        end_of_answer(tokenizer)
