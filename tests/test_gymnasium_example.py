"""The gymnasium example, shorter: CartPole, whose first episodes take few steps."""

import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")

SCRIPT = Path(__file__).parent.parent / "examples" / "gymnasium_policy.py"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    return runpy.run_path(str(SCRIPT))["main"]


def test_readable_in_one_go():
    assert len(SCRIPT.read_text().splitlines()) < 100


def test_entropy_follows_the_schedule_only_under_control(main, tmp_path):
    figure, numbers = tmp_path / "figure.png", tmp_path / "numbers.json"
    options = {
        "--task": "CartPole-v1",
        "--schedule": "linear(initial, 0.95*initial, 40)",
        "--steps": "40",
        "--seeds": "1",
        "--output": str(figure),
        "--json": str(numbers),
    }
    main([word for option in options.items() for word in option])
    plain, controlled = json.loads(numbers.read_text())["runs"]
    assert (plain["method"], controlled["method"]) == ("plain", "controlled")
    assert plain["kept_fraction"] == 1.0
    assert controlled["kept_fraction"] < 0.9
    # plain loses 0.1 of its 0.69 nats in these steps, the schedule 0.03
    assert plain["tracking_error"] > 0.045
    assert controlled["tracking_error"] < 0.6 * plain["tracking_error"]
    assert figure.read_bytes().startswith(b"\x89PNG")
