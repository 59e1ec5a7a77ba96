"""Tokenizer, reasoner, warm start and its cache, loading."""

import json
import os
import random
import string
import threading
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from entrocraft.lab.models import (
    ReasonerConfig,
    WarmStartConfig,
    build_reasoner,
    build_tokenizer,
    cache_key,
    load_model,
    warm_start,
)
from entrocraft.lab.models.reasoner import CHARACTERS
from entrocraft.lab.tasks import TASKS, get_task
from entrocraft.lab.tasks.store import default_cache_dir, stored_problems

TOKENIZER = build_tokenizer()
TINY = ReasonerConfig(hidden_size=16, layers=1, heads=2, intermediate_size=16)
warm_start_module = import_module("entrocraft.lab.models.warm_start")


def tiny_config(**changes):
    fields = {
        "task": "chain_sum",
        "reasoner": TINY,
        "problems": 16,
        "steps": 3,
        "batch_size": 4,
        "probe_problems": 8,
    }
    return WarmStartConfig(**{**fields, **changes})


@given(st.text(CHARACTERS))
def test_tokenizer_round_trip(text):
    ids = TOKENIZER(text).input_ids
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_tokenizer_saves_and_loads(tmp_path):
    template = "{% for message in messages %}{{ message['content'] }}:{% endfor %}"
    tokenizer = build_tokenizer(64)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "  3 7 , . don't <b> 8=22:\n\n" + string.printable[:95]
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert loaded.padding_side == "left"
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.model_max_length) == (0, 1, 64)
    assert loaded(["a", "abc"], padding=True).input_ids[0][:2] == [0, 0]
    message = [{"role": "user", "content": "3+4"}]
    assert loaded.apply_chat_template(message, tokenize=False) == "3+4:"
    assert loaded("é").input_ids == [loaded.unk_token_id]
    assert len(loaded) == 99


