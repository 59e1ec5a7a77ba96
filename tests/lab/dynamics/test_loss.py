"""What TRL's loss puts on a token: coefficients against the gradients of TRL's own loss."""

import json
import warnings

import pytest
import torch
import trl
from transformers import TrainerCallback

from entrocraft.lab.dynamics.bench import Bench
from entrocraft.lab.dynamics.gradient import differentiate
from entrocraft.lab.dynamics.loss import loss_coefficients
from tests.trl.runs import PLAIN, make_trainer, tiny_model

SPLIT = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 4,
}
"""One optimizer step in 4 micro-batches."""

LOSSES = ["grpo", "sapo", "dr_grpo", "luspo", "bnpo", "dapo", "cispo", "vespo"]
PADDING_TRAINED = trl.__version__.startswith("1.5.")  # by luspo; later versions mask it


def on_bench(look, kind="grpo", cls=None, **options):
    """Call `look(bench)` before the first step of a trainer."""

    class Hold(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                look(Bench(trainer, seed=3))

    options = {"max_steps": 1, "model": tiny_model(ends=True).double()} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL advises against some of these losses
        trainer = make_trainer(kind, cls or PLAIN[kind], max_grad_norm=0.0, **options)
    trainer.add_callback(Hold())
    trainer.train()


def assert_gradients_match(bench):
    tokens = bench.mask.sum(1)
    assert int(tokens.min()) < int(tokens.max())  # or normalizers by length would go untested
    with bench.undone():
        theirs, _ = bench.update(bench.advantages)
    _, ours = differentiate(bench.policy, bench.passes)
    size = max(float(g.abs().max()) for g in theirs.values())
    assert size > 0
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient.float(), rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("options", [{}, SPLIT], ids=["one", "split"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_grpo(loss_type, level, options):
    if (loss_type, level) == ("vespo", "sequence"):
        pytest.skip("TRL refuses the pair")
    if (loss_type, level) == ("luspo", "token") and PADDING_TRAINED:
        pytest.skip("TRL trains tokens outside the mask")
    options = options | {"loss_type": loss_type, "importance_sampling_level": level}
    on_bench(assert_gradients_match, **options)


@pytest.mark.parametrize("options", [{}, SPLIT], ids=["one", "split"])
def test_rloo(options):
    on_bench(assert_gradients_match, "rloo", **options)


@pytest.mark.parametrize("options", [{"top_entropy_quantile": 0.3}, {"temperature": 0.7}])
def test_options_that_change_the_loss(options):
    on_bench(assert_gradients_match, **options)


def test_the_kl_term_takes_no_part():
    """Its slope does not depend on the advantages, so that no choice of rollouts changes it."""

    def look(bench):
        known = bench.mask, bench.logprob, torch.ones_like(bench.logprob)
        reference = {"ref_per_token_logps": 0.9 * bench.logprob}
        bench.trainer.beta = 0.3
        found = loss_coefficients(bench.trainer, bench._batch | reference, *known)
        bench.trainer.beta = 0.0
        torch.testing.assert_close(found, bench._coefficients)

    on_bench(look)


def test_clipped_importance_weights_shorten_the_step():
    # CISPO caps the ratio itself: at 0.2 by default, where on-policy ratios are 1
    seen = []
    for cap in (0.2, 5.0):
        on_bench(lambda b: seen.append(b._coefficients), loss_type="cispo", epsilon_high=cap)
    short, long = seen
    torch.testing.assert_close(short, 0.2 * long)


def test_a_loss_of_ones_own_is_weighed_by_itself():
    class Triple(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return 3 * super()._compute_loss(model, inputs)

    seen = []
    for cls in (trl.GRPOTrainer, Triple):
        on_bench(lambda bench: seen.append(bench._coefficients), cls=cls)
    torch.testing.assert_close(seen[1], 3 * seen[0])


def test_the_question_to_the_loss_leaves_no_trace():
    def look(bench):
        trainer = bench.trainer
        before = dict(vars(trainer)), json.dumps(trainer._metrics), torch.get_rng_state()
        known = bench.mask, bench.logprob, torch.ones_like(bench.logprob)
        loss_coefficients(trainer, bench._batch, *known)
        after = dict(vars(trainer)), json.dumps(trainer._metrics), torch.get_rng_state()
        assert list(before[0]) == list(after[0])
        assert all(after[0][name] is value for name, value in before[0].items())
        assert before[1] == after[1]
        assert torch.equal(before[2], after[2])
        assert all(p.grad is None or not p.grad.any() for p in bench.model.parameters())

    on_bench(look)


def test_a_loss_that_cannot_be_asked():
    class Silent(trl.GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return sum(p.sum() for p in model.parameters())

    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        on_bench(lambda bench: None, cls=Silent)
