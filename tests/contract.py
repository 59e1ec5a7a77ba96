"""The contract of adapters: tensors in, advantages out, the same from every engine.

An engine is a function `(Case, Method) -> (Adapter, read)`; `read()` gives the (B,) advantages that
the engine would train on now, `NaN` where a rollout's tokens differ. `engine.logged(adapter)` gives
what was logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from entrocraft import EntropyController, FeedbackSettings, RolloutBatch
from entrocraft.adapter import Adapter, run_decision
from entrocraft.rollouts import StepInfo

SCHEDULE = "linear(initial, 0.5*initial, 20)"
STEP = StepInfo(3, 2, 0.9)


@dataclass(frozen=True)
class Case:
    """One rollout batch of `prompts` groups of 4, as an engine gets it."""

    advantages: Tensor
    rewards: Tensor
    mask: Tensor
    logprobs: Tensor
    entropies: Tensor

    @property
    def group(self) -> Tensor:
        return torch.arange(len(self.advantages)) // 4

    def batch(self) -> RolloutBatch:
        """The same rollouts for a controller that is asked directly."""
        return RolloutBatch(
            step=STEP.step,
            advantages=self.advantages,
            mask=self.mask,
            logprobs=self.logprobs,
            entropies=self.entropies,
            rewards=self.rewards,
            group=self.group,
            optimizer_steps=STEP.optimizer_steps,
            momentum=STEP.momentum,
        )


def make_case(prompts: int = 8, length: int = 6, seed: int = 0) -> Case:
    """Random rollouts; the first group has one reward, and rounding noise for advantages."""
    generator = torch.Generator().manual_seed(seed)
    count = 4 * prompts
    rewards = torch.rand(prompts, 4, generator=generator)
    rewards[0] = 0.1
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    advantages[0] = torch.tensor([7e-5, -7e-5, 7e-5, -7e-5])
    lengths = torch.randint(1, length + 1, (count,), generator=generator)
    return Case(
        advantages=advantages.flatten(),
        rewards=rewards.flatten(),
        mask=torch.arange(length) < lengths[:, None],
        logprobs=-torch.rand(count, length, generator=generator),
        entropies=torch.rand(count, length, generator=generator),
    )


Engine = Callable[[Case, Any], tuple[Adapter, Callable[[], Tensor], Callable[[], dict]]]


class AdapterContract:
    """What every adapter has to do; a subclass names its `engine` and whether it can `score`."""

    engine: Engine
    momentum: float | None = 0.9

    def controller(self, **settings: Any) -> EntropyController:
        return EntropyController(SCHEDULE, **({"remeasure": 0.0, "seed": 5} | settings))

    def expected(self, case: Case, controller: EntropyController) -> Any:
        return controller.decide(replace(case.batch(), momentum=self.momentum))

    @pytest.mark.parametrize("rule", ["tilt", "sign", "switch"])
    def test_the_decision_is_the_controllers(self, rule: str) -> None:
        settings = {"rule": rule, "feedback": FeedbackSettings(band=0.0)}
        mine, theirs = self.controller(**settings), self.controller(**settings)
        rejected = 0
        for seed in range(3):
            case = make_case(seed=seed)
            expected = self.expected(case, mine)
            adapter, read, logged = type(self).engine(case, theirs)
            decision = run_decision(adapter)
            assert decision is not None
            assert torch.equal(decision.weights, expected.weights)
            torch.testing.assert_close(read(), expected.advantages.float())
            for key, value in expected.metrics.items():
                assert logged()[key] == pytest.approx(value, rel=1e-6), key
            rejected += int((expected.weights == 0).sum())
        assert rejected > 0
        assert mine.state_dict() == theirs.state_dict()

    def test_rounding_noise_is_no_advantage(self) -> None:
        case = make_case()
        adapter, read, _ = type(self).engine(case, self.controller())
        run_decision(adapter)
        assert not read()[:4].any()
        assert read()[4:].any()

    def test_a_batch_that_makes_no_sense_changes_nothing(self) -> None:
        controller = self.controller()
        run_decision(type(self).engine(make_case(), controller)[0])
        before = controller.state_dict()
        case = make_case(seed=1)
        case.logprobs[9, 0] = torch.nan
        with pytest.raises(ValueError, match="finite"):
            run_decision(type(self).engine(case, controller)[0])
        assert controller.state_dict() == before

    def test_without_a_response_token_nothing_is_decided(self) -> None:
        controller = self.controller()
        case = make_case()
        adapter, _, _ = type(self).engine(
            replace(case, mask=torch.zeros_like(case.mask)), controller
        )
        assert run_decision(adapter) is None
        assert controller.state_dict() == self.controller().state_dict()
