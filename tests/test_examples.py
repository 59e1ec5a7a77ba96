"""The language-model examples run as they are, only shorter and on an untrained model."""

import runpy
from pathlib import Path

import pytest
import trl

import entrocraft.lab.models
import entrocraft.lab.tasks
from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("grpo_*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(script, tmp_path, monkeypatch):
    assert len(script.read_text().splitlines()) < 30
    shape = ReasonerConfig(hidden_size=32, layers=1, heads=2, intermediate_size=32)
    tokenizer = build_tokenizer(shape.max_positions)
    tokenizer.save_pretrained(tmp_path)
    build_reasoner(shape, tokenizer).save_pretrained(tmp_path)
    monkeypatch.setattr(entrocraft.lab.models, "warm_start", lambda config: tmp_path)
    original = trl.GRPOConfig

    def shorter(output_dir, **options):
        short = {"max_steps": 3, "per_device_train_batch_size": 32, "logging_steps": 1}
        return original(str(tmp_path / "run"), **(options | short))

    monkeypatch.setattr(trl, "GRPOConfig", shorter)
    trainer = runpy.run_path(str(script))["trainer"]
    rows = [row for row in trainer.state.log_history if "entropy/target" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["entropy/target"] < rows[0]["entropy/target"]
