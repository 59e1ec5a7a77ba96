"""Progress: silent at first, then one line now and then."""

import pytest
import tqdm.std

from entrocraft.lab.waiting import progress_bar


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def test_short_work_is_silent_and_long_work_is_not(clock, capsys):
    for _ in progress_bar(range(100), "reading", 100):
        clock[0] += 0.04
    assert capsys.readouterr().err.strip() == ""
    for _ in progress_bar(range(100), "reading", 100):
        clock[0] += 1.0
    shown = [line for line in capsys.readouterr().err.split("\r") if line.strip()]
    assert shown[0].startswith("reading:   5%")
    assert "5/100 [00:05<01:35" in shown[0]
    assert 10 < len(shown) < 25, "a line every five seconds"


def test_a_bar_that_is_updated_by_hand(clock, capsys):
    with progress_bar(None, "drawing", 10) as bar:
        for _ in range(10):
            clock[0] += 6.0
            bar.update()
    assert "drawing: 100%" in capsys.readouterr().err


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for _ in progress_bar(range(10), "reading", 10):
        clock[0] += 10
    assert capsys.readouterr().err == ""
