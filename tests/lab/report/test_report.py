"""Reports from run directories: loading, numbers, words, figures and the page."""

from __future__ import annotations

import json
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
    control_figure,
    describe,
    describe_group,
    entropy_figure,
    group_summaries,
    group_table,
    load_run,
    load_runs,
    render_table,
    reward_figure,
    save_png,
    summarize,
    to_svg,
    verdict,
    write_report,
)
from entrocraft.lab.report.curves import curve, usual_limit
from entrocraft.lab.report.groups import UNSTEERED_NOTE, duration, table_notes, table_rows
from entrocraft.lab.report.intervals import (
    INTERVAL_NOTE,
    bootstrap_interval,
    interquartile_mean,
    spread_of,
)
from entrocraft.lab.report.marks import smooth
from entrocraft.lab.report.page import DARK
from entrocraft.lab.report.style import BLUE, NARROW, VERMILION, WIDE, place_apart


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
                "entropy/chosen_change": 0.002,
                "entropy/predicted_change": 0.001,
                "entropy/post_update_change": 0.0005 * (step % 5),
                "entropy/post_update_change_stderr": 0.0004,
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


# Loading ------------------------------------------------------------------------------------


def test_load_columns_with_nan_where_a_key_is_missing(tmp_path):
    run = load_run(write_run(tmp_path / "a", records(), name="tilt-seed3", seed=3))
    assert run.steps.tolist() == list(range(41))
    assert np.isnan(run.column("reward")[0])
    assert run.points("entropy/probe")[0].tolist() == [0, 10, 20, 30, 40]
    assert np.isnan(run.column("never/logged")).all()
    assert (run.name, run.group, run.seed, run.rule) == ("tilt-seed3", "tilt", 3, "tilt")
    assert run.ks == [1, 4]


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
    assert [name for name, _ in names(a, twin)] == [f"tilt ({a})", f"tilt ({twin})"]
    with pytest.raises(RunError, match="is given twice"):
        load_runs([a, tmp_path / "b" / ".." / "a"])
    page = write_report([a, longer], tmp_path / "both").read_text()
    assert "steps=60" in page
    assert "over 2 seeds" not in page


def test_cut_off_last_line_is_left_out_and_noted(tmp_path):
    text = '{"step": 1, "reward": 0.5}\n{"step": 2, "rew'
    run = load_run(write_run(tmp_path, text))
    assert run.steps.tolist() == [1]
    assert "Line 2" in run.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1, "reward": 1}\n{"step": 2, \n{"step": 3, "reward": 1}\n', ["line 2", "delet"]),
        ('{"step": 1, "reward": 1}\n[1, 2]\n', ["line 2", '"step"']),
        ('{"reward": 1}\n', ["line 1", '"step"']),
        ('{"step": 1.5}\n', ["line 1", '"step"']),
        ('{"step": 1e300}\n', ["line 1", '"step"']),
        ('{"step": -1}\n', ["line 1", '"step"']),
        ('{"step": NaN}\n', ["line 1", '"step"']),
        ('{"step": Infinity}\n', ["line 1", '"step"']),
        ('{"step": 1, "reward": "high"}\n', ["line 1", "reward", "number"]),
        ("", ["no complete record", "wait"]),
        ('{"step": 1', ["no complete record"]),
    ],
)
def test_unreadable_metrics_name_file_line_and_remedy(tmp_path, text, words):
    write_run(tmp_path, text)
    with pytest.raises(RunError) as error:
        load_run(tmp_path)
    for word in ["metrics.jsonl", *words]:
        assert word in str(error.value)


def test_missing_directory_metrics_and_bad_config(tmp_path):
    with pytest.raises(RunError, match="not a directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="does not exist"):
        load_run(tmp_path)
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
    assert "config.yaml" in run.notes[0]


def test_resumed_run_keeps_the_later_part(tmp_path):
    before = [{"step": s, "reward": 0.0} for s in (1, 2, 3, 4)]
    after = [{"step": s, "reward": 1.0} for s in (3,)]
    run = load_run(write_run(tmp_path, before + after))
    assert run.steps.tolist() == [1, 2, 3]  # step 4 belongs to the part that was abandoned
    assert run.column("reward").tolist() == [0, 0, 1]


def test_one_step_in_two_parts_is_merged(tmp_path):
    log = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}, {"step": 1, "eval/pass@1": 0.1}]
    run = load_run(write_run(tmp_path, log))
    assert run.steps.tolist() == [1, 2]
    assert run.column("reward").tolist() == [0.5, 0.6]
    assert run.points("eval/pass@1")[1].tolist() == [0.1]


