"""A TRL script: the trainer's import and `entropy_control=` are all that differs from plain TRL."""

from datasets import Dataset
from trl import GRPOConfig

from entrocraft.lab.models import WarmStartConfig, warm_start
from entrocraft.lab.tasks import get_task
from entrocraft.trl import GRPOTrainer

task = get_task("countdown")
problems = {problem.key: problem for problem in task.problems("train", 1000)}


def solved(completions, key, **columns):
    return [task.verify(problems[k], text) for k, text in zip(key, completions, strict=True)]


trainer = GRPOTrainer(
    model=str(warm_start(WarmStartConfig.for_task("countdown"))),
    reward_funcs=solved,
    args=GRPOConfig("runs/example", use_cpu=True, bf16=False, max_steps=300, learning_rate=3e-4,
                    per_device_train_batch_size=256, max_completion_length=16),
    train_dataset=Dataset.from_list([{"prompt": p.prompt, "key": k} for k, p in problems.items()]),
    entropy_control="linear(initial, 0.3, 300)",
)  # fmt: skip
trainer.train()