def test_reasoner_is_small_seeded_and_leaves_random_state():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (build_reasoner(ReasonerConfig(), TOKENIZER, s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert 300_000 <= sum(p.numel() for p in first.parameters()) <= 1_000_000
    assert all(p.dtype == torch.float32 for p in first.parameters())
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert first.generation_config.pad_token_id == 0
    assert first.generation_config.eos_token_id == 1


def test_reasoner_errors():
    with pytest.raises(ValueError, match="hidden_size=30"):
        ReasonerConfig(hidden_size=30, heads=4)
    with pytest.raises(ValueError, match="layers=0"):
        ReasonerConfig(layers=0)
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token_id=None"):
        build_reasoner(TINY, tokenizer)


def test_warm_start_makes_caches_and_leaves_random_states(tmp_path):
    calls = []
    torch.manual_seed(5)
    random.seed(5)
    before, plain_before = torch.get_rng_state(), random.getstate()
    config = tiny_config()
    path = warm_start(config, tmp_path, lambda *call: calls.append(call))
    assert torch.equal(before, torch.get_rng_state())
    assert plain_before == random.getstate()
    assert path == tmp_path / "models" / cache_key(config)
    training = [call for call in calls if call[0] == "training"]
    assert [call[1] for call in training] == [0, 1, 2, 3]
    assert training[-1][3] > 0
    record = json.loads((path / "warm_start.json").read_text())
    assert record["config"]["steps"] == 3
    # A barely trained model is close to uniform over 99 tokens.
    assert 3.0 < record["measurement"]["entropy"]["value"] < 4.6
    # Nothing else is left behind, and the second call trains nothing.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    calls.clear()
    stamp = (path / "warm_start.json").stat().st_mtime_ns
    assert warm_start(config, tmp_path, lambda *call: calls.append(call)) == path
    assert not calls
    assert (path / "warm_start.json").stat().st_mtime_ns == stamp
    model, tokenizer = load_model(path)
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert model.generation_config.top_k == 0


def test_warm_start_is_deterministic_and_learns(tmp_path):
    config = tiny_config(steps=60, batch_size=16)
    first, second = (warm_start(config, tmp_path / name) for name in "ab")
    weights = [load_model(path)[0].state_dict() for path in (first, second)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    losses = [json.loads((first / "warm_start.json").read_text())["loss"]]
    losses.append(
        json.loads((warm_start(tiny_config(), tmp_path) / "warm_start.json").read_text())["loss"]
    )
    assert losses[0] < losses[1] - 1.0


def test_labels_cover_completion_and_eos():
    config = tiny_config()
    task = get_task("chain_sum")
    problems = task.problems("train", 16)
    ids, labels = next(warm_start_module._batches(TOKENIZER, task, problems, config))
    prompts = {problem.prompt: problem for problem in problems}
    for row, label in zip(ids, labels, strict=True):
        kept = label != -100
        prompt = TOKENIZER.decode(row[: int(kept.nonzero()[0])])
        completion = TOKENIZER.decode(row[kept])
        assert prompt in prompts
        assert completion.endswith("<eos>")
        assert completion.count("=") == 2
        assert torch.equal(label[kept], row[kept])


def test_killed_run_leaves_no_model(tmp_path):
    def kill(stage, done, total, loss):
        if stage == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_start(tiny_config(), tmp_path, kill)
    assert not list((tmp_path / "models").iterdir())


def test_race_of_two_ends_well(tmp_path):
    config = tiny_config()
    paths = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(warm_start_module._publish(make(tmp_path), final))
        )
        for _ in range(4)
    ]
    final = tmp_path / cache_key(config)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert (final / "warm_start.json").is_file()


def make(root):
    """A finished directory that waits to be published."""
    import tempfile
    from pathlib import Path

    partial = Path(tempfile.mkdtemp(dir=root))
    (partial / "warm_start.json").write_text('{"files": {}}')
    return partial


def test_damaged_cache_entry_is_made_anew(tmp_path):
    config = tiny_config()
    damaged = tmp_path / "models" / cache_key(config)
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text("{")
    assert load_model(warm_start(config, tmp_path))


def test_a_cut_warm_start_is_made_anew_and_leftovers_go(tmp_path):
    config = tiny_config()
    path = warm_start(config, tmp_path)
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (weights, path / "tokenizer.json", path / "warm_start.json"):
        broken.write_bytes(broken.read_bytes()[:-100])
        old, new = (path.parent / f"{age}.partial-x" for age in ("old", "new"))
        for left in (old, new):
            left.mkdir(exist_ok=True)
        os.utime(old, (0, 0))
        assert warm_start(config, tmp_path) == path
        assert weights.read_bytes() == whole
        assert load_model(path)
        assert (old.exists(), new.exists()) == (False, True)


def test_each_major_version_of_transformers_has_its_own_warm_start(monkeypatch):
    keys = set()
    for version in ("4.57.6", "5.0.0", "5.3.1"):
        monkeypatch.setattr(warm_start_module, "version", lambda name, found=version: found)
        keys.add(cache_key(tiny_config()))
    assert len(keys) == 2


@pytest.mark.parametrize("left", ["half", "empty line", "other"])
def test_a_cut_problem_list_is_made_anew(tmp_path, left):
    task = get_task("chain_sum")
    first = stored_problems(task, "probe", 8, cache_dir=tmp_path)
    [file] = (tmp_path / "problems").iterdir()
    text = file.read_text()
    file.write_text({"half": text[:-9], "empty line": text + "\n", "other": "[1]\n"}[left])
    with pytest.warns(UserWarning, match="is cut or broken; it is made anew"):
        assert stored_problems(task, "probe", 8, cache_dir=tmp_path) == first
    assert file.read_text() == text


def test_cache_key_knows_every_choice_and_no_spelling():
    config = tiny_config()
    assert cache_key(config) == cache_key(tiny_config())
    assert cache_key(config) == cache_key(tiny_config(task_options={"min_terms": 3}))
    changes = [
        {"task": "countdown"},
        {"task_options": {"min_terms": 2}},
        {"reasoner": ReasonerConfig(hidden_size=32, layers=1, heads=2)},
        {"steps": 4},
        {"skill": 0.5},
        {"seed": 1},
    ]
    keys = {cache_key(tiny_config(**change)) for change in changes} | {cache_key(config)}
    assert len(keys) == len(changes) + 1


def test_stored_problems_are_the_task_s_own(tmp_path, monkeypatch):
    task = get_task("chain_sum")
    first = stored_problems(task, "probe", 8, seed=3, cache_dir=tmp_path)
    assert first == task.problems("probe", 8, seed=3)
    monkeypatch.setattr(type(task), "problems", None)
    assert stored_problems(task, "probe", 8, seed=3, cache_dir=tmp_path) == first


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("ENTROCRAFT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("ENTROCRAFT_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "entrocraft")


def test_presets_and_countdown_is_the_default():
    for name in TASKS:
        assert WarmStartConfig.for_task(name).task == name
    assert WarmStartConfig.for_task("countdown") == WarmStartConfig()
    assert WarmStartConfig.for_task("chain_sum", steps=7).steps == 7
    with pytest.raises(ValueError, match=r"'sudoku'.*chain_sum"):
        WarmStartConfig.for_task("sudoku")


def test_config_errors():
    with pytest.raises(ValueError, match="steps=0"):
        WarmStartConfig(steps=0)
    with pytest.raises(ValueError, match=r"skill=1\.5"):
        WarmStartConfig(skill=1.5)
    with pytest.raises(ValueError, match="learning_rate=-1"):
        WarmStartConfig(learning_rate=-1)
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        WarmStartConfig(task="chess")


def test_load_model_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model directory at"):
        load_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(str(tmp_path))


@pytest.mark.slow
def test_the_demos_model_can_be_trained_further(tmp_path):
    """15-40 % right and more than 0.4 nats, or the demo has nothing to show."""
    path = warm_start(WarmStartConfig.for_task("countdown"), tmp_path)
    measured = json.loads((path / "warm_start.json").read_text())["measurement"]
    accuracy, entropy = measured["accuracy"], measured["entropy"]
    assert 0.15 - 2 * accuracy["stderr"] < accuracy["value"] < 0.4
    assert entropy["value"] > 0.4 - 2 * entropy["stderr"]
    assert entropy["stderr"] < 0.01
    assert measured["finished"] > 0.99
