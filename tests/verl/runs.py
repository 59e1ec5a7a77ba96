"""Tiny verl runs on the CPU: model, data, command line, and the metrics of every step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset
from transformers import AutoTokenizer

from entrocraft.lab.models import ReasonerConfig, build_reasoner, build_tokenizer
from entrocraft.lab.tasks import Problem, get_task

SHIMS = ("tests.verl.cpu.platform", "tests.verl.cpu.rollout")
SHAPE = ReasonerConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64)
CONTENT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def verified(data_source: str, solution_str: str, extra_info: dict[str, Any], **_: Any) -> float:
    """Reward by the task's verifier."""
    problem = Problem(**json.loads(extra_info["problem"]))
    return get_task(data_source).verify(problem, solution_str)


def checksum(solution_str: str, **_: Any) -> float:
    """Reward that differs inside nearly every group, whatever the policy."""
    return sum(map(ord, solution_str)) % 5 / 4


def make_model(directory: Path) -> Path:
    if not directory.exists():
        tokenizer = build_tokenizer(SHAPE.max_positions)
        tokenizer.save_pretrained(directory)
        build_reasoner(SHAPE, tokenizer).save_pretrained(directory)
    return directory


def make_data(path: Path, size: int, task: str = "countdown") -> Path:
    if not path.exists():
        rows = [
            {
                "data_source": task,
                "prompt": [{"role": "user", "content": problem.prompt}],
                "reward_model": {"style": "rule", "ground_truth": problem.answer},
                "extra_info": {"index": index, "problem": json.dumps(asdict(problem))},
            }
            for index, problem in enumerate(get_task(task).problems("train", size))
        ]
        Dataset.from_list(rows).to_parquet(path)
    return path


def command(
    directory: Path,
    *,
    steps: int,
    workers: int = 1,
    trainer_mode: str = "sync",
    prompts: int = 8,
    generations: int = 4,
    mini_batch: int | None = None,
    response_length: int = 12,
    reward: str = "verified",
    model: Path | None = None,
    problems: int = 64,
    module: str = "verl.trainer.main_ppo",
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    """Command line of one run.

    Args:
        directory: home of the model and data, made if missing, and of the checkpoints.
        steps: last step; a run in a directory with a checkpoint goes on from it.
        workers: FSDP workers, each with a rollout server.
        trainer_mode: verl's `trainer.v1.trainer_mode`.
        prompts: prompts per step.
        generations: completions per prompt.
        mini_batch: prompts per optimizer step, all by default.
        response_length: longest completion, in tokens.
        reward: name of a reward function of this module.
        model: directory of a model and its tokenizer, instead of an untrained one.
        problems: number of training problems.
        module: what `python -m` runs.
        overrides: more settings of verl, also in place of those made here.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model = make_model(directory / "model") if model is None else model
    data = make_data(directory / "data.parquet", problems)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    settings = {
        "trainer.v1.trainer_mode": trainer_mode,
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": workers,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": steps,
        "trainer.val_before_train": False,
        "trainer.logger": ["console", "file"],
        "trainer.default_local_dir": directory / "checkpoints",
        "data.train_files": data,
        "data.val_files": data,
        "data.train_batch_size": prompts,
        "data.max_prompt_length": 64,
        "data.max_response_length": response_length,
        "data.dataloader_num_workers": 0,
        "data.seed": 0,
        "algorithm.adv_estimator": "grpo",
        "reward.custom_reward_function.path": __file__,
        "reward.custom_reward_function.name": reward,
        "reward.num_workers": 1,
        "actor_rollout_ref.model.path": model,
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{actor}.use_torch_compile": False,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_mini_batch_size": mini_batch or prompts,
        f"{actor}.optim.lr": 1e-3,
        f"{rollout}.name": "hf_cpu",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.n": generations,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.agent.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_gpus": workers,
        "ray_kwargs.ray_init.num_cpus": 4 + 4 * workers,
        "ray_kwargs.ray_init.include_dashboard": False,
        "ray_kwargs.ray_init.object_store_memory": 200_000_000,
    }
    if AutoTokenizer.from_pretrained(model).chat_template is None:
        settings["actor_rollout_ref.model.custom_chat_template"] = CONTENT
    settings |= overrides or {}
    return [sys.executable, "-m", module, *(f"++{key}={_hydra(v)}" for key, v in settings.items())]


def _hydra(value: Any) -> str:
    """Value as Hydra reads it: JSON, but for the quotes around a path."""
    return f"'{value}'" if isinstance(value, (str, Path)) else json.dumps(value)


def run(
    directory: Path,
    *,
    name: str = "run",
    plugins: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    timeout: float = 1800,
    **options: Any,
) -> list[dict[str, float]]:
    """Run a command to its end and return the metrics of its steps.

    Args:
        directory: as in :func:`command`; `name`.log and `name`.jsonl are written there.
        name: name of the run.
        plugins: modules that verl is to import in every process, after the shims.
        environment: more environment variables, also in place of those made here.
        timeout: seconds after which the run is killed.
        options: keywords of :func:`command`.

    Raises:
        RuntimeError: the run failed; the message ends with the end of its output.
        subprocess.TimeoutExpired: the run was killed.
    """
    root = Path(__file__).parents[2]
    directory = Path(directory).resolve()
    metrics, log = directory / f"{name}.jsonl", directory / f"{name}.log"
    # the paths of Ray's sockets, which are in here, must stay short
    scratch = tempfile.mkdtemp(prefix="ray")
    environment = {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_USE_EXTERNAL_MODULES": ",".join([*SHIMS, *plugins]),
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        **(environment or {}),
    }
    line = [*command(directory, **options), f"++ray_kwargs.ray_init._temp_dir='{scratch}'"]
    with open(log, "w") as output:
        process = subprocess.Popen(
            line,
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout)
    finally:
        _end_session(process.pid)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    if code:
        raise RuntimeError(f"exit code {code}: {line}\n{log.read_text()[-4000:]}")
    return [json.loads(text)["data"] for text in metrics.read_text().splitlines()]


def _end_session(leader: int) -> None:
    """Kill what is left of a session: Ray's workers have process groups of their own."""
    for process in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process) == leader:
                os.kill(process, signal.SIGKILL)
