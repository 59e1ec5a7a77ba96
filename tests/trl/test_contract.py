"""TRL's adapter, without a trainer, under the contract of adapters."""

from collections import defaultdict
from types import SimpleNamespace

import torch

from entrocraft.trl.adapter import GenerationBatch, Signals
from tests.contract import STEP, AdapterContract


def engine(case, method):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], betas=(STEP.momentum, 0.9))
    trainer = SimpleNamespace(
        entropy_control=method,
        accelerator=SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu")),
        args=SimpleNamespace(steps_per_generation=2, gradient_accumulation_steps=1),
        num_iterations=1,
        num_generations=4,
        loss_type="dapo",
        optimizer=optimizer,
        state=SimpleNamespace(global_step=STEP.step),
        _metrics={"train": defaultdict(list)},
    )
    signals = Signals(case.logprobs, case.entropies, None)
    output = {"advantages": case.advantages.clone(), "completion_mask": case.mask.long()}
    adapter = GenerationBatch(trainer, output, None, signals, case.rewards)
    metrics = trainer._metrics["train"]
    return adapter, lambda: output["advantages"], lambda: {k: v[-1] for k, v in metrics.items()}


class TestTRL(AdapterContract):
    engine = engine
