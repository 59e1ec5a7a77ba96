"""What peers need of TRL's trainers: a loss that fits, several updates, the loss's own mean."""

import warnings

import pytest
import torch
import trl

from entrocraft import EntropyController, EntropyControlWarning
from entrocraft.methods import METHODS, get_method, method_class
from entrocraft.methods.token_weights import PPO_LOSSES, RATIO_LOSSES
from entrocraft.trl import EntropyControlMixin
from tests.trl.runs import PLAIN, REUSED, generation_batch, make_trainer, tiny_model
from tests.trl.test_rejection_gradients import dropped, gradient

LOSSES = (*RATIO_LOSSES, "sapo", "vespo")
OLD = trl.__version__.startswith("1.5.")
HAS_BONUS = hasattr(trl.GRPOConfig(use_cpu=True, bf16=False), "entropy_coef")
BONUS = {"entropy_bonus", "adaptive_bonus", "aent"}
AVAILABLE = [name for name in METHODS if HAS_BONUS or name not in BONUS]
CLIPPED = ("clip_higher", "clip_low", "clip_cov", "steer", "erc")
WEIGHED = ("kl_cov", "ce_gppo", "entropic", "clip_b", "clip_v")


def quiet(*arguments, **settings):
    """A trainer without the warnings that TRL has for some losses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_trainer(*arguments, **settings)


# ---------------------------------------------------------------- a loss that fits


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *((name, PPO_LOSSES) for name in CLIPPED),
        *((name, RATIO_LOSSES) for name in WEIGHED),
        *((name, LOSSES) for name in ("nsr", "aepo")),
    ],
)
def test_a_loss_that_makes_the_method_something_else_is_refused(name, fits):
    for loss in LOSSES:
        if loss in fits:
            assert quiet(entropy_control=name, loss_type=loss, **REUSED).loss_type == loss
            continue
        message = f"'{name}' does not fit loss_type='{loss}'.*fits 'grpo', 'bnpo', .*'luspo'"
        with pytest.raises(ValueError, match=message):
            quiet(entropy_control=name, loss_type=loss, **REUSED)


@pytest.mark.parametrize("name", ["cispo", "sapo", "dr_grpo", "gspo"])
def test_methods_that_set_the_loss_fit_it(name):
    assert method_class(name).losses == (make_trainer(entropy_control=name, **REUSED).loss_type,)


def test_what_token_weights_become_under_a_sequences_ratio_is_refused():
    with pytest.raises(ValueError, match=r"_level='sequence' spreads .* use 'token'"):
        quiet(entropy_control="erc", importance_sampling_level="sequence", **REUSED)


class Leaf(trl.GRPOTrainer):
    """Takes `leaf` for the log-probabilities of the model, where there is one."""

    leaf = None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return out if self.leaf is None else (self.leaf, *out[1:])


class Hosted(EntropyControlMixin, Leaf):
    pass


def off_policy(method, loss):
    """Gradient of TRL's loss in the log-probabilities (B, T) of a policy that has moved.

    Also what the loss weighs each token by, the batch, and those log-probabilities.
    """
    trainer = quiet(
        cls=Hosted,
        model=tiny_model(ends=True),
        entropy_control=method,
        loss_type=loss,
        num_iterations=2,
    )
    batch = generation_batch(trainer)
    old, mask = batch["old_per_token_logps"], batch["completion_mask"].bool()
    generator = torch.Generator().manual_seed(1)
    moved = (old + 0.5 * torch.randn(old.shape, generator=generator)).clamp(max=-1e-3)
    trainer.leaf = moved.clone().requires_grad_()
    trainer.compute_loss(trainer.model, batch).backward()
    tokens = mask.sum(1, keepdim=True)
    size = len(mask)
    weight = {
        "grpo": 1 / tokens.clamp(min=1) / size,
        "dr_grpo": torch.full_like(tokens, 1 / (size * 8), dtype=torch.float32),
        "luspo": torch.full_like(tokens, 1 / size, dtype=torch.float32),
    }.get(loss, 1 / mask.sum())
    if loss == "luspo" and OLD:
        pytest.skip("this TRL averages over padding too")
    return trainer.leaf.grad, weight * mask, batch, moved


def published(loss, weight, moved):
    logprobs = moved.clone().requires_grad_()
    (loss(logprobs) * weight).sum().backward()
    return logprobs.grad


@pytest.mark.parametrize("loss", PPO_LOSSES)
def test_clip_higher_is_ppos_clip_in_every_loss_that_it_fits(loss):
    found, weight, batch, moved = off_policy(get_method("clip_higher"), loss)
    advantages = batch["advantages"][:, None]

    def ppo(logprobs):
        ratio = (logprobs - batch["old_per_token_logps"]).exp()
        return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)

    expected = published(ppo, weight, moved)
    assert ((expected == 0) & (weight * advantages != 0)).any(), "some tokens are clipped"
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", RATIO_LOSSES)
def test_kl_cov_has_its_published_gradient_in_every_loss_that_it_fits(loss):
    method = get_method("kl_cov", ratio=0.2, beta=0.7)
    found, weight, batch, moved = off_policy(method, loss)
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"][:, None]
    spread = advantages.expand_as(mask)
    covariance = (spread - spread[mask].mean()) * (moved - moved[mask].mean())
    least = covariance[mask].topk(int(0.2 * int(mask.sum()))).values.min()

    def penalized(logprobs):
        log_ratio = logprobs - batch["old_per_token_logps"]
        return -advantages * log_ratio.exp() + 0.7 * (covariance >= least) * log_ratio.abs()

    torch.testing.assert_close(found, published(penalized, weight, moved))


# ---------------------------------------------------------------- several updates per batch

ACTING = {
    "clip_b": {"mu": 0.5},
    "clip_v": {"mu": 0.5, "max_fraction": 0.1},
    "clip_cov": {"ratio": 0.1, "lower": 0.1},
    "entropic": {"threshold": 0.1},
}
"""Options under which a method acts on batches as small as these."""


@pytest.mark.slow
@pytest.mark.parametrize("name", AVAILABLE)
def test_methods_that_one_update_leaves_plain_grpo_say_so(name):
    def weights(**settings):
        trainer = make_trainer(model=tiny_model(ends=True), max_steps=3, **settings)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    # far from every constant target, so that those who follow one act
    method = get_method(
        name, *([4.5] if method_class(name).follows else []), **ACTING.get(name, {})
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = weights(entropy_control=method)
    told = [str(w.message) for w in caught if issubclass(w.category, EntropyControlWarning)]
    # gspo and sapo take the mean over rollouts as well
    loss = "grpo" if name in ("gspo", "sapo") else "dapo"
    plain = weights(cls=PLAIN["grpo"], loss_type=loss)
    # gspo averages log-ratios first, in another order of rounding
    same = torch.allclose(found, plain, atol=1e-5) if name == "gspo" else torch.equal(found, plain)
    assert same == method_class(name).needs_updates
    assert len(told) == same
    if same:
        assert f"the method {name!r} is plain RL; use num_iterations=2, or a steps_" in told[0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("settings", "one"),
    [
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2}, True),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4}, True),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, False),
        ({"num_iterations": 2}, False),
    ],
)
def test_one_update_is_told_once_at_construction(kind, settings, one):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(kind, entropy_control="clip_higher", **settings)
    told = [w for w in caught if issubclass(w.category, EntropyControlWarning)]
    assert len(told) == one
    assert trainer.epsilon_high == 0.28


# ---------------------------------------------------------------- rows that are dropped


@pytest.mark.parametrize("name", ["psr", "nsr"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("grpo", {"loss_type": loss}) for loss in LOSSES),
        ("rloo", {}),
        # rollouts without tokens
        ("grpo", {"loss_type": "grpo", "mask_truncated_completions": True}),
        ("grpo", {"loss_type": "dapo", "mask_truncated_completions": True}),
        ("rloo", {"mask_truncated_completions": True}),
    ],
)
def test_psr_and_nsr_equal_a_batch_without_the_other_rows(name, kind, settings):
    if OLD and settings == {"loss_type": "dapo", "mask_truncated_completions": True}:
        pytest.skip("this TRL divides by the tokens of truncated completions too")
    trainer = quiet(kind, model=tiny_model(ends=True), entropy_control=name, **settings)
    batch = generation_batch(trainer)
    kept = batch["advantages"] != 0
    assert 0 < int(kept.sum()) < len(kept)
    one = torch.full_like(batch["advantages"], 1.0 if name == "psr" else -1.0)
    expected = gradient(trainer, dropped(batch | {"advantages": one}, kept))
    assert expected.norm() > 0
    torch.testing.assert_close(gradient(trainer, batch), expected, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- rollouts from vLLM


@pytest.mark.parametrize("columns", [1, 8])
@pytest.mark.parametrize("scored", [True, False])
def test_the_loss_does_not_undo_the_temperature_of_aepos_rollouts(columns, scored):
    class FromVllm(trl.GRPOTrainer):
        """Stands for vLLM, whose log-probabilities are at the temperature that it samples at."""

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            hot = self.generation_config.temperature != 1
            shape = output["completion_ids"].shape
            output["importance_sampling_ratio"] = torch.full(
                (shape[0], min(columns, shape[1])), 1e-4 if hot else 0.9
            )
            output["sampling_per_token_logps"] = torch.full(shape, -9.0 if hot else -1.0)
            return output

    class Mine(EntropyControlMixin, FromVllm):
        pass

    control = get_method("aepo", 4.5, hot=3.0, share=0.5, rows=5, least_advantage=0.0)
    trainer = make_trainer(cls=Mine, entropy_control=control, num_iterations=1 + scored)
    output = generation_batch(trainer)
    count = int(trainer._metrics["train"]["entropy/extra_rollouts"][0])
    assert count > 0
    ratio, sampling = output["importance_sampling_ratio"], output["sampling_per_token_logps"]
    assert (ratio[:count] == 1).all()
    assert (ratio[count:] == 0.9).all()
    old = output["old_per_token_logps"][:count] if scored else torch.full((count, 8), -9.0)
    assert torch.equal(sampling[:count], old)
    assert (sampling[count:] == -1).all()
    # with the correction on, the loss multiplies by this column
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    rows = torch.arange(len(ratio)) < count
    joined = output | {"advantages": torch.where(rows, output["advantages"], 0.0)}
    found = gradient(trainer, joined)
    trainer.use_vllm = False
    torch.testing.assert_close(found, gradient(trainer, joined))
    assert found.norm() > 0


# ---------------------------------------------------------------- options that are refused


@pytest.mark.skipif(not HAS_BONUS, reason="this TRL has no entropy bonus")
def test_a_constant_bonus_is_not_made_adaptive():
    with pytest.raises(ValueError, match="sets use_adaptive_entropy=False, and your config"):
        make_trainer(entropy_control="entropy_bonus", use_adaptive_entropy=True)


@pytest.mark.parametrize("name", ["clip_higher", "clip_low", "aepo"])
def test_rloo_takes_what_it_can_do(name):
    trainer = make_trainer("rloo", entropy_control=name, num_iterations=2, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_controller_fits_every_loss():
    for loss in LOSSES:
        assert quiet(entropy_control=EntropyController(2.5), loss_type=loss).loss_type == loss
