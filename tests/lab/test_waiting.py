"""Progress: silent at first, then one line now and then."""

import pytest

from entrocraft.lab import waiting


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def test_short_work_is_silent_and_long_work_is_not(clock, capsys):
    for _ in waiting.waiting_for(range(100), "reading", 100):
        clock[0] += 0.04
    assert capsys.readouterr().err == ""
    for _ in waiting.waiting_for(range(100), "reading", 100):
        clock[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 5 of 100, 95 s left"
    assert lines[1:] == [f"reading: {n} of 100, {100 - n} s left" for n in (35, 65, 95)]


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for _ in waiting.waiting_for(range(10), "reading", 10):
        clock[0] += 10
    assert capsys.readouterr().err == ""
