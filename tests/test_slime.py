"""slime's advantage hook as a function: decisions of the controller, on one rank and on two."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from entrocraft import EntropyController, slime
from entrocraft.rollouts import RolloutStats, StepInfo
from tests.contract import STEP, AdapterContract

SCHEDULE = "linear(initial, 0.5*initial, 20)"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(slime, "_state", {})
    monkeypatch.setenv("ENTROCRAFT", f"{{schedule: '{SCHEDULE}', seed: 3}}")


def arguments(**changes):
    values = {"advantage_estimator": "grpo", "num_steps_per_rollout": 2, "save": None, "load": None}
    return SimpleNamespace(**(values | changes))


def samples(seed=0, count=24):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    masks = [(torch.rand(n, generator=generator) < 0.8).int() for n in lengths]
    for mask in masks:
        mask[0] = 1
    return {
        "rewards": torch.randn(count, generator=generator).tolist(),
        "log_probs": [-torch.rand(n, generator=generator) for n in lengths],
        "entropy": [torch.rand(n, generator=generator) for n in lengths],
        "loss_masks": masks,
    }


def expected(batches, by_token=False):
    """What the controller decides on the same sums."""
    controller = EntropyController(SCHEDULE, effect="sampled", remeasure=0, seed=3)
    for step, data in enumerate(batches):
        triples = list(zip(data["log_probs"], data["entropy"], data["loss_masks"], strict=True))
        stats = RolloutStats(
            advantages=torch.tensor(data["rewards"], dtype=torch.float64),
            tokens=torch.tensor([float(m.sum()) for _, _, m in triples], dtype=torch.float64),
            logprob=torch.stack([(p.double() * m).sum() for p, _, m in triples]),
            entropy=torch.stack([(h.double() * m).sum() for _, h, m in triples]),
        )
        if not by_token:  # slime's usual loss is a mean over samples
            stats = replace(stats, token_weight=1 / stats.tokens)
        yield controller.decide(stats, StepInfo(2 * step, 2))


@pytest.mark.parametrize("by_token", [False, True])
def test_the_hook_gives_the_controllers_decisions(by_token):
    batches = [samples(seed) for seed in range(6)]
    args = arguments(calculate_per_token_loss=by_token)
    for data, decision in zip(batches, expected(batches, by_token), strict=True):
        slime.control_advantages(args, data)
        for found, value, p in zip(
            data["advantages"], decision.advantages, data["log_probs"], strict=True
        ):
            assert found.shape == p.shape
            assert torch.allclose(found, value.float().expand_as(found))
        assert data["returns"] == data["advantages"]
    assert 0 < int((decision.weights == 0).sum()) < 24


def test_the_schedule_counts_the_optimizer_steps_of_a_global_batch_size(tmp_path):
    sizes = {"rollout_batch_size": 4, "n_samples_per_prompt": 6, "global_batch_size": 8}
    args = arguments(num_steps_per_rollout=None, save=str(tmp_path), **sizes)
    slime.control_advantages(args, samples())
    assert json.loads((tmp_path / "entrocraft.json").read_text())["optimizer_steps"] == 3


def test_the_state_goes_on_where_it_was(tmp_path):
    batches = [samples(seed) for seed in range(4)]
    decisions = list(expected(batches))
    for data in batches[:2]:
        slime.control_advantages(arguments(save=str(tmp_path)), data)
    assert json.loads((tmp_path / "entrocraft.json").read_text())["optimizer_steps"] == 4
    slime._state.clear()
    for data, decision in zip(batches[2:], decisions[2:], strict=True):
        slime.control_advantages(arguments(load=str(tmp_path)), data)
        found = torch.stack([a[0] for a in data["advantages"]]).double()
        assert torch.allclose(found, decision.advantages, atol=1e-6)


def test_a_broken_checkpoint_is_told_each_time(tmp_path):
    (tmp_path / "entrocraft.json").write_text('{"method": {}')
    for _ in range(2):
        with pytest.raises(ValueError, match="is not the state of an entropy method"):
            slime.control_advantages(arguments(load=str(tmp_path)), samples())
    (tmp_path / "entrocraft.json").write_text('{"method": {}, "optimizer_steps": 3}')
    for _ in range(2):
        with pytest.raises(ValueError, match="not a controller state"):
            slime.control_advantages(arguments(load=str(tmp_path)), samples())


def _rank(rank, store, folder):
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    whole = samples()
    # uneven: 15 samples here, 9 there
    part = slice(0, 15) if rank == 0 else slice(15, 24)
    data = {name: values[part] for name, values in whole.items()}
    slime.control_advantages(arguments(), data)
    torch.save([float(a[0]) for a in data["advantages"]], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_take_one_decision(tmp_path):
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    [decision] = expected([samples()])
    found = torch.load(tmp_path / "0.pt") + torch.load(tmp_path / "1.pt")
    assert torch.allclose(torch.tensor(found).double(), decision.advantages, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "no entropy control is configured; set ENTROCRAFT"),
        ("3", {}, "ENTROCRAFT is '3'; it has keys"),
        ("{schedule: '0.4', effect: logit}", {}, "effect is 'logit', which needs logits"),
        ("{rule: tilt}", {}, "a rule needs a schedule"),
        ("{rule: clip_b}", {}, "ENTROCRAFT.rule is 'clip_b', which works inside"),
        ("{schedule: '0.4', remeasure: 0.5}", {}, "slime hands over no model"),
        ("{schedule: '0.4', drop_rejected: true}", {}, "drop_rejected is for TRL"),
        ("{schedule: '0.4'}", {"advantage_estimator": "ppo"}, "knows grpo, gspo, cispo"),
        ("{schedule: '0.4'}", {"context_parallel_size": 2}, "context_parallel_size is 2"),
        ("{schedule: '0.4'}", {"normalize_advantages": True}, "slime whitens what this"),
        ("{schedule: '0.4'}", {"use_opd": True}, "leave --use-opd out"),
        ("{schedule: '0.4'}", {"num_steps_per_rollout": None}, "set --num-steps-per-rollout"),
    ],
)
def test_what_cannot_be_controlled_is_refused(monkeypatch, text, changes, message):
    monkeypatch.setenv("ENTROCRAFT", text)
    with pytest.raises(ValueError, match=message):
        slime.control_advantages(arguments(**changes), samples())


def test_entropies_are_asked_for():
    with pytest.raises(ValueError, match="--use-rollout-entropy"):
        slime.control_advantages(arguments(), samples() | {"entropy": None})


def test_the_papers_rule_keeps_its_own_level(monkeypatch):
    monkeypatch.setenv("ENTROCRAFT", "{schedule: '0.01', rule: sign}")
    data = samples()
    slime.control_advantages(arguments(), data)
    kept = [float(a[0]) for a in data["advantages"]]
    # entropy is far above: only rewarded samples stay
    assert kept == [pytest.approx(max(r, 0.0)) for r in data["rewards"]]


def test_prompts_and_raw_rewards_are_read_where_slime_sends_them():
    """In a group with one reward rounding noise is no advantage."""
    data = samples()
    raw = [1.0] * 6 + [float(i % 2) for i in range(18)]
    noise = [1e-7, -1e-7, 0.0, 1e-7, -1e-7, 0.0]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).tolist()
    data["rewards"] = (noise + [1.0 if r else -1.0 for r in raw[6:]])[:24]
    shuffled = {name: [values[place] for place in order] for name, values in data.items()}
    shuffled |= {"partition": order, "raw_reward": raw}
    args = arguments(n_samples_per_prompt=6)
    slime.control_advantages(args, shuffled)
    kept = {place: float(a[0]) for place, a in zip(order, shuffled["advantages"], strict=True)}
    assert [kept[place] for place in range(6)] == [0.0] * 6
    assert any(kept[place] for place in range(6, 24))


# ---------------------------------------------------------------- the contract of adapters


def engine(case, method):
    slime._state.update(steps=float(STEP.step))
    inside = [row.bool() for row in case.mask]
    data = {
        "rewards": case.advantages.tolist(),
        "raw_reward": case.rewards.tolist(),
        "partition": list(range(len(case.mask))),
        "log_probs": list(case.logprobs.clone()),
        "entropy": list(case.entropies),
        "loss_masks": [mask.int() for mask in inside],
    }
    args = arguments(
        num_steps_per_rollout=STEP.optimizer_steps,
        n_samples_per_prompt=4,
        calculate_per_token_loss=True,
    )
    adapter = slime.RolloutData(args, data, method)
    logged = {}
    adapter.log = logged.update

    def read():
        return torch.stack([tokens[0] for tokens in data["advantages"]])

    return adapter, read, lambda: logged


class TestSlime(AdapterContract):
    engine = engine
    momentum = None  # slime does not tell
