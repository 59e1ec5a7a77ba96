"""The learning rate of TRL's updates, lowered while rejection cannot reach the target."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from entrocraft import Decision, EntropyController, FeedbackSettings
from entrocraft.trl.options import DecisionCallback
from tests.trl.runs import PLAIN, REUSED, Recording, make_trainer, rows
from tests.trl.test_in_loss import SEVERAL

pytestmark = pytest.mark.filterwarnings("ignore::entrocraft.EntropyControlWarning")

RATE, FACTOR = 1e-3, "entropy/learning_rate_factor"


def adaptive(target, **settings):
    return Recording(target, feedback=FeedbackSettings(learning_rate=True, **settings))


class Steps(TrainerCallback):
    """What each optimizer step does to the parameters, and the rates before and after it."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def flat(self, gradients=False):
        parts = [p.grad if gradients else p.data for p in self.model.parameters()]
        return torch.cat([part.flatten().double() for part in parts])

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.before = self.flat(), self.flat(gradients=True)

    def on_step_end(self, args, state, control, optimizer, lr_scheduler, **kwargs):
        parameters, gradients = self.before
        size = float((self.flat() - parameters).norm() / gradients.norm())
        rates = [group["lr"] for group in optimizer.param_groups]
        self.seen.append((size, rates, lr_scheduler.get_last_lr()))


def trained(control, cls=None, **settings):
    own = {} if cls else {"entropy_control": control}
    config = {
        "optim": "sgd",
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.0,
        "max_steps": 6,
        "learning_rate": RATE,
    }
    trainer = make_trainer("grpo", cls, **own, **(config | settings))
    steps = Steps(trainer.model)
    trainer.add_callback(steps)
    trainer.train()
    return trainer, steps.seen


@pytest.mark.parametrize("settings", [{}, REUSED, SEVERAL], ids=["in loss", "reused", "several"])
def test_the_step_is_smaller_and_the_scheduler_sees_none_of_it(settings):
    # at this rate the entropy hardly moves: the target stays out of reach
    control = adaptive(4.5)
    trainer, seen = trained(control, **(settings | {"max_steps": 6}))
    plain, reference = trained(None, PLAIN["grpo"], **(settings | {"max_steps": 6}))
    scheduled = [row["learning_rate"] for row in rows(plain)]
    assert [row["learning_rate"] for row in rows(trainer)] == scheduled
    assert [rates for _, *rates in seen] == [rates for _, *rates in reference]
    factors = [answer.learning_rate_factor for answer in control.answered]
    accumulated, used = trainer.args.gradient_accumulation_steps, trainer.num_iterations
    micro_batches = trainer.args.steps_per_generation * used
    in_use = [factors[math.ceil((step + 1) * accumulated / micro_batches) - 1] for step in range(6)]
    rates = [RATE * (1 - step / 6) for step in range(6)]
    for (size, _, _), rate, factor in zip(seen, rates, in_use, strict=True):
        assert size == pytest.approx(rate * factor, rel=1e-3)
    for (size, _, _), rate in zip(reference, rates, strict=True):
        assert size == pytest.approx(rate, rel=1e-3)
    assert in_use[-1] < 0.85


def test_it_goes_down_only_below_an_unreachable_target_and_recovers():
    control = adaptive(lambda step: 4.5 if step < 4 else 0.5, horizon=1)
    trainer, _ = trained(control, max_steps=10)
    factors = [row[FACTOR] for row in rows(trainer)]
    low = [row["entropy/saturated"] == 1 and row["entropy/shortfall"] > 0 for row in rows(trainer)]
    assert any(low)
    assert not all(low)
    before = 1.0
    for factor, saturated in zip(factors, low, strict=True):
        assert factor == pytest.approx(before * 0.8 if saturated else min(before * 1.05, 1.0))
        before = factor
    assert min(factors) < factors[-1]


def test_who_does_not_ask_for_it_has_plain_steps():
    trainer, seen = trained(EntropyController(4.5))
    assert [size for size, _, _ in seen] == pytest.approx(
        [RATE * (1 - step / 6) for step in range(6)], rel=1e-3
    )
    assert not any(FACTOR in row for row in rows(trainer))


def test_the_factor_is_in_the_checkpoint_and_a_resumed_run_goes_on(tmp_path):
    def start(resume=None):
        control = adaptive(4.5)
        trainer = make_trainer(
            entropy_control=control,
            output_dir=str(tmp_path),
            save_strategy="steps",
            save_steps=3,
            max_steps=6,
            lr_scheduler_type="cosine",
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return trainer, control

    whole, control = start()
    text = (tmp_path / "checkpoint-3" / "trainer_state.json").read_text()
    saved = json.loads(text)["stateful_callbacks"]["EntropyControlState"]["attributes"]
    factor = saved["method_state"]["learning_rate_factor"]
    assert factor == control.answered[2].learning_rate_factor < 1
    rates = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt")["param_groups"]
    scheduled = torch.load(tmp_path / "checkpoint-3" / "scheduler.pt")["_last_lr"]
    assert [group["lr"] for group in rates] == scheduled
    resumed, _ = start("checkpoint-3")
    assert rows(resumed) == rows(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("tensor", [False, True])
def test_the_rate_comes_back_as_it_was(tensor):
    rate = torch.tensor(0.1) if tensor else 0.1
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=rate)
    ones = torch.ones(1).double()

    class Trainer:
        last_decision = None

    trainer = Trainer()
    trainer.optimizer = optimizer
    callback, [group] = DecisionCallback(trainer), optimizer.param_groups
    for factor in (None, 0.5, 0.02):
        if factor is not None:
            trainer.last_decision = Decision(ones, ones, ones, learning_rate_factor=factor)
        callback.on_pre_optimizer_step(None, None, None)
        assert float(group["lr"]) == pytest.approx(0.1 * (factor or 1.0))
        callback.on_optimizer_step(None, None, None)
        assert group["lr"] is rate
        assert float(rate) == pytest.approx(0.1)