def test_null_text_and_switches_in_records(tmp_path):
    log = [{"step": 1, "reward": None, "note": "text", "entropy/saturated": True}]
    run = load_run(write_run(tmp_path, log))
    assert not run.has("reward")
    assert run.column("entropy/saturated").tolist() == [1.0]


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


# Numbers and words --------------------------------------------------------------------------


def test_summary_against_hand_computed_values(tmp_path):
    run = load_run(
        write_run(tmp_path, records(offset=0.01), seed=7, command=["entrocraft", "train", "a b"])
    )
    s = summarize(run)
    assert s.tracking_error == pytest.approx(0.01)  # steps 30 and 40; 20 is still burn-in
    assert s.tracking_bias == pytest.approx(0.01)
    assert s.tracking_end == pytest.approx(0.01)
    assert s.tracking_points == 2
    assert s.probe_stderr == pytest.approx(0.004)
    assert s.tracking_error_measured == pytest.approx(0.02)  # |0.01 +- 0.02| = 0.03 or 0.01
    assert s.final_reward == pytest.approx(0.305)  # mean of 0.21 ... 0.40
    assert s.final_reward_steps == 20
    assert s.pass_at["pass@1"].first == pytest.approx(0.2)
    assert s.pass_at["pass@1"].last == pytest.approx(0.6)
    assert (s.pass_at["pass@1"].first_stderr, s.pass_at["pass@1"].last_stderr) == (None, 0.01)
    assert s.pass_at["pass@4"].last_step == 40
    assert s.kept_fraction == pytest.approx(0.8)
    assert s.saturated_share == pytest.approx(0.25)
    assert s.saturated_first == 31
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


def test_describe_judges_honestly(tmp_path):
    def words(log, rule="tilt"):
        s = summarize(load_run(write_run(tmp_path, log, rule=rule)))
        return verdict(s), describe(s)

    followed = words(records(offset=0.01))
    assert followed[0] == "followed"
    assert "followed the target within 0.010 nats" in followed[1]
    assert "at its limit on 25 % of the steps, first at step 31" in followed[1]
    assert "pass@1 went from 0.20 to 0.60" in followed[1]
    assert words(records(offset=0.05))[0] == "near"
    missed = words(records(offset=-0.2))
    assert missed[0] == "missed"
    assert "did not follow the target: it was 0.200 nats away and mostly below it" in missed[1]
    assert "the band was left on 25 %" in words(records(), rule="sign")[1]
    assert "No probe" not in followed[1]
    no_probe = words(records(probe=False))
    assert no_probe[0] == "followed"
    assert "no probe was logged" in no_probe[1]
    assert "Too early to judge" in words(records(steps=8))[1]
    assert "logged no target" in words([{"step": 1, "reward": 0.1}])[1]


def test_describe_a_run_that_left_the_target_at_the_end(tmp_path):
    log = records()
    log[-1]["entropy/probe"] = 0.1
    s = summarize(load_run(write_run(tmp_path, log)))
    assert s.tracking_error == pytest.approx(0.1)
    assert verdict(s) == "missed"
    log += [{"step": step, "entropy/target": 0.3, "entropy/probe": 0.3} for step in range(41, 46)]
    log.append({"step": 46, "entropy/target": 0.3, "entropy/probe": 0.2})
    s = summarize(load_run(write_run(tmp_path, log)))
    assert verdict(s) == "left"
    assert "0.100 below it at the last probe" in describe(s)


def test_uncontrolled_run_is_not_judged(tmp_path):
    s = summarize(load_run(write_run(tmp_path, records(offset=-0.1, control=False), rule=None)))
    assert verdict(s) is None
    assert describe(s).startswith("Nothing steered entropy; it fell from 0.50 to 0.20 nats.")
    assert s.saturated_share is None


