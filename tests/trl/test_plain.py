"""What control must leave alone: TRL's own runs, the global generators, evaluation."""

import random

import numpy as np
import pytest
import torch

from entrocraft import EntropyController
from tests.trl.runs import (
    ALIGNED,
    CONTROLLED,
    PLAIN,
    PROMPTS,
    REUSED,
    TIMES,
    Recording,
    make_trainer,
    rows,
    tiny_model,
)


def without_entropy(row):
    return {key: value for key, value in row.items() if not key.startswith("entropy/")}


def trained(kind, cls, dropout=0.0, **settings):
    """A run, and the state of every global generator after it."""
    model = tiny_model(attention_dropout=dropout)
    trainer = make_trainer(kind, cls, model=model, **settings)
    trainer.train()
    numpy_state = np.random.get_state()
    generators = (torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist())
    return trainer, generators


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("settings", [ALIGNED, REUSED], ids=["aligned", "reused"])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_no_control_and_mere_observation_equal_trl_bit_for_bit(kind, settings, dropout):
    reference, generators = trained(kind, PLAIN[kind], dropout, **settings)
    for control in (None, EntropyController(None, rule=None)):
        trainer, generators_after = trained(
            kind, CONTROLLED[kind], dropout, entropy_control=control, **settings
        )
        assert [without_entropy(row) for row in rows(trainer)] == rows(reference)
        assert generators_after == generators
        for name, tensor in reference.model.state_dict().items():
            assert torch.equal(tensor, trainer.model.state_dict()[name]), name
        assert ("entropy/measured" in rows(trainer)[0]) == (control is not None)
    assert any(row["grad_norm"] > 0 for row in rows(reference))


def test_a_controlled_run_is_another_run():
    reference, _ = trained("grpo", PLAIN["grpo"])
    trainer, _ = trained("grpo", CONTROLLED["grpo"], entropy_control=1.0)
    assert rows(trainer)[-1]["grad_norm"] != rows(reference)[-1]["grad_norm"]


def evaluated(kind, cls, **settings):
    trainer = make_trainer(
        kind, cls, eval_dataset=PROMPTS.select(range(8)), per_device_eval_batch_size=8, **settings
    )
    trainer.evaluate()
    metrics = trainer.state.log_history[-1]
    return trainer, {k: v for k, v in metrics.items() if not any(t in k for t in TIMES)}


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_evaluation_is_trls_and_makes_no_decision(kind):
    _, reference = evaluated(kind, PLAIN[kind])
    control = Recording(2.0)
    before = control.state_dict()
    trainer, metrics = evaluated(kind, CONTROLLED[kind], entropy_control=control)
    assert metrics == reference
    assert np.isfinite(metrics["eval_reward"])
    assert control.asked == []
    assert control.state_dict() == before
    assert trainer.last_decision is None
    assert not any(key.startswith("entropy/") for row in trainer.state.log_history for key in row)


def test_evaluation_amid_training_changes_no_decision():
    def run(**settings):
        # evaluation draws from the generators, so the comparison is between two that evaluate
        control = EntropyController(None, rule=None)
        cls = settings.pop("cls", None)
        settings |= {} if cls else {"entropy_control": control}
        trainer = make_trainer(
            "grpo",
            cls,
            eval_dataset=PROMPTS.select(range(8)),
            per_device_eval_batch_size=8,
            eval_strategy="steps",
            eval_steps=2,
            **settings,
        )
        trainer.train()
        evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
        names = [k for k in evaluations[0] if not any(t in k for t in TIMES)]
        return rows(trainer), [{k: row[k] for k in names} for row in evaluations], control

    plain_rows, plain_evaluations, _ = run(cls=PLAIN["grpo"])
    seen_rows, seen_evaluations, control = run()
    assert seen_evaluations == plain_evaluations
    assert len(seen_evaluations) == 2
    assert [without_entropy(row) for row in seen_rows] == plain_rows
    assert control.state_dict()["decisions"] == 4
