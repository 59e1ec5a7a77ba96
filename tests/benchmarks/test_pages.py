"""Numbers on the pages are those of the committed result files."""

import json
from pathlib import Path

from entrocraft.lab.report.style import style as drawing_style

ROOT = Path(__file__).parents[2]
from benchmarks import peers, tracking
from benchmarks.pages import into_page  # noqa: E402


def test_tables_of_the_tracking_study_are_its_results(tmp_path, monkeypatch):
    for name in ("PAGE", "README"):
        page = getattr(tracking, name)
        copy = tmp_path / page.name
        copy.write_text(page.read_text())
        monkeypatch.setattr(tracking, name, copy)
    assert tracking.main(["--docs"]) == 0
    for page in (ROOT / "docs" / "tracking.md", ROOT / "README.md"):
        assert page.read_text() == (tmp_path / page.name).read_text(), page


def test_tables_of_the_peers_study_are_its_results(tmp_path):
    page = ROOT / "docs" / "peers.md"
    copy = tmp_path / "peers.md"
    copy.write_text(page.read_text())
    results = json.loads(peers.RESULTS.read_text())
    into_page(peers.page(), copy)
    assert page.read_text() == copy.read_text()
    with drawing_style():
        first, second = peers.draw(results["groups"]).axes
    assert second.get_title(loc="left") == "pass@8 at the end"
    assert len(first.texts) == len(results["groups"])


def test_columns_of_pass_at_k_are_in_order_of_k():
    names = ["pass@8", "pass@16", "pass@1", "pass@4", "pass@2"]
    ordered = ["pass@1", "pass@2", "pass@4", "pass@8", "pass@16"]
    assert peers.pass_keys([{"group": "GRPO", name: None} for name in names]) == ordered


def spread(center, n=5):
    return {"center": center, "low": center / 2, "high": center * 2, "n": n}


def test_the_table_of_peers_is_ordered_by_error_and_says_what_was_tried():
    def row(group, error, end, seconds, **more):
        values = {"group": group, "runs": 5, "steered": False, "kept_fraction": None}
        values |= {"tracking_error": spread(error), "final_reward": spread(0.3), "pass@8": None}
        values |= {"entropy_start": spread(0.4), "entropy_end": spread(end)}
        return values | {"seconds": spread(seconds)} | more

    made = peers.tables(
        {
            "command": "entrocraft compare x.yaml",
            "groups": [
                row("GRPO", 0.08, 0.15, 100.0),
                row("tilt", 0.01, 0.3, 110.0, steered=True, kept_fraction=spread(0.7)),
                row("bonus", 2.0, 4.0, 90.0, runs=1, **{"pass@8": spread(0.5, n=1)}),
            ],
            "tuning": {
                "bonus": {
                    "key": "control.options.bonus",
                    "tried": {"0.1": 2.0, "0.2": None},
                    "chosen": 0.1,
                }
            },
        }
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in made.splitlines()
        if line.startswith("| ")
    ]
    assert [r[0] for r in rows[2:5]] == ["tilt *", "GRPO", "bonus"]
    tilt, grpo, bonus = rows[2:5]
    assert tilt[3] == "0.0100 [0.0050, 0.0200]"
    assert tilt[-3:] == ["", "70%", "1.10"]
    assert grpo[-3:] == ["collapsed", "", "1.00"]
    assert bonus[2] == "bonus 0.1"
    assert bonus[5] == "0.50"
    assert bonus[-3] == "exploded"
    assert rows[-1] == ["bonus", "bonus", "0.1: 2.0000", "0.2: failed"]
    assert made.endswith("Command: `entrocraft compare x.yaml`")
