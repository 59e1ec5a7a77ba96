"""Reports from run directories: loading, numbers, table, figures and the page."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from entrocraft.lab.report import (
    RunError,
    color_of,
    control_figure,
    entropy_figure,
    group_table,
    load_run,
    load_runs,
    render_table,
    reward_figure,
    save_png,
    summarize,
    write_report,
)
from entrocraft.lab.report.figures import curve
from entrocraft.lab.report.style import BLUE, NARROW, PALETTE, VERMILION, WIDE, looks_of
from entrocraft.lab.report.table import text_table
from entrocraft.lab.statistics import NOTE


def write_run(
    path: Path, records: list[dict] | str, rule: str | None = "tilt", **config: object
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    control = {"rule": rule, "schedule": "linear(initial, 0.6*initial, 40)", "effect": "logit"}
    (path / "config.yaml").write_text(yaml.safe_dump({"control": control, **config}))
    if not isinstance(records, str):
        records = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(records)
    return path


def records(
    offset: float = 0.0, steps: int = 40, probe: bool = True, control: bool = True
) -> list[dict]:
    """A run whose probe is `offset` above the target, 0.5 -> 0.3; saturated from step 31 on."""
    log: list[dict] = []
    if probe:
        log.append({"step": 0, "entropy/probe": 0.5, "eval/pass@1": 0.2, "eval/pass@4": 0.4})
    for step in range(1, steps + 1):
        target = 0.5 - 0.2 * step / 40
        record = {
            "step": step,
            "reward": step / 100,
            "seconds": 2.0 * step,
            "entropy/target": target,
            "entropy/measured": target + offset + (0.02 if step % 2 else -0.02),
            "entropy/estimate": target + offset,
        }
        if control:
            record |= {
                "entropy/pressure": 0.1,
                "entropy/kept_fraction": 0.8,
                "entropy/reachable_up": 0.004,
                "entropy/reachable_down": -0.006,
                "entropy/saturated": int(step > 30),
            }
        if probe and step % 10 == 0:
            record |= {
                "entropy/probe": target + offset,
                "entropy/probe_stderr": 0.004,
                "eval/pass@1": 0.2 + step / 100,
                "eval/pass@1_stderr": 0.01,
                "eval/pass@4": 0.4 + step / 100,
            }
        log.append(record)
    return log


def seeds_of(path: Path, n: int, **options: object) -> list[Path]:
    return [
        write_run(path / f"tilt-seed{i}", records(offset=0.01 * i, **options), seed=i)
        for i in range(n)
    ]


# Loading ------------------------------------------------------------------------------------


def test_load_columns_with_nan_where_a_key_is_missing(tmp_path):
    run = load_run(write_run(tmp_path / "a", records(), name="tilt-seed3", seed=3))
    assert run.frame.index.tolist() == list(range(41))
    assert np.isnan(run.column("reward")[0])
    assert run.points("entropy/probe")[0].tolist() == [0, 10, 20, 30, 40]
    assert run.column("never/logged").isna().all()
    assert (run.name, run.group, run.seed, run.rule) == ("tilt-seed3", "tilt", 3, "tilt")


def test_what_is_not_finite_was_not_measured(tmp_path):
    log = records()
    log[-1] |= {"entropy/probe": math.nan, "reward": math.inf, "seconds": None}
    s = summarize(load_run(write_run(tmp_path, log)))
    assert (s.tracking_end, s.seconds) == (pytest.approx(0.0), 78.0)
    assert s.final_reward == pytest.approx(0.295)  # of steps 20 to 39
    json.dumps(asdict(s), allow_nan=False)


def test_runs_with_other_settings_are_no_seeds_of_one_method(tmp_path):
    def made(place, seed, **config):
        return write_run(tmp_path / place, records(), name="tilt", seed=seed, **config)

    def names(*places):
        return [(run.name, run.group) for run in load_runs(places)]

    a, b = made("a", 0, steps=30, output="a"), made("b", 1, steps=30, output="b", command="x")
    assert names(a, b) == [("tilt", "tilt")] * 2
    longer = made("longer", 0, steps=60)
    found = names(a, b, longer)
    assert found[0] == ("tilt, steps=30 seed0", "tilt, steps=30")
    assert found[1] == ("tilt, steps=30 seed1", "tilt, steps=30")
    assert found[2] == ("tilt, steps=60 seed0", "tilt, steps=60")
    twin = made("twin", 0, steps=30)
    assert [group for _, group in names(a, b, twin)] == [f"tilt ({a})", "tilt", f"tilt ({twin})"]
    with pytest.raises(RunError, match="is given twice"):
        load_runs([a, tmp_path / "b" / ".." / "a"])
    page = write_report([a, longer], tmp_path / "both").read_text()
    assert "steps=60" in page
    assert "2 seeds" not in page
    assert re.search(r"Settings that differ.*>steps<.*>30<.*>60<", page, re.DOTALL)


def test_settings_of_the_first_version_have_their_present_names(tmp_path):
    old = write_run(tmp_path / "a", records(), seed=0, name="tilt")
    new = write_run(tmp_path / "b", records(), seed=1, name="tilt")
    for path, key in ((old, "uniform_groups"), (new, "constant_reward_groups")):
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["control"][key] = True
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    runs = load_runs([old, new])
    assert [run.group for run in runs] == ["tilt", "tilt"]
    assert all(run.control["constant_reward_groups"] is True for run in runs)


def test_a_run_that_is_still_going(tmp_path):
    text = '{"step": 0, "reward": 0.5}\n{"step": 1, "rew'
    run = load_run(write_run(tmp_path, text, steps=40))
    assert run.frame.index.tolist() == [0]
    assert "0 of 40" in write_report([tmp_path]).read_text()


@pytest.mark.parametrize("text", ["", '{"step": 1', "\n\n"])
def test_a_run_without_a_record_yet(tmp_path, text):
    with pytest.raises(RunError, match=r"metrics.jsonl holds no complete record yet; wait"):
        load_run(write_run(tmp_path, text))


def test_missing_directory_metrics_and_bad_config(tmp_path):
    with pytest.raises(RunError, match="not a directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"looked for metrics\.jsonl, trainer_state\.json"):
        load_run(tmp_path)
    with pytest.raises(RunError, match=r"metrics.jsonl, line 1"):
        load_run(write_run(tmp_path, '{"step": -1}\n'))
    write_run(tmp_path, records())
    (tmp_path / "config.yaml").write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(RunError, match=r"config.yaml, line \d"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(RunError, match="mapping"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    run = load_run(tmp_path)
    assert run.name == tmp_path.name
    assert run.controlled  # a pressure was logged


@pytest.mark.parametrize(
    ("directory", "config", "group"),
    [
        ("x", {"name": "tilt", "seed": 1}, "tilt"),
        ("x", {"name": "tilt-seed1", "seed": 1}, "tilt"),
        ("x", {"name": "tilt_s1", "seed": 1}, "tilt"),
        ("x", {"name": "tilt-s8", "seed": 1}, "tilt-s8"),
        ("plain/seed2", {}, "plain"),
        ("gpt2-levels2", {"seed": 2}, "gpt2-levels2"),
    ],
)
def test_group_is_the_name_without_its_seed(tmp_path, directory, config, group):
    assert load_run(write_run(tmp_path / directory, records(), **config)).group == group


# Numbers ------------------------------------------------------------------------------------


def test_summary_against_hand_computed_values(tmp_path):
    run = load_run(
        write_run(tmp_path, records(offset=0.01), seed=7, command=["entrocraft", "train", "a b"])
    )
    s = summarize(run)
    assert s.tracking_error == pytest.approx(0.01)  # steps 30 and 40; 20 is still burn-in
    assert s.tracking_bias == pytest.approx(0.01)
    assert s.tracking_end == pytest.approx(0.01)
    assert s.probe_stderr == pytest.approx(0.004)
    assert s.tracking_error_measured == pytest.approx(0.02)  # |0.01 +- 0.02| = 0.03 or 0.01
    assert s.target_start == pytest.approx(0.495)
    assert s.final_reward == pytest.approx(0.305)  # mean of 0.21 ... 0.40
    assert s.pass_at["pass@1"].first == pytest.approx(0.2)
    assert s.pass_at["pass@1"].last == pytest.approx(0.6)
    assert s.pass_at["pass@4"].last_step == 40
    assert s.kept_fraction == pytest.approx(0.8)
    assert s.saturated_share == pytest.approx(0.25)
    assert (s.entropy_start, s.entropy_end) == (0.5, pytest.approx(0.31))
    assert (s.steps, s.seconds) == (40, 80.0)
    assert s.command == "entrocraft train 'a b'"
    assert json.loads(json.dumps(asdict(s), allow_nan=False))["pass_at"]["pass@1"]["first"] == 0.2


def test_target_is_interpolated_between_logged_steps(tmp_path):
    log = [
        {"step": 20, "entropy/target": 0.4},
        {"step": 25, "entropy/probe": 0.36},
        {"step": 30, "entropy/target": 0.3},
    ]
    s = summarize(load_run(write_run(tmp_path, log)))
    assert s.tracking_error == pytest.approx(0.01)  # target 0.35 at step 25


def test_without_a_probe_entropy_is_that_of_the_batches(tmp_path):
    s = summarize(load_run(write_run(tmp_path, records(probe=False))))
    assert (s.tracking_error, s.probe_stderr, s.pass_at) == (None, None, {})
    assert s.entropy_start == pytest.approx(0.485 + 0.004)
    assert s.tracking_error_measured == pytest.approx(0.02)


def test_an_uncontrolled_run_is_never_saturated(tmp_path):
    s = summarize(load_run(write_run(tmp_path, records(), rule=None)))
    assert (s.controlled, s.rule, s.saturated_share) == (False, None, None)


def test_group_table_is_plain_data(tmp_path):
    dirs = [*seeds_of(tmp_path, 4), write_run(tmp_path / "GRPO", records(control=False), None)]
    summaries = [summarize(load_run(d)) for d in dirs]
    tilt, plain = json.loads(json.dumps(group_table(summaries), allow_nan=False))
    assert (tilt["group"], tilt["seeds"], tilt["runs"]) == ("tilt", [0, 1, 2, 3], 4)
    assert tilt["steered"] is True
    assert tilt["tracking_error"] == pytest.approx(
        {"center": 0.015, "low": 0, "high": 0.03, "n": 4}
    )
    assert tilt["pass@4"] == pytest.approx({"center": 0.8, "low": 0.8, "high": 0.8, "n": 4})
    assert tilt["pass@4_start"]["center"] == pytest.approx(0.4)
    assert tilt["seconds"] == {"center": 80.0, "low": 80.0, "high": 80.0, "n": 4}
    assert tilt["kept_fraction"]["center"] == pytest.approx(0.8)
    assert (plain["seeds"], plain["steered"], plain["saturated_share"]) == ([], False, None)
    assert plain["final_reward"]["n"] == 1


def test_table_in_a_terminal(tmp_path):
    dirs = [*seeds_of(tmp_path, 3), write_run(tmp_path / "[plain]", records(control=False), None)]
    summaries = [summarize(load_run(d)) for d in dirs]
    console = Console(width=140, record=True, quiet=True)
    with console.capture():
        console.print(render_table(summaries))
    header, rows, notes = text_table(summaries)
    assert header[0] == "run"
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert cells[0]["run"] == ("tilt", "3 seeds")
    assert cells[0]["entropy (nats)"] == ("0.50 → 0.31", "[0.30, 0.32]")
    assert cells[0]["tracking error"] == ("0.010", "[0.000, 0.020]")
    assert cells[0]["pass@4"] == ("0.40 → 0.80", "")
    assert cells[0]["time"] == ("0:01:20", "")
    assert cells[1]["tracking error"] == ("0.000 *", "")
    assert cells[1]["kept"] == ("–", "")
    assert notes[0] == NOTE
    wide, small = (Console(width=width, file=open(tmp_path / "out", "w")) for width in (140, 80))  # noqa: SIM115
    for console in (wide, small):
        with console.capture() as text:
            console.print(render_table(summaries))
        assert "[plain]" in text.get()
        assert "…" not in text.get()


@pytest.mark.parametrize(
    ("seeds", "spread"), [(1, ""), (2, "(0.000 to 0.010)"), (3, "[0.000, 0.020]")]
)
def test_the_interval_is_explained_where_there_is_one(tmp_path, seeds, spread):
    dirs = seeds_of(tmp_path, seeds)
    header, (row,), notes = text_table([summarize(load_run(d)) for d in dirs])
    assert row[header.index("tracking error")][1] == spread
    assert (NOTE in notes) is (seeds > 1)
    text = write_report(dirs, tmp_path / "out").read_text(encoding="utf-8")
    assert ("bootstrap" in text) is (seeds > 1)
    assert ("Every run" in text) is (seeds > 1)


def test_a_column_that_nobody_logged_is_left_out(tmp_path):
    run = load_run(write_run(tmp_path, [{"step": 1, "reward": 0.5, "seconds": 3725.4}]))
    header, rows, _ = text_table([summarize(run)])
    assert header == ["run", "final reward", "time"]
    assert rows[0][2] == ("1:02:05", "")


# Figures ------------------------------------------------------------------------------------


def test_one_color_per_method():
    assert (color_of("tilt"), color_of("GRPO"), color_of("plain")) == (BLUE, VERMILION, VERMILION)
    assert color_of("clip_cov") == color_of("clip_cov")
    assert color_of("clip_cov") not in (BLUE, VERMILION)
    assert len({color_of(name) for name in ("tilt", "sign", "switch", "GRPO")}) == 4
    names = [f"method {i}" for i in range(5)] + ["tilt"]
    looks = looks_of(names)
    assert list(looks) == names
    assert {look["color"] for look in looks.values()} == set(PALETTE)
    assert looks["tilt"]["color"] == BLUE
    more = looks_of([f"method {i}" for i in range(12)])
    assert len({(look["color"], str(look["linestyle"])) for look in more.values()}) == 12


def test_figures_agree_on_colors_and_leave_settings_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    runs = [
        load_run(write_run(tmp_path / "plain", records(control=False), None)),
        load_run(write_run(tmp_path / "clip_cov", records(control=False), "clip_cov")),
        load_run(write_run(tmp_path / "tilt", records())),
    ]
    for figure in (entropy_figure(runs), reward_figure(runs), control_figure(runs)):
        assert BLUE in {line.get_color() for line in figure.axes[0].lines}
    assert VERMILION in {line.get_color() for line in reward_figure(runs).axes[0].lines}
    assert control_figure(runs[:2]) is None
    assert save_png(entropy_figure(runs), tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert dict(mpl.rcParams) == before


def test_curve_of_seeds_that_logged_at_different_steps(tmp_path):
    logs = [
        [{"step": 0, "reward": 0.0}, {"step": 10, "reward": 1.0}],
        [{"step": 5, "reward": 0.9}, {"step": 20, "reward": 0.9}],
    ]
    runs = [load_run(write_run(tmp_path / f"{i}", log)) for i, log in enumerate(logs)]
    found = curve(runs, "reward")
    assert found.index.tolist() == [0, 5, 10, 20]
    assert found["mean"].tolist() == pytest.approx([0.0, 0.7, 0.95, 0.9])
    assert found["min"].tolist() == pytest.approx([0.0, 0.5, 0.9, 0.9])
    assert curve(runs, "never") is None


def labels(figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_the_target_is_drawn_once_if_all_agree(tmp_path):
    runs = [load_run(write_run(tmp_path / f"m{i}", records())) for i in range(2)]
    assert "target" in labels(entropy_figure(runs))
    higher = [{**r, "entropy/target": r.get("entropy/target", 0.5) + 0.1} for r in records()]
    runs.append(load_run(write_run(tmp_path / "up", higher)))
    assert {"target m0", "target m1", "target up"} <= labels(entropy_figure(runs))
    plain = load_run(write_run(tmp_path / "plain", records(), None))
    assert "schedule, for reference only" in labels(entropy_figure([plain]))


def test_a_band_and_an_estimate_of_a_single_run(tmp_path):
    log = [record | {"entropy/low": 0.3, "entropy/high": 0.5} for record in records()]
    found = labels(entropy_figure([load_run(write_run(tmp_path, log, "sign"))]))
    assert {"training batches", "controller's estimate", "band of the rule", "target"} <= found


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> list[Path]:
    """8 methods x 2 seeds; every third is not steered, and one explodes."""
    root = tmp_path_factory.mktemp("crowd")
    dirs = []
    for method in range(8):
        rule = "tilt" if method % 3 != 2 else None
        for seed in range(2):
            log = records(offset=0.004 * seed, control=bool(rule))
            if method == 5:
                log = [r | {"entropy/probe": 3.14} if "entropy/probe" in r else r for r in log]
            name = f"method {method}"
            dirs.append(write_run(root / f"{name}-seed{seed}", log, rule, name=name, seed=seed))
    return dirs


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_many_groups_have_a_panel_each(crowd, width):
    runs = [load_run(path) for path in crowd]
    entropy, reward, control = (
        f(runs, width) for f in (entropy_figure, reward_figure, control_figure)
    )

    def titles(figure):
        return [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]

    assert titles(entropy) == titles(reward) == [f"method {i}" for i in range(8)]
    assert titles(control)[:3] == ["method 0", "method 1", "method 3"]
    assert entropy.axes[0].get_ylim()[1] == pytest.approx(1.0, abs=0.05)  # 3.14 leaves its panel
    assert len(entropy_figure(runs[:12], width).axes) == 1


@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize(
    "log",
    [
        [{"step": 0, "entropy/probe": 0.5, "eval/pass@1": 0.1}],
        [{"step": 1, "reward": 0.1}],
        [{"step": 1}],
        [{"step": 3, "entropy/measured": 0.4, "entropy/pressure": 0.0}],
        records(steps=3, probe=False),
        [{"step": s, "entropy/low": 0.1, "entropy/high": 0.2} for s in range(1, 4)],
    ],
)
@pytest.mark.filterwarnings("error:constrained_layout")
def test_whatever_was_logged_can_be_drawn(tmp_path, log, groups):
    dirs = [write_run(tmp_path / f"m{i}", log, rule="sign") for i in range(groups)]
    check_page(write_report(dirs, tmp_path / "out"))


# The page -----------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would load, and the tags that were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        loading = {"src", "href", "xlink:href", "srcset", "action", "data"}
        self.loads += [value for name, value in attrs if name in loading]


def check_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"https?://|@import|url\(", text)
    for load in page.loads:
        svg = base64.b64decode(load.partition(",")[2]).decode()
        assert not re.search(r'(href|src)="(?!#)', svg)
        assert "<script" not in svg
    return page


def test_report_of_one_run_goes_into_its_directory(tmp_path):
    run = write_run(tmp_path / "run", records(), name="first", command="entrocraft train x.yaml")
    page = write_report([run])
    assert page == run / "report.html"
    assert (run / "entropy.png").read_bytes().startswith(b"\x89PNG")
    (summary,) = json.loads((run / "summary.json").read_text())
    assert summary["name"] == "first"
    assert check_page(page).tags.count("picture") == 3
    text = page.read_text(encoding="utf-8")
    assert "entrocraft train x.yaml" in text
    assert "prefers-color-scheme: dark" in text
    assert write_report(run).read_text(encoding="utf-8") == text  # the same bytes each time


def test_report_escapes_what_a_run_says(tmp_path):
    evil = '<script>alert(1)</script>" $x_{ & _'
    runs = [
        write_run(tmp_path / "a", records(steps=9), name=evil, command=evil, note="</pre><img>"),
        write_run(tmp_path / "b", records(steps=9), name="_hidden"),
    ]
    page = write_report(runs, tmp_path / "out")
    assert check_page(page).tags.count("img") == 3
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")
    assert any("_hidden" in label for label in labels(entropy_figure(load_runs(runs))))


def test_report_of_many_runs(crowd, tmp_path):
    page = write_report(crowd, tmp_path / "all" / "compare.html")
    assert page.name == "compare.html"
    assert (page.parent / "entropy.png").is_file()
    assert len(json.loads((page.parent / "summary.json").read_text())) == 16
    check_page(page)
    text = page.read_text(encoding="utf-8")
    assert "8 methods" in text
    assert "method 3, seed 1" in text
    assert "not steered: distance from a schedule" in text


def test_report_needs_runs_and_a_place(tmp_path):
    run = write_run(tmp_path / "a", records())
    with pytest.raises(ValueError, match="at least one"):
        write_report([])
    with pytest.raises(ValueError, match="where the shared report goes"):
        write_report([run, run])
    write_run(tmp_path / "empty", "")
    with pytest.raises(RunError, match="no complete record"):
        write_report([tmp_path / "empty"])


def test_the_package_imports_lightly():
    code = (
        "import sys, entrocraft; before = set(sys.modules); import entrocraft.lab.report as r; "
        "heavy = {'matplotlib', 'jinja2', 'rich', 'scipy', 'pandas'}; "
        "assert not heavy & {m for m in sys.modules if 'entrocraft' not in m} - before; r.Run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
