"""verl's adapter, without a cluster, under the contract of adapters."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed")

from omegaconf import OmegaConf

from entrocraft.verl import adapter as verls
from tests.contract import STEP, AdapterContract

CONFIG = OmegaConf.create(
    {
        "algorithm": {"adv_estimator": "grpo", "use_kl_in_reward": False},
        "actor_rollout_ref": {
            "actor": {
                "loss_agg_mode": "token-mean",
                "policy_loss": {},
                "optim": {"betas": [STEP.momentum, 0.999]},
            }
        },
    }
)


PADDING = 2


class Queue:
    """verl's transfer queue, of one batch."""

    def __init__(self, columns):
        self.columns = columns

    def kv_batch_get(self, keys, partition_id, select_fields):
        return {name: self.columns[name] for name in select_fields}

    def kv_batch_put(self, keys, partition_id, fields):
        self.columns |= dict(fields.items())
        return batch_of(keys)


def batch_of(keys):
    class Batch(SimpleNamespace):
        def __len__(self):
            return len(self.keys)

    tags = [{"is_padding": True} if key.startswith("padding") else {} for key in keys]
    return Batch(keys=keys, tags=tags, partition_id="0")


def nested(values, mask):
    rows = [row[: max(int(m.sum()), 1)] for row, m in zip(values, mask, strict=True)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def engine(case, method):
    rewards = case.rewards[:, None] * (torch.arange(case.mask.shape[1]) == 0)
    columns = {
        "advantages": case.advantages[:, None] * torch.ones_like(case.logprobs),
        "response_mask": case.mask.long(),
        "old_log_probs": case.logprobs,
        "entropy": case.entropies,
        "rm_scores": rewards,
    }
    # verl fills a batch up with rows of padding, here copies of the last rollouts
    rows = torch.arange(len(case.mask))
    order = torch.cat([rows, rows[-PADDING:]])
    mask = case.mask[order]
    queue = Queue({name: nested(values[order], mask) for name, values in columns.items()})
    verls.tq.kv_batch_get, verls.tq.kv_batch_put = queue.kv_batch_get, queue.kv_batch_put
    keys = [f"prompt{row // 4}_{row % 4}_0" for row in range(len(case.mask))]
    keys += [f"padding_{row}_0" for row in range(PADDING)]
    trainer = SimpleNamespace(entropy_control=method, config=CONFIG)
    metrics = {}
    made = verls.TrainingBatch(
        trainer, batch_of(keys), metrics, STEP.step, STEP.optimizer_steps, measured=None
    )

    def read():
        written = torch.nested.to_padded_tensor(queue.columns["advantages"], 0)
        assert not written[-PADDING:].any(), "padding is not trained on"
        return written[:-PADDING, 0]

    return made, read, lambda: metrics


@pytest.fixture(autouse=True)
def _queue_put_back(monkeypatch):
    for name in ("kv_batch_get", "kv_batch_put"):
        monkeypatch.setattr(verls.tq, name, getattr(verls.tq, name))


class TestVerl(AdapterContract):
    engine = engine
