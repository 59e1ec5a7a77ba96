"""Progress displays: a line for every tenth of the work off a terminal, bars on one."""

from io import StringIO

from rich.console import Console

from entrocraft.lab.training.progress import CellsProgress, RunProgress, WarmStartProgress


def console(terminal=False):
    return Console(file=StringIO(), force_terminal=terminal, width=200)


def record(step):
    return {"step": step, "reward": 0.5, "entropy/measured": 0.4, "entropy/saturated": 1.0}


def test_a_warm_start_prints_every_tenth_of_its_steps():
    out = console()
    with WarmStartProgress(20, out) as progress:
        progress("problems", 0, 1, None)
        for step in range(21):
            progress("training", step, 20, None if step == 0 else 1.5)
        progress("measuring", 1, 1, 1.5)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "warm start: training 0/20"
    assert lines[-1] == "warm start: training 20/20  loss 1.500"


def test_a_warm_start_from_the_cache_prints_nothing():
    out = console()
    with WarmStartProgress(20, out):
        pass
    assert out.file.getvalue() == ""


def test_a_run_prints_every_tenth_of_its_steps_off_a_terminal_alone():
    for terminal in (False, True):
        out = console(terminal)
        with RunProgress("[a]", 30, out) as progress:
            progress({"step": 30, "entropy/probe": 0.4})  # the last record is no step
            for step in range(30):
                progress(record(step))
        text = out.file.getvalue()
        assert ("[a] step 30/30  entropy 0.400  reward 0.500  saturated" in text) is not terminal
        assert "30/30" in text
    assert "[a]" in text


def test_several_runs_are_told_together():
    out = console()
    with CellsProgress([("a", 2), ("b", 2)], out) as progress:
        progress.show("a", [])
        progress.show("a", [record(0), record(1)])
        progress.finish("a", failed=False)
        progress.finish("b", failed=True)
    text = out.file.getvalue()
    assert " 50% of all steps, 0 min left  (a: entropy 0.400" in text
    assert "b: failed, see its log.txt" in text
