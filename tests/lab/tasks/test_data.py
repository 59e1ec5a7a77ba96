"""Problems from data: formats, columns, what is left out, splits, presets, errors."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from entrocraft.lab.tasks import PRESETS, get_task
from entrocraft.lab.tasks.prompts import trainer_prompt
from entrocraft.lab.tasks.store import stored_problems

ROWS = [{"question": f"{n} + {n}?", "answer": 2 * n, "level": n % 3} for n in range(40)]
# a row of each set as it is on the hub, and what is to be read from it
REAL = {
    "gsm8k": (
        {"question": "Q{n}", "answer": "He has 3+{n}=<<3+{n}=9>>9.\n#### 1,{n}00"},
        "1,{n}00",
    ),
    "math500": (
        {
            "problem": "Q{n}",
            "solution": "so $\\boxed{{1}}$",
            "answer": "\\frac{{{n}}}{{7}}",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "test/{n}",
        },
        "\\frac{{{n}}}{{7}}",
    ),
    "numinamath": (
        {
            "source": "olympiads",
            "problem": "Q{n}",
            "solution": "first $\\boxed{{0}}$, then $\\boxed{{\\sqrt{{{n}}}}}$.",
            "messages": [{"role": "user", "content": "Q{n}"}],
        },
        "\\sqrt{{{n}}}",
    ),
    "aime": (
        {
            "id": 60,
            "problem": "Q{n}",
            "solution": "so 0{n}",
            "answer": "0{n}",
            "url": "https://example.org",
            "year": "2024",
        },
        "0{n}",
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def task(data, **options):
    return get_task("hf", data=str(data), **({"reward": "exact"} | options))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def everything(made):
    found = {split: made.problems(split, 1000, fewer=True) for split in ("train", "probe", "eval")}
    return {
        split: sorted((p.question, p.answer) for p in problems) for split, problems in found.items()
    }


def test_every_format_gives_the_same_problems(tmp_path):
    data = Dataset.from_list(ROWS)
    data.to_parquet(tmp_path / "d.parquet")
    data.to_json(tmp_path / "d.jsonl")
    data.to_csv(tmp_path / "d.csv")
    data.to_csv(tmp_path / "d.tsv", sep="\t")
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    names = ["d.parquet", "d.jsonl", "d.csv", "d.tsv", "saved", "splits", "d.json"]
    first, *others = (everything(task(tmp_path / name)) for name in names)
    assert all(other == first for other in others)
    assert len(first["train"]) + len(first["eval"]) == 40
    assert first["probe"] == first["eval"]
    assert first["eval"]
    assert dict(first["train"] + first["eval"])["7 + 7?\n\n" + task_instruction()] == "14"


def task_instruction():
    from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION

    return ANSWER_INSTRUCTION


def test_what_is_left_out_is_counted(tmp_path):
    rows = [*ROWS, {"question": " 3  + 3?", "answer": 6}, {"question": None, "answer": 1}]
    rows += [{"question": "4 + 5?", "answer": None}]
    made = task(write(tmp_path / "d.jsonl", rows))
    train = made.problems("train", 100, fewer=True)
    assert made.counts["rows"] == 43
    assert made.counts["without question or answer"] == 2
    assert made.counts["repeated"] == 1
    assert made.counts["train"] == len(train) == 40 - made.counts["held out"]
    assert "repeated 1" in made.describe()


def test_held_out_questions_are_never_trained_on(tmp_path):
    held = write(tmp_path / "held.jsonl", [*ROWS[:5], {"question": "new?", "answer": 0}])
    made = task(write(tmp_path / "d.jsonl", ROWS), eval_data=str(held))
    train, held = (made.problems(split, 100, fewer=True) for split in ("train", "eval"))
    assert made.counts["also held out"] == 5
    assert len(train) == 35
    assert len(held) == 6
    assert not {p.key for p in train} & {p.key for p in held}


def test_rows_that_are_added_move_no_others(tmp_path):
    before = everything(task(write(tmp_path / "a.jsonl", ROWS[:30])))
    after = everything(task(write(tmp_path / "b.jsonl", ROWS)))
    for split in before:
        assert set(before[split]) <= set(after[split])


def test_problems_are_read_anew_and_in_an_order_of_the_seed(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    few = stored_problems(task(path), "train", 5, cache_dir=tmp_path)
    assert few == stored_problems(task(path), "train", 9, cache_dir=tmp_path)[:5]
    assert few != task(path).problems("train", 5, seed=1)
    write(path, [row | {"answer": 0} for row in ROWS])
    changed = stored_problems(task(path), "train", 5, cache_dir=tmp_path)
    assert changed == [
        replace(p, answer="0", metadata=c.metadata) for p, c in zip(few, changed, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_read_the_columns_of_the_real_sets(tmp_path, name):
    row, answer = REAL[name]

    def filled(value, n):
        if isinstance(value, list):
            return [{key: filled(text, n) for key, text in item.items()} for item in value]
        return value.format(n=n) if isinstance(value, str) else value

    rows = [{key: filled(value, n) for key, value in row.items()} for n in range(50)]
    splits = {PRESETS[name].get("split", "train"): rows[:40]}
    if "eval_split" in PRESETS[name]:
        splits[PRESETS[name]["eval_split"]] = rows[35:]
    saved = DatasetDict({split: Dataset.from_list(part) for split, part in splits.items()})
    saved.save_to_disk(tmp_path / "d")
    made = get_task(name, data=str(tmp_path / "d"))
    found = made.problems("train", 50, fewer=True) + made.problems("eval", 50, fewer=True)
    assert len(found) == (50 if "eval_split" in PRESETS[name] else 40)
    for problem in found:
        n = problem.question.split()[0].removeprefix("Q")
        assert problem.answer == answer.format(n=n)
        assert "\\boxed{}" in problem.question


def test_template_system_message_and_choices(tmp_path):
    rows = [
        {"q": f"Which {n}?", "choices": ["red", f"{n}"], "right": 1, "tag": "{q} \\frac{1}{2}"}
        for n in range(30)
    ]
    made = task(
        write(tmp_path / "d.jsonl", rows),
        question="q",
        answer="right",
        reward="choice",
        system="Be brief.",
        template="{question} {tag}\n{choices}\nA letter: {none}",
    )
    with pytest.raises(ValueError, match=r"no column 'none'.*task.options.template names it"):
        made.problems("train", 1)
    made = replace(made, template="{question} {tag}\n{choices}\nA letter:")
    problem = made.problems("train", 1)[0]
    n = problem.question.split()[1].removesuffix("?")
    text = f"Which {n}? {{q}} \\frac{{1}}{{2}}\nA. red\nB. {n}\nA letter:"
    assert problem.question == text
    assert problem.prompt == f"Be brief.\n\n{text}"
    assert problem.answer == "B"
    assert trainer_prompt(problem, chat=True) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
    ]


def test_a_question_may_be_messages(tmp_path):
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rows = [
        {"prompt": [said[0], {"role": "user", "content": f"U{n}"}], "answer": n} for n in range(30)
    ]
    made = task(write(tmp_path / "d.jsonl", rows), question="prompt", template="{question}")
    problem = made.problems("train", 1)[0]
    assert problem.system == "S"
    assert problem.question == f"U{problem.answer}"
    rows = [{"prompt": said[::-1], "answer": 0}]
    with pytest.raises(ValueError, match=r"messages \['user', 'system'\]"):
        task(write(tmp_path / "e.jsonl", rows), question="prompt").problems("train", 1)


def test_the_reward_function_gets_columns_as_trl_gives_them(tmp_path, monkeypatch):
    (tmp_path / "own_rewards_of_test.py").write_text(
        "calls = []\n"
        "def by_level(completions, level, answer, **columns):\n"
        "    calls.append((completions, level, answer, columns))\n"
        "    return [None if one == 0 else one for one in level]\n"
    )
    monkeypatch.chdir(tmp_path)
    made = task(write(tmp_path / "d.jsonl", ROWS), reward="own_rewards_of_test:by_level")
    problems = made.problems("train", 3)
    said = [[{"role": "assistant", "content": "x"}]] * 3
    rewards = made.rewards(problems, said, trainer_state="state")
    levels = [problem.metadata["row"]["level"] for problem in problems]
    assert rewards == [None if level == 0 else level for level in levels]
    import own_rewards_of_test

    completions, level, answer, columns = own_rewards_of_test.calls[0]
    assert completions == said
    assert level == levels
    assert answer == [problem.answer for problem in problems]
    assert columns["trainer_state"] == "state"
    assert columns["prompts"] == [problem.prompt for problem in problems]
    assert made.verify(replace(problems[0], metadata={"row": ROWS[0]}), "x") == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ""}, "needs data: a file"),
        ({"holdout": 1.5}, "holdout is 1.5"),
        ({"answer": None}, "'exact' compares with an answer"),
        ({"reward": "nope"}, "reward is 'nope'; use math, exact, choice"),
        ({"data": "none.jsonl"}, "there is no file .*none.jsonl"),
        ({"data": "./none"}, "there is no file .*none"),
        ({"question": "q"}, "no column 'q'; it has question, answer, level: name one with --task"),
        ({"answer_after": "####"}, "no row to train on .rows 40, without question or answer 40"),
        ({"nope": 1}, "unknown option 'nope' of task 'hf'"),
    ],
)
def test_errors_name_the_value_and_the_remedy(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(ValueError, match=message):
        get_task("hf", **({"data": "d.jsonl", "reward": "exact"} | options)).problems("train", 1)


def test_a_split_that_is_not_there(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        task(tmp_path / "d", eval_split="test").problems("train", 1)
