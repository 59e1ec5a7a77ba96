"""Rejecting by advantage 0 gives the gradient of the batch without the rejected rollouts.

Same direction for every loss of the installed TRL; the length is that of a fixed share: of the
rollouts kept, or of their tokens, whichever the loss normalizes by.
"""

import warnings

import pytest
import torch

from tests.trl.runs import WITNESSES, generation_batch, make_trainer, saved, tiny_model

ROLLOUTS = ("grpo", "sapo", "dr_grpo", "luspo")
TOKENS = ("bnpo", "dapo", "cispo", "vespo")


def gradient(trainer, inputs):
    """Flat gradient of TRL's own loss on one micro-batch."""
    trainer.model.zero_grad()
    trainer.model.train()
    trainer.compute_loss(trainer.model, inputs).backward()
    return torch.cat(
        [p.grad.double().flatten() for p in trainer.model.parameters() if p.grad is not None]
    )


def dropped(batch, rows):
    """The batch without all other rows, as if they had never been generated."""
    size = len(batch["advantages"])
    kept = {}
    for name, value in batch.items():
        per_row = isinstance(value, torch.Tensor) and value.ndim and len(value) == size
        kept[name] = value[rows] if per_row else value
    if "num_items_in_batch" in kept:
        kept["num_items_in_batch"] = kept["completion_mask"].sum()
    return kept


def policy_gradient(trainer, batch):
    """Gradient of the part of the loss that the advantages enter."""
    nothing = batch | {"advantages": torch.zeros_like(batch["advantages"])}
    return gradient(trainer, batch) - gradient(trainer, nothing)


def compare(kind, share, tmp_path, beta=0.0, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL advises against some of these pairs
        trainer = make_trainer(
            kind,
            WITNESSES[kind],
            model=saved(tiny_model(ends=True), tmp_path),
            entropy_control=1.5,
            beta=beta,
            num_iterations=2,  # with old log-probs, so that ratios can differ from 1
            **settings,
        )
    batch = generation_batch(trainer)
    kept = trainer.last_decision.weights > 0
    before = trainer.batches[0]["advantages"]
    assert 0 < int((kept & (before != 0)).sum()) < int((before != 0).sum())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(parameter.std() * 0.02 * torch.randn_like(parameter))
    with_zeros = policy_gradient(trainer, batch)
    subset = policy_gradient(trainer, dropped(batch | {"advantages": before}, kept))
    cosine = float(torch.nn.functional.cosine_similarity(with_zeros, subset, dim=0))
    assert cosine == pytest.approx(1, abs=1e-5)
    tokens = batch["completion_mask"].sum(1)
    rollouts_kept = float(kept.double().mean())
    tokens_kept = float(tokens[kept].sum() / tokens.sum())
    assert abs(rollouts_kept - tokens_kept) > 1e-3  # or the two shares could not be told apart
    expected = rollouts_kept if share == "rollouts" else tokens_kept
    assert float(with_zeros.norm() / subset.norm()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ROLLOUTS + TOKENS)
def test_grpo(loss_type, level, beta, tmp_path):
    if loss_type == "vespo" and level == "sequence":
        pytest.skip("TRL refuses the pair")
    share = "rollouts" if loss_type in ROLLOUTS else "tokens"
    compare("grpo", share, tmp_path, beta, loss_type=loss_type, importance_sampling_level=level)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rloo(beta, tmp_path):
    compare("rloo", "rollouts", tmp_path, beta)
