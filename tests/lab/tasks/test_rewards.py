"""Rewards: built-in ones, functions by name, and processes that are killed or hang."""

import contextlib
import os
import signal
import time

import psutil
import pytest

from entrocraft.lab.tasks import mathematics
from entrocraft.lab.tasks.rewards import as_rewards, get_reward, letter


def workers():
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_equal_answers_in_another_form():
    cases = [
        ("0.5", "\\frac{1}{2}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("25", "025", True),
        ("1,000", "1000", True),
        ("12 \\text{ apples}", "12", True),
        ("the answer is 42.", "42", True),
        ("43", "42", False),
        ("[1,2]", "(1,2)", False),
        ("\\frac{" * 50, "5", False),
        ("__import__('os').getpid()", "5", False),
        ("", "5", False),
    ]
    found = mathematics.equal([pair for *pair, _ in cases])
    assert found == [right for *_, right in cases]
    reward = get_reward("math")
    said = ["2+2=\\boxed{4}", "<answer>5</answer>", [{"role": "assistant", "content": "so 4"}]]
    assert reward(completions=said, answer=["4", "4", "4"]) == [1.0, 0.0, 1.0]


def judge(answer, truth):
    """In a worker, in place of math-verify."""
    if answer == "hang":
        time.sleep(60)
    if answer == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def test_hanging_and_killed_processes_are_replaced(monkeypatch):
    monkeypatch.setattr(mathematics, "_same", judge)
    pairs = [("hang", "3"), ("x", "3"), ("die", "3"), ("y", "3")]
    with pytest.warns(UserWarning, match="of 4 answers, 1 were not judged within 2 s and 1 ended"):
        found = mathematics.equal(pairs, seconds=2)
    assert found == [False, True, False, True]
    assert workers()
    for worker in workers():
        os.kill(worker.pid, signal.SIGKILL)
    assert mathematics.equal([("x", "3")]) == [True]


def test_exact_and_choice():
    exact, choice = get_reward("exact"), get_reward("choice")
    said = ["<answer> new  York.</answer>", "it is\nNew York", "Boston", ""]
    assert exact(completions=said, answer=["New York"] * 4) == [1.0, 1.0, 0.0, 0.0]
    said = ["<answer>(B)</answer>", "I think\nThe answer is B.", "B) Paris", "A dog", "Both"]
    assert choice(completions=said, answer=["B"] * 5) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert letter("b") == "B"
    assert letter("Answer: D") == "D"


def test_functions_of_modules_and_files(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def good(completions, **columns):\n    return [1.0] * len(completions)\n"
        "def narrow(completion, answer):\n    return 1.0\n"
        "async def later(completions, **columns):\n    return [1.0]\n"
    )
    (tmp_path / "broken.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py:good", f"{tmp_path}/mine.py:good", "trl.rewards:think_format_reward"):
        assert len(get_reward(name)(completions=[[{"content": "x"}]])) == 1
    for name, message in {
        "mine.py:bad": "no function 'bad'",
        "mine.py:narrow": r"arguments are \(completion, answer\); write it as a reward function",
        "mine.py:later": "async function",
        "none.py:good": "no file",
        "broken.py:good": "cannot be imported .No module named 'surely_not_installed'",
        "surely.not:there": "cannot be imported",
        "good": "use math, exact, choice, package.module:function",
    }.items():
        with pytest.raises(ValueError, match=message):
            get_reward(name)


def test_what_a_function_gives_is_checked():
    assert as_rewards((1, None, True), 3, "r") == [1.0, None, 1.0]
    for given, message in {
        (1.0,): "gave 1 values for 2 completions",
        None: "gave NoneType for 2",
        ("a", 1): "no number",
        (float("nan"), 1): "gave nan; rewards are finite",
    }.items():
        with pytest.raises(ValueError, match=message):
            as_rewards(given, 2, "r")