def test_seeds_are_aggregated(tmp_path):
    dirs = [
        write_run(tmp_path / f"tilt-seed{i}", records(offset=0.01 * i), name="tilt", seed=i)
        for i in range(3)
    ]
    dirs.append(write_run(tmp_path / "[plain]", records(control=False), rule=None))
    summaries = [summarize(load_run(d)) for d in dirs]
    tilt, plain = group_summaries(summaries)
    spread = tilt.spread(lambda s: s.tracking_error)
    assert (spread.center, spread.low, spread.high) == pytest.approx((0.01, 0.0, 0.02))
    assert tilt.seeds == "0, 1, 2"
    assert "followed the target in 3 of 3 runs" in describe_group(tilt)
    assert describe_group(plain) == describe(summaries[3])
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(summaries))
    text = console.export_text()
    for expected in ("0.010", "[0.000, 0.020]", "3 seeds", "[plain]", "0.000 *", "pass@4", "80 %"):
        assert expected in text
    assert "interquartile means over 3 seeds" in describe_group(tilt)
    assert "0.010 nats away (95 % interval [0.000, 0.020])" in describe_group(tilt)
    assert "1 min 20 s" in text
    small = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    small.print(render_table(summaries))
    assert "…" not in small.export_text()
    assert " ".join(INTERVAL_NOTE.split()[:5]) in text


# Intervals ----------------------------------------------------------------------------------


def test_interquartile_mean_by_hand():
    assert interquartile_mean([3.0, 1.0, 5.0]) == pytest.approx(3.0)  # a quarter of 3 is none
    assert interquartile_mean([9.0, 1.0, 3.0, 5.0]) == pytest.approx(4.0)
    assert interquartile_mean([100.0, 2.0, 0.0, 3.0, 4.0]) == pytest.approx(3.0)
    assert interquartile_mean(range(8)) == pytest.approx(3.5)  # 2 ... 5


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_interval_against_a_bootstrap_in_numpy(n):
    values = np.random.default_rng(n).normal(0.4, 0.1, n)
    drawn = np.random.default_rng(1).choice(values, (200_000, n))
    cut = n // 4
    means = np.sort(drawn, axis=1)[:, cut : n - cut].mean(axis=1)
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.01)
    assert bootstrap_interval(values[::-1]) == bootstrap_interval(values)
    if n < 5:
        assert bootstrap_interval(values) == pytest.approx((values.min(), values.max()))


@pytest.mark.filterwarnings("error")
def test_equal_values_and_few_values_have_a_spread():
    assert spread_of([0.1] * 5) == spread_of([0.1, None, *[0.1] * 4])
    same = spread_of([0.1] * 5)
    assert (same.center, same.low, same.high, same.n) == (0.1, 0.1, 0.1, 5)
    two = spread_of([0.3, None, 0.1])
    assert (two.center, two.low, two.high, two.n) == (0.2, 0.1, 0.3, 2)
    assert not two.has_interval
    assert spread_of([0.1]).low == 0.1
    assert spread_of([None]) is None


def seeds_of(path: Path, n: int, **options: object) -> list[Path]:
    return [
        write_run(path / f"tilt-seed{i}", records(offset=0.01 * i, **options), seed=i)
        for i in range(n)
    ]


@pytest.mark.parametrize(("seeds", "noted"), [(1, False), (2, False), (3, True)])
def test_the_interval_is_explained_where_there_is_one(tmp_path, seeds, noted):
    dirs = seeds_of(tmp_path, seeds)
    summaries = [summarize(load_run(d)) for d in dirs]
    (row,) = table_rows(summaries)
    assert (table_notes([row]) == [INTERVAL_NOTE]) is noted
    assert row.cells[0].range == ["", "0.000 to 0.010", "[0.000, 0.020]"][seeds - 1]
    assert row.cells[4].range == ["", "all 80 %", "all 80 %"][seeds - 1]
    assert row.cells[-1].value == "1 min 20 s"
    assert (INTERVAL_NOTE in (render_table(summaries).caption or "")) is noted
    text = write_report(dirs, tmp_path / "out").read_text(encoding="utf-8")
    assert ("bootstrap" in text) is noted
    assert ("mean of 2 runs" in text) is (seeds == 2)


def test_interval_of_shares_is_written_in_percent(tmp_path):
    dirs = seeds_of(tmp_path, 3)
    log = [record | {"entropy/saturated": 1} for record in records()]
    write_run(dirs[1], log, seed=1)
    (row,) = table_rows([summarize(load_run(d)) for d in dirs])
    assert (row.cells[5].value, row.cells[5].range) == ("50 %", "[25, 100] %")


