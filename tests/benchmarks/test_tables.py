"""Tables and figures: those of the pages are the committed results; arithmetic on made-up cells."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from benchmarks import studies, tables
from entrocraft.lab.grid.results import Results, aim
from entrocraft.lab.grid.study import Study
from entrocraft.lab.statistics import interval
from entrocraft.schedules import anchor, from_string

GAPS = {
    "tilt": [0.004, 0.006, 0.009],
    "GRPO": [-0.1, -0.11, -0.12],
    "sign-0.05": [0.05, 0.06, 0.1],
    "sign-0": [-0.04, -0.05, -0.08],
}
SETTINGS = {
    "base": {"steps": 60, "prompts": 4, "evaluation": {"probe_every": 10}},
    "seeds": [0, 1, 2],
    "schedules": {
        "flat": "constant(initial)",
        "up": {"text": "linear(initial, 1.4*initial, 60)", "bound": 2},
        "step": {
            "text": "join([constant(initial), constant(initial - 0.1)], [30])",
            "step_at": 30,
            "base": {"evaluation": {"probe_every": 2}},
        },
    },
    "methods": {
        "tilt": {},
        "GRPO": {"follows": False, "control": {"rule": None}},
        "sign-0.05": {"control": {"rule": "sign", "band": 0.05}},
        "sign-0": {"control": {"rule": "sign", "band": 0.0}},
    },
    "parts": {
        "main": {"methods": ["tilt"], "schedules": ["flat", "up", "step"]},
        "peers": {
            "title": "others",
            "methods": ["sign-0.05", "sign-0", "GRPO"],
            "schedules": ["flat", "up"],
            "reference": "tilt",
            "better_of": {"sign": ["sign-0.05", "sign-0"], "GRPO": ["GRPO"]},
        },
    },
}


def made_up(study, entry, gap, initial=0.4):
    """A cell whose probe is `gap` above the target at every probe."""
    text = study.schedule(entry.schedule)["text"]
    target = anchor(from_string(text), initial)
    steps = range(0, 61, study.keys(entry)["evaluation"]["probe_every"])
    cell = {
        "settings_hash": study.digest(entry),
        "initial": initial,
        "final_reward": 0.3,
        "pass_at": {"pass@1": [0.1, 0.2], "pass@8": [0.3, 0.4]},
        "kept_fraction": 0.7,
        "saturated_share": None,
        "pressure": None,
        "seconds": 1.0,
        "probe": [[step, None, target(step) + gap, 0.002] for step in steps],
    }
    return aim(cell, text)


def filled(path, leave_out=()):
    """A result file with made-up cells."""
    study, results = Study(**SETTINGS), Results(path)
    for entry in study.entries():
        if entry.key not in leave_out:
            results.add(entry, made_up(study, entry, GAPS[entry.method][entry.seed]))
    results.write(study)
    return path


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_of_the_pages_are_the_committed_results(tmp_path):
    for page, made in tables.pages().items():
        copy = tmp_path / page.name
        shutil.copy(page, copy)
        tables.into_page(made, copy)
        assert page.read_text() == copy.read_text(), f"python -m benchmarks.tables; {page}"


def test_the_figures_of_the_pages_are_drawn_from_the_committed_results():
    drawn = {path.name: figure for path, figure in tables.figures().items()}
    titles = [axis.get_title() for axis in drawn["tracking.png"].axes]
    assert titles[:3] == ["constant", "down", "cosine"]
    assert titles[6:] == ["down, one update per batch", "up, one update per batch", ""]
    assert len(drawn["peers.png"].axes) >= 29
    assert len(drawn["peers_tradeoff.png"].axes[0].texts) == 29
    for name in ("demo_entropy.png", "verl.png"):
        [axis] = drawn[name].axes
        assert len(axis.lines) in (3, 4), name


@pytest.mark.parametrize("name", ["cost", "plant"])
def test_other_results_have_a_table(name, capsys):
    tables.main([str(tables.RESULTS / f"{name}.json")])
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) > 5
    assert len({len(row) for row in rows}) == 1


def test_a_file_of_no_study_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json is no result file"):
        studies.read(tmp_path / "nothing.json")


def test_columns_of_pass_at_k_are_in_order_of_k():
    names = ["pass@8", "seed", "pass@16", "pass@1", "pass@4", "pass@2"]
    assert studies.pass_keys(names) == ["pass@1", "pass@2", "pass@4", "pass@8", "pass@16"]


def test_table_arithmetic(tmp_path, capsys):
    tables.main([str(filled(tmp_path / "tracking.json"))])
    out = capsys.readouterr().out
    rows = rows_of(out)
    head = rows[0]
    tilt = next(row for row in rows if row[:2] == ["tilt", "flat"])
    assert tilt[head.index("tracking error")] == "0.0063 [0.0040, 0.0090]"
    assert tilt[head.index("bound") :][:2] == ["0.0100", "yes"]
    assert tilt[head.index("pass@8")] == "0.40"
    assert "saturated" not in head, "columns that nothing was measured for are left out"
    up = next(row for row in rows if row[:2] == ["tilt", "up"])
    assert up[head.index("bound") :][:2] == ["0.0200", "yes"]
    second = [row[0] for row in rows if row[1:2] == ["flat"] and len(row) == len(head)][1:5]
    assert second == ["tilt", "sign-0", "sign-0.05", "GRPO *"], "in order of the error"
    assert "nothing steers the method" in out
    worse = next(row for row in rows if row[:2] == ["sign-0", "flat"])
    assert worse[head.index("bias")].startswith("-0.0567 [")
    assert worse[head.index("holds")] == "no"
    better = next(row for row in rows if row[:2] == ["sign", "flat"])
    assert better[2:4] == ["sign-0 of 2", "3"]
    ratio = np.mean(np.abs(GAPS["sign-0"])) / np.mean(GAPS["tilt"])
    assert better[4].startswith(f"{ratio:.1f} (")
    arrivals = next(row for row in rows if row[:3] == ["tilt", "step", "30"])
    assert arrivals[3:5] == ["3/3", "0.0"]


def test_rivals_of_an_older_file_stand_beside_ours(tmp_path):
    rivals = [
        f"{name}/{s}/{i}"
        for name in GAPS
        if name != "tilt"
        for s in ("flat", "up")
        for i in range(3)
    ]
    rivals += [f"GRPO/{i}" for i in range(3)]
    ours = studies.read(filled(tmp_path / "ours.json", leave_out=(*rivals, "tilt/up/2")))
    theirs = studies.read(filled(tmp_path / "theirs.json"))
    whole = studies.with_rivals(ours, theirs, ["main"], ["peers"])
    counts = whole.cells.groupby("method").size().to_dict()
    assert counts == {"tilt": 8, "GRPO": 6, "sign-0": 6, "sign-0.05": 6}
    assert whole.missing == ["tilt/up/2"]
    rows = rows_of(tables.tables(whole))
    assert ["sign", "flat", "sign-0 of 2", "3"] in [row[:4] for row in rows]
    only = tables.tables(whole, ["main"])
    assert only.startswith("### main")
    assert "### peers" not in only


def test_missing_cells_are_named_and_no_table_mixes_settings(tmp_path, capsys):
    path = filled(tmp_path / "tracking.json", leave_out=("tilt/up/2",))
    data = json.loads(path.read_text())
    assert data["missing"] == ["tilt/up/2"]
    data["cells"]["sign-0/flat/0"]["settings_hash"] = "another"
    path.write_text(json.dumps(data))
    result = studies.read(path)
    assert result.missing == ["tilt/up/2", "sign-0/flat/0"]
    assert len(result.cells) == 3 * 3 + 3 * 3 * 2 - 2
    tables.main([str(path)])
    assert "1 cells of this table are missing: sign-0/flat/0" in capsys.readouterr().out


def test_pages_get_their_tables_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    made = tables.readme_table(studies.read(filled(tmp_path / "tracking.json")))
    tables.into_page(made, page)
    lines = [line for line in page.read_text().splitlines() if line]
    assert (lines[0], lines[-1]) == ("before", "after")
    rows = rows_of(page.read_text())
    assert [row[0] for row in rows[2:]] == ["**tilt**", "sign", "GRPO"]
    assert rows[3][1:3] == ["3", tables.number(np.abs(GAPS["sign-0"]).tolist(), 3)]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no lines <!-- tables -->"):
        tables.into_page(made, page)
    assert page.read_text() == "no marks"


def test_numbers_and_bounds():
    found = interval([0.004, 0.006, 0.009])
    shown = f"{found.center:.4f} [{found.low:.4f}, {found.high:.4f}]"
    assert tables.number([0.004, 0.006, 0.009], 4) == shown
    assert tables.number([0.5]) == tables.number([0.5, 0.5, 0.5]) == "0.50"
    assert tables.number([]) == ""
    assert tables.holds([0.01], 0.01) == "yes (one seed)"
    assert tables.holds([0.008, 0.009, 0.0125], 0.01) == "the middle only"
    assert tables.holds([], 0.01) == ""
    ends = {"entropy_start": [0.4, 0.4], "entropy_end": [0.15, 0.16]}
    assert tables.fate(pd.DataFrame(ends)) == "collapsed"
    assert tables.fate(pd.DataFrame(ends | {"entropy_end": [4.0, 4.0]})) == "exploded"


def test_the_values_that_were_tried_are_shown(tmp_path):
    methods = {
        "bonus": {"control": {"rule": "entropy_bonus"}, "tune": {"control.options.bonus": [1, 2]}}
    }
    study = Study(methods=methods, base={"control": {"schedule": "0.4"}})
    results, trials = Results(tmp_path / "results.json"), study.trials()
    cell = {"initial": 0.4, "final_reward": 0.3, "pass_at": {}, "kept_fraction": None}
    probe = [[step, None, 0.41, 0.002] for step in (0, 30)]
    for entry in trials.entries():
        numbers = cell | {
            "settings_hash": trials.digest(entry),
            "entropy_end": 0.41,
            "probe": probe,
        }
        results.add(entry, aim(numbers, "0.4"))
    chosen = {"key": "control.options.bonus", "by": "tracking_error", "done": True, "chosen": 2}
    results.tuning = {"bonus": chosen | {"tried": {"1": 0.02, "2": 0.01}}}
    [entry] = study.entries()
    digest = study.choose({"bonus": 2}).digest(entry)
    results.add(entry, aim(cell | {"settings_hash": digest, "probe": probe}, "0.4"))
    results.write(study)
    rows = rows_of(tables.tables(studies.read(results.path)))
    assert rows[2][:4] == ["bonus", "1", "bonus 2", "0.0100"]
    assert rows[-1] == ["bonus", "bonus", "1: 0.0200 (0.41)", "2: 0.0100 (0.41)"]


def test_step_response():
    curve = pd.DataFrame({"step": np.arange(0, 101, 2)})
    curve["target"] = np.where(curve["step"] < 30, 0.4, 0.3)
    since = (curve["step"] - 30).clip(lower=0)
    curve["probe"] = (0.4 - 0.01 * since).clip(lower=0.28)
    answer = {"arrival_steps": 8, "overshoot": pytest.approx(0.02)}
    assert tables.step_response(curve, 30) == answer
    later = curve.assign(probe=curve["probe"].where(curve["step"] < 100, 0.1))
    assert tables.step_response(later, 30) == answer, "more than 40 steps after the jump"
    never = tables.step_response(curve.assign(probe=0.4), 30)
    assert never == {"arrival_steps": None, "overshoot": 0.0}
    upward = curve.assign(target=0.8 - curve["target"], probe=0.8 - 0.4 + 0.15)
    found = tables.step_response(upward, 30)
    assert found == {"arrival_steps": None, "overshoot": pytest.approx(0.05)}
    assert tables.step_response(curve[:10], 30)["arrival_steps"] is None


@pytest.mark.parametrize("left_out", [(), ("tilt/flat/0", "tilt/flat/1", "tilt/flat/2")])
def test_a_figure_is_drawn_from_the_file_alone(tmp_path, left_out):
    image = tmp_path / "tracking.png"
    path = filled(tmp_path / "tracking.json", leave_out=left_out)
    tables.main([str(path), "--figure", str(image)])
    assert image.read_bytes().startswith(b"\x89PNG")
