"""Reward at equal entropy: what methods end with, and the differences of the same seeds."""

import pandas as pd
import pytest

from benchmarks import frontier, studies, tables
from entrocraft.lab.grid.study import Study

STUDY = Study(
    schedules={"short": "linear(initial, 0.6*initial, 60)"},
    methods={"ours": {}, "bonus": {}},
    parts={"all": {"methods": ["ours", "bonus"], "schedules": ["short"]}},
    seeds=[1, 2, 3],
)


def cells(method, rewards, seeds):
    """Rows as `tables.read` makes them, with numbers that follow from the reward."""
    rows = [
        {"method": method, "schedule": "short", "seed": seed, "final_reward": reward}
        | {key: reward / 2 for key in frontier.ENDS.values() if key not in ("final_reward", "tax")}
        | {"sharpening_first": 0.5, "sharpening": 0.5 - reward, "kept_fraction": 0.75}
        for seed, reward in zip(seeds, rewards, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def result():
    both = [cells("ours", [0.3, 0.5, 0.1], [1, 3, 2]), cells("bonus", [0.2, 0.3, 0.9], [1, 3, 4])]
    found = studies.Result(STUDY, pd.concat(both), ["bonus/short/2"], {}, "entrocraft compare x")
    found.study.seeds.append(4)
    return found


def test_ends_are_means_over_seeds(result):
    (part,) = result.study.tables
    table = frontier.part_table(result, part, tables.number).set_index("method")
    assert table.loc["ours", "seeds"] == "3"
    assert table.loc["ours", "final reward"].startswith("0.300 [0.100, 0.500]")
    assert table.loc["ours", "sharpening tax"] == table.loc["ours", "final reward"]
    assert table.loc["ours", "kept"] == "75%"


def test_differences_are_of_the_same_seeds(result):
    (part,) = result.study.tables
    table = frontier.differences(result, part, "bonus")
    assert table["seeds"].tolist() == ["2"], "seeds 1 and 3 have both"
    assert table["final reward, more than bonus"].tolist() == ["+0.150 (+0.100 to +0.200)"]
    assert frontier.differences(result, part, "absent").empty


def test_the_page_names_what_is_missing(result):
    text = tables.frontier_tables(result, "bonus")
    assert "1 cells are missing: bonus/short/2" in text
    assert text.endswith("Command: `entrocraft compare x`")


def test_every_method_is_a_point_in_every_panel(result):
    drawn = frontier.figure(result)
    assert len(drawn.axes) == 2
    for axis in drawn.axes:
        points = {bars.get_label(): bars.lines[0].get_xydata()[0] for bars in axis.containers}
        assert points["ours"][0] == pytest.approx(0.15)
    assert drawn.axes[0].containers[0].lines[0].get_ydata()[0] == pytest.approx(0.3)