def test_group_table_is_plain_data(tmp_path):
    dirs = [*seeds_of(tmp_path, 4), write_run(tmp_path / "GRPO", records(control=False), None)]
    summaries = [summarize(load_run(d)) for d in dirs]
    tilt, plain = json.loads(json.dumps(group_table(summaries), allow_nan=False))
    assert (tilt["group"], tilt["seeds"], tilt["runs"], tilt["steered"]) == (
        "tilt",
        [0, 1, 2, 3],
        4,
        True,
    )
    error = {"center": 0.015, "low": 0.0, "high": 0.03, "n": 4}
    assert tilt["tracking_error"] == pytest.approx(error)
    assert tilt["pass@4"] == pytest.approx({"center": 0.8, "low": 0.8, "high": 0.8, "n": 4})
    assert tilt["seconds"] == {"center": 80.0, "low": 80.0, "high": 80.0, "n": 4}
    assert tilt["kept_fraction"]["center"] == pytest.approx(0.8)
    assert (plain["seeds"], plain["steered"], plain["saturated_share"]) == ([], False, None)
    assert plain["final_reward"]["n"] == 1


def test_time_is_the_plain_mean(tmp_path):
    dirs = []
    for seed, seconds in enumerate((10.0, 20.0, 30.0, 100.0)):
        log = [{"step": 1, "reward": 0.5, "seconds": seconds}]
        dirs.append(write_run(tmp_path / f"a-seed{seed}", log, seed=seed))
    summaries = [summarize(load_run(d)) for d in dirs]
    assert table_rows(summaries)[0].cells[-1].value == "40 s"
    seconds = group_table(summaries)[0]["seconds"]
    assert seconds == {"center": 40.0, "low": 10.0, "high": 100.0, "n": 4}
    assert [duration(s) for s in (59.7, 125, 3725)] == ["1 min 0 s", "2 min 5 s", "1 h 2 min"]


# Many groups --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> list[Path]:
    """25 methods x 3 seeds: every third is not steered, and those drift away from the target."""
    root = tmp_path_factory.mktemp("crowd")
    dirs = []
    for method in range(25):
        steered = method % 3 != 2
        for seed in range(3):
            offset = 0.004 * seed + (0.0 if steered else -0.15 + 0.01 * method)
            log = records(offset=offset, control=steered)
            name = f"method {method}"
            rule = "tilt" if steered else None
            dirs.append(write_run(root / f"{name}-seed{seed}", log, rule, name=name, seed=seed))
    explode(dirs[5 * 3 + 1])
    return dirs


