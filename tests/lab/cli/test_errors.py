"""Settings of a wrong shape and other errors: one line each, and the traceback with --debug."""

import re

import pytest
import torch

from entrocraft.lab.cli import main
from entrocraft.lab.parsing import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
SHAPES = {
    "train": [
        *("control: 5", "task: 3", "task: [1]", "evaluation: null", "control: {feedback: 5}"),
        *("prompts: null", "trainer: {5: x}", "seed: null", "[1, 2]", "5", "a: &a [*a]", BOMB),
        *(
            "? [1]\n: 2",
            "temperature: .inf",
            "learning_rate: .nan",
            "\0",
            "{",
            "steps: 1" + "0" * 400,
        ),
    ],
    "compare": [
        *(
            "tuning: [1]",
            "tuning: 5",
            "methods: {5: {}}",
            "seeds: null",
            "parts: {a: {methods: 5}}",
        ),
        *("schedules: {a: {base: 5, text: 0.5}}", "schedules: {a: {bound: x}}", BOMB),
        *("methods: {a: {tune: {x: [[1]]}}}", "methods: {a: {seeds: [[1]]}}", "parts: {a: {x: 1}}"),
    ],
    "dynamics": ["training: {5: x}", "task: 5"],
}


@pytest.mark.parametrize(
    ("command", "text"),
    [
        pytest.param(command, text, id=f"{command}-{text[:20]!r}")
        for command, texts in SHAPES.items()
        for text in texts
    ],
)
def test_a_config_of_a_wrong_shape_is_one_line(tmp_path, capsys, command, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main([command, str(file), "--output", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"entrocraft {command}: .+\n", printed), printed
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("control: 5")
    with pytest.raises(ValueError, match="control is 5; it has keys: rule, schedule"):
        main(["train", str(file), "--debug"])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), OSError(28)]
)
def test_what_is_no_typo_does_not_read_like_one(monkeypatch, capsys, error):
    import entrocraft.lab.cli.report as command

    def fail(arguments):
        raise error

    monkeypatch.setattr(command, "run", fail)
    assert main(["report"]) == 1
    printed = capsys.readouterr().err
    out_of_memory = isinstance(error, torch.OutOfMemoryError)
    assert ("the GPU ran out of memory: lower micro_batch" in printed) == out_of_memory
    assert ("--debug shows where" in printed) != out_of_memory
    with pytest.raises(type(error)):
        main(["report", "--debug"])


def test_aliases_that_stay_small_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: &a {x: 1}\nb: *a\n")
    assert read_yaml(file) == {"a": {"x": 1}, "b": {"x": 1}}
