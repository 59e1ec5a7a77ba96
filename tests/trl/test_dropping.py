"""Rollouts without a gradient leave the update, and it stays what it was."""

import warnings

import pytest
import torch

from entrocraft import EntropyController
from entrocraft.methods import get_method
from entrocraft.trl.dropping import RowDropping
from tests.trl.runs import CONTROLLED, REUSED, generation_batch, make_trainer, tiny_model
from tests.trl.test_rejection_gradients import ROLLOUTS, TOKENS, gradient


class Watching:
    """Keeps how many rollouts each pass has, with gradients and without."""

    def __init__(self, *args, **kwargs):
        self.trained, self.scored = [], []
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, ids, *args, **kwargs):
        (self.trained if torch.is_grad_enabled() else self.scored).append(len(ids))
        return super()._get_per_token_logps_and_entropies(model, ids, *args, **kwargs)


WATCHED = {kind: type(kind, (Watching, cls), {}) for kind, cls in CONTROLLED.items()}


def steered(**settings):
    return EntropyController("constant(1.5)", remeasure=0, **settings)


def dropping(kind="grpo", **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL advises against some of these pairs
        return make_trainer(
            kind,
            model=tiny_model(ends=True),
            entropy_control=steered(drop_rejected=True),
            **settings,
        )


def compare(kind, **settings):
    trainer = dropping(kind, num_iterations=2, **settings)
    batch = generation_batch(trainer)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(parameter.std() * 0.02 * torch.randn_like(parameter))
    widths = []
    score = trainer._get_per_token_logps_and_entropies

    def watched(model, ids, *args, **kwargs):
        widths.append(ids.shape)
        return score(model, ids, *args, **kwargs)

    trainer._get_per_token_logps_and_entropies = watched
    # the longest completion is a rejected one
    longest = batch["completion_mask"].sum(1).max()
    batch["advantages"][batch["completion_mask"].sum(1) == longest] = 0
    left = batch["advantages"] != 0
    assert 0 < int(left.sum()) < len(left)
    without = gradient(trainer, dict(batch))
    trainer._dropping = None
    whole = gradient(trainer, dict(batch))
    assert whole.norm() > 1e-3
    torch.testing.assert_close(without, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
    assert widths[0][0] == int(left.sum())
    if settings.get("loss_type") != "luspo":
        assert widths[0][1] < widths[1][1]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ROLLOUTS + TOKENS)
def test_every_loss_of_grpo_keeps_its_gradient(loss_type, level):
    if loss_type == "vespo" and level == "sequence":
        pytest.skip("TRL refuses the pair")
    compare("grpo", loss_type=loss_type, importance_sampling_level=level)


def test_rloo_keeps_its_gradient():
    compare("rloo")


@pytest.mark.parametrize(("kind", "reuse"), [("grpo", {}), ("grpo", REUSED), ("rloo", REUSED)])
def test_a_run_is_what_it_was_with_smaller_passes(kind, reuse):
    """Two runs; the first steps, before rounding has made them differ."""
    ends, sizes = [], []
    for settings in ({"extra_pass": True}, {"drop_rejected": True}):
        trainer = make_trainer(
            kind,
            WATCHED[kind],
            model=tiny_model(ends=True),
            entropy_control=steered(**settings),
            max_steps=3,
            **reuse,
        )
        trainer.train()
        sizes.append(trainer.trained)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    assert len(sizes[0]) == len(sizes[1]), "as many micro-batches"
    assert all(few <= all_ for few, all_ in zip(sizes[1], sizes[0], strict=True))
    assert sum(sizes[1]) < 0.9 * sum(sizes[0])


def test_a_micro_batch_without_a_gradient_keeps_one_rollout():
    trainer = dropping()
    batch = generation_batch(trainer)
    batch["advantages"][:] = 0
    seen = []
    trainer._dropping.loss(lambda _, kept: seen.append(kept) or torch.ones(()), None, batch)
    assert [len(kept["completion_ids"]) for kept in seen] == [1]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"beta": 0.1}, "beta"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
        ({"use_liger_kernel": True}, "use_liger_kernel"),
    ],
)
def test_losses_with_other_terms_are_refused(settings, reason, monkeypatch):
    trainer = dropping()
    # newer TRLs have the option, but no fused loss any more
    monkeypatch.setattr(trainer, "compute_liger_loss", None, raising=False)
    for name, value in settings.items():
        monkeypatch.setattr(trainer.args if name.startswith("use") else trainer, name, value)
    with pytest.raises(ValueError, match=f"this trainer has {reason}"):
        RowDropping(trainer)


def test_unknown_losses_and_images_are_refused(monkeypatch):
    trainer = dropping()
    batch = generation_batch(trainer) | {"pixel_values": torch.zeros(3)}
    with pytest.raises(ValueError, match="images"):
        trainer.compute_loss(trainer.model, batch)
    monkeypatch.setattr(trainer, "loss_type", "new")
    with pytest.raises(ValueError, match="loss_type='new'"):
        RowDropping(trainer)


def test_evaluation_and_who_does_not_ask_keep_all():
    trainer = make_trainer(entropy_control=steered(), max_steps=1)
    assert trainer._dropping is None
    assert not steered().drop_rejected
    assert not get_method("clip_cov").drop_rejected
    trainer = make_trainer(
        "grpo",
        WATCHED["grpo"],
        entropy_control=steered(drop_rejected=True),
        eval_dataset=trainer.train_dataset.select(range(4)),
        per_device_eval_batch_size=16,
    )
    trainer.evaluate()
    assert set(trainer.scored) == {16}