def explode(path: Path) -> None:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        if record["step"] >= 30 and "entropy/probe" in record:
            record["entropy/probe"] = 3.14
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def titles(figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_many_groups_have_a_panel_each(crowd, width):
    runs = [load_run(path) for path in crowd]
    names = [f"method {i}" for i in range(25)]
    figure = entropy_figure(runs, width)
    assert titles(figure) == names
    assert len(figure.axes) == 25
    columns = {round(axis.get_subplotspec().colspan.start) for axis in figure.axes}
    assert len(columns) == (5 if width == WIDE else 2)
    assert {axis.get_ylim() for axis in figure.axes} == {figure.axes[0].get_ylim()}
    steered, other = figure.axes[0], figure.axes[2]
    assert steered.get_title(loc="right") == "0.004"  # of seeds at 0, 0.004 and 0.008
    assert other.get_title(loc="right") == ""
    assert BLUE in {line.get_color() for line in steered.lines}
    assert VERMILION in {line.get_color() for line in other.lines}
    (own,) = (line for line in steered.lines if line.get_color() == BLUE)
    assert own.get_ydata()[1:] == pytest.approx([0.454, 0.404, 0.354, 0.304])
    assert len(steered.collections) == 1  # the band from the lowest to the highest seed
    reward = reward_figure(runs, width)
    assert titles(reward) == names
    assert len(reward.axes) == 26
    shares = reward.axes[-1]
    assert [label.get_text() for label in shares.get_yticklabels()] == names
    for drawn in (figure, reward, control_figure(runs, width)):
        svg = to_svg(drawn, "x", "x")
        assert set(re.findall(r"var\(--(\w{6}),", svg)) <= {color[1:] for color in DARK}


def test_a_curve_that_leaves_its_panel_is_marked(crowd):
    figure = entropy_figure([load_run(path) for path in crowd])
    marks = [text for axis in figure.axes for text in texts(axis)]
    assert marks == ["↑ to 3.1"]
    assert texts(figure.axes[5]) == marks
    assert 0.5 < figure.axes[0].get_ylim()[1] < 0.7  # the others keep their height


def test_six_groups_share_axes_and_seven_do_not(crowd):
    runs = [load_run(path) for path in crowd]
    assert len(entropy_figure(runs[:18]).axes) == 1
    assert len(entropy_figure(runs[:21]).axes) == 7
    assert len(entropy_figure(runs[:21:3]).axes) == 7  # one seed each
    assert len(control_figure(runs[:18]).axes) == 4
    control = control_figure(runs[:21])
    assert titles(control) == [f"method {i}" for i in (0, 1, 3, 4, 6)]
    assert len(control.axes) == 5 * 3


def test_groups_without_a_choice_have_no_row_in_the_control_figure(tmp_path):
    log = [{"step": step, "entropy/kept_fraction": 1.0} for step in range(1, 4)]
    runs = [load_run(write_run(tmp_path / f"m{i}", log, rule="aent")) for i in range(7)]
    assert control_figure(runs) is None
    for i in (2, 4):
        less = [record | {"entropy/kept_fraction": 0.5} for record in log]
        runs[i] = load_run(write_run(tmp_path / f"m{i}", less, rule="aent"))
    figure = control_figure(runs)
    assert titles(figure) == ["m2", "m4"]
    assert "not logged" in texts(figure.axes[2])


def test_page_of_many_groups(crowd, tmp_path):
    page = write_report(crowd, tmp_path)
    check_page(page)
    text = page.read_text(encoding="utf-8")
    assert "25 methods, 75 runs" in text
    assert "17 of the methods steered" in text.replace("&nbsp;", " ")
    assert "an arrow says how far it goes" in text
    assert "Points are the probe" not in text
    assert "bars of one standard error" not in text.replace("\n", " ")
    assert INTERVAL_NOTE in text
    assert UNSTEERED_NOTE.replace("'", "&#39;") in text
    assert "Every run in numbers" in text
    six = write_report(crowd[:18:3], tmp_path / "six").read_text(encoding="utf-8")
    assert "Points are the probe" in six
    assert "an arrow says how far it goes" not in six
    assert "Every run in numbers" not in six


@pytest.mark.parametrize(
    "log",
    [
        [{"step": 1}],
        [{"step": 3, "entropy/measured": 0.4, "entropy/pressure": 0.0}],
        [{"step": 0, "entropy/probe": 0.5, "eval/pass@1": 0.1}],
        records(steps=3, probe=False),
    ],
)
@pytest.mark.filterwarnings("error:constrained_layout")
def test_whatever_many_groups_logged_can_be_drawn(tmp_path, log):
    runs = [
        load_run(write_run(tmp_path / f"m{i}", records(steps=9) if i == 3 else log))
        for i in range(7)
    ]
    nothing = [load_run(write_run(tmp_path / f"n{i}", log)) for i in range(7)]
    for drawn, width in ((runs, WIDE), (nothing, NARROW)):
        for figure in (entropy_figure, reward_figure, control_figure):
            made = figure(drawn, width)
            assert made is None or to_svg(made, "x", "x").endswith("</svg>")


def test_curve_of_seeds_that_logged_at_different_steps(tmp_path):
    logs = [
        [{"step": 0, "reward": 0.0}, {"step": 10, "reward": 1.0}],
        [{"step": 5, "reward": 0.9}, {"step": 20, "reward": 0.9}],
    ]
    runs = [load_run(write_run(tmp_path / f"{i}", log)) for i, log in enumerate(logs)]
    found = curve(runs, "reward")
    assert found.steps.tolist() == [0, 5, 10, 20]
    assert found.mean == pytest.approx([0.0, 0.7, 0.95, 0.9])
    assert found.low == pytest.approx([0.0, 0.5, 0.9, 0.9])
    assert curve(runs, "never") is None


def test_the_axis_ends_at_what_is_usual():
    assert usual_limit([0.5] * 9 + [0.9, 40.0]) == 0.9
    assert usual_limit([0.1, 0.4, 0.7, 1.0, 1.6]) == 1.6
    assert usual_limit([2.0]) == 2.0


# Figures and page ---------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would load, the ids, and the tags that were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)


def check_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert all(load.startswith(("#", "data:,")) for load in page.loads)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {load[1:] for load in page.loads if load[0] == "#"} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    return page


def test_report_of_one_run_goes_into_its_directory(tmp_path):
    run = write_run(tmp_path / "run", records(), name="first", command="entrocraft train x.yaml")
    page = write_report([run])
    assert page == run / "report.html"
    assert (run / "entropy.png").read_bytes().startswith(b"\x89PNG")
    (summary,) = json.loads((run / "summary.json").read_text())
    assert summary["name"] == "first"
    assert summary["description"].startswith("Entropy followed")
    text = page.read_text(encoding="utf-8")
    assert check_page(page).tags.count("svg") == 6  # three figures, for two widths each
    assert "entrocraft train x.yaml" in text
    assert "Entropy followed the target" in text
    figure = entropy_figure([load_run(run)])
    assert to_svg(figure, "entropy-wide", "").split(">", 1)[1] in text  # the same bytes each time


def test_report_escapes_what_a_run_says(tmp_path):
    evil = '<script>alert(1)</script>" $x_{ & _'
    runs = [
        write_run(tmp_path / "a", records(steps=9), name=evil, command=evil, note="</pre><img>"),
        write_run(tmp_path / "b", records(steps=9), name="_hidden"),
    ]
    page = write_report(runs, tmp_path / "out")
    assert "img" not in check_page(page).tags
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    assert "_hidden" in text


def test_report_of_many_runs(tmp_path):
    runs = [
        write_run(
            tmp_path / f"{rule}-seed{seed}", records(steps=9, control=bool(rule)), rule, seed=seed
        )
        for rule in ("tilt", "sign", None)
        for seed in (0, 1)
    ]
    page = write_report(runs, tmp_path / "all" / "compare.html")
    assert page.name == "compare.html"
    assert (page.parent / "entropy.png").is_file()
    assert len(json.loads((page.parent / "summary.json").read_text())) == 6
    check_page(page)
    text = page.read_text(encoding="utf-8")
    assert "mean of 2 runs, seeds 0, 1" in text
    assert "Nothing steered" in text


def test_report_needs_runs_and_a_place(tmp_path):
    run = write_run(tmp_path / "a", records())
    with pytest.raises(ValueError, match="at least one"):
        write_report([])
    with pytest.raises(ValueError, match="where the shared report goes"):
        write_report([run, run])
    write_run(tmp_path / "empty", "")
    with pytest.raises(RunError, match="no complete record"):
        write_report([tmp_path / "empty"])


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
def test_whatever_was_logged_can_be_drawn(tmp_path, log):
    run = load_run(write_run(tmp_path, log, rule="sign"))
    assert describe(summarize(run))
    for figure in (entropy_figure([run]), reward_figure([run]), control_figure([run])):
        assert figure is None or to_svg(figure, "x", "x").endswith("</svg>")


def test_figures_agree_on_colors_and_leave_settings_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    runs = [
        load_run(write_run(tmp_path / "plain", records(control=False), None)),
        load_run(write_run(tmp_path / "tilt", records())),
    ]
    entropy, control = entropy_figure(runs), control_figure(runs)
    assert control_figure(runs[:1]) is None
    tilt_color = "#d55e00"  # the second name's, in the figure that shows only this run too
    for figure in (entropy, control):
        assert tilt_color in {line.get_color() for line in figure.axes[0].lines}
    assert to_svg(reward_figure(runs), "r", 'a "<b>"').startswith("<svg viewBox=")
    save_png(entropy, tmp_path / "x.png")
    assert dict(mpl.rcParams) == before


def test_small_helpers():
    assert smooth(np.array([1.0, 2.0, 6.0])).tolist() == [3.0, 3.0, 3.0]
    assert smooth(np.arange(30.0))[15] == pytest.approx(15.0)
    assert place_apart([0.5, 0.5, 0.1], 0.1, 0.0, 1.0) == pytest.approx([0.5, 0.6, 0.1])
    assert place_apart([1.0, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.9, 1.0])


def test_the_package_imports_lightly():
    code = (
        "import sys, entrocraft.lab.report as r; heavy = {'matplotlib', 'jinja2', 'rich', 'scipy'}; "
        "assert not heavy & {m for m in sys.modules if 'entrocraft' not in m} - before; r.Run"
    )
    code = f"import sys; import entrocraft; before = set(sys.modules); {code}"
    subprocess.run([sys.executable, "-c", code], check=True)
