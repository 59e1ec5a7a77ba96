"""The adapter protocol: a plain engine of tensors, and the contract that every adapter passes."""

import pytest
import torch

from entrocraft.adapter import Adapter, Processes, ScoredTokens, run_decision, run_remeasure
from entrocraft.rollouts import RolloutStats
from tests.contract import STEP, AdapterContract, Case, make_case


class TensorEngine(Adapter):
    """An engine whose batch is a few tensors: what a further adapter looks like."""

    def __init__(self, case: Case, method, moved: float = 0.1):
        self.case, self.method, self.processes = case, method, Processes()
        self.advantages, self.metrics, self.moved = case.advantages.clone(), {}, moved
        self.scored_rows = []

    def step_info(self):
        return STEP

    def local_stats(self):
        return self.case.batch().stats()

    def complete(self, stats):
        return stats

    def write(self, decision, advantages, stats):
        self.advantages = advantages.float()

    def log(self, metrics):
        self.metrics.update(metrics)

    def score(self, chosen):
        self.scored_rows += chosen.tolist()
        return self.case.logprobs[chosen], self.case.entropies[chosen] + self.moved

    def scored(self, spread=False):
        case = self.case
        return ScoredTokens(case.mask, case.logprobs, case.entropies, case.group, spread)


def engine(case, method):
    adapter = TensorEngine(case, method)
    return adapter, lambda: adapter.advantages, lambda: adapter.metrics


class TestTensorEngine(AdapterContract):
    engine = engine


# ---------------------------------------------------------------- measuring again


def test_a_quarter_of_the_prompts_is_scored_and_reported():
    contract = TestTensorEngine()
    controller = contract.controller(remeasure=0.25)
    adapter = TensorEngine(make_case(), controller)
    run_decision(adapter)
    estimate = controller.state.feedback.entropy
    run_remeasure(adapter, adapter.scored(), adapter.advantages)
    prompts = {row // 4 for row in adapter.scored_rows}
    assert len(adapter.scored_rows) == 8
    assert len(prompts) == 2
    assert abs(adapter.metrics["entropy/post_update_change"] - 0.1) < 1e-6
    # the filter has taken it in
    assert controller.state.feedback.entropy > estimate


def test_prompts_that_are_spread_over_processes_are_all_scored():
    controller = TestTensorEngine().controller(remeasure=0.25)
    adapter = TensorEngine(make_case(), controller)
    run_decision(adapter)
    run_remeasure(adapter, adapter.scored(spread=True), adapter.advantages)
    assert adapter.scored_rows == list(range(32))


# ---------------------------------------------------------------- several processes


class Replayed(Processes):
    """The second of two processes; what the first one would send is known."""

    count, index = 2, 1

    def __init__(self, first):
        self.first, self.calls = list(first), 0

    def gather(self, rows):
        other = self.first[self.calls]
        self.calls += 1
        return torch.cat([other, rows.to(other.dtype)])


def test_each_process_gets_its_own_part_of_one_decision():
    case = make_case()
    whole = TensorEngine(case, TestTensorEngine().controller())
    run_decision(whole)
    stats = case.batch().stats()
    names = ("advantages", "tokens", "logprob", "entropy", "rewards", "group")
    first = torch.stack([getattr(stats, name)[:20].double() for name in names], dim=1)

    class Second(TensorEngine):
        def local_stats(self):
            return RolloutStats(**{name: getattr(stats, name)[20:] for name in names})

    adapter = Second(case, TestTensorEngine().controller())
    adapter.processes = Replayed([torch.zeros(1), torch.tensor([20.0]), first])
    run_decision(adapter)
    assert torch.equal(adapter.advantages, whole.advantages[20:])


def test_an_error_on_one_process_stops_all():
    adapter = TensorEngine(make_case(), TestTensorEngine().controller())
    adapter.processes = Replayed([torch.ones(1)])
    with pytest.raises(ValueError, match="rank 0 are invalid"):
        run_decision(adapter)
