"""Entropy on its schedule in stock verl, and without control: two runs on the CPU.

    .venv-verl/bin/python benchmarks/verl_loop.py   # what is missing; stops and goes on

`tables.py` draws docs/img/verl.png from the results.

Needs the environment of `make test-verl`. The demo's warm-started model on the demo's task: 32
prompts x 8 rollouts a step, one update, 80 steps; the schedule falls as steeply as the demo's. Both
runs see the same prompts; verl, Ray, FSDP2 and the agent loop are stock, the rollout server is the
test suite's. Every 20 steps the policy is measured on problems that are never trained on (2,048
samples). Goes on from verl's own checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "verl.json"
STEPS, EVERY, SEED = 80, 20, 0
SCHEDULE = "linear(initial, 0.787*initial, 80)"
RULES = {"tilt": "tilt", "no control": None}


def run(name: str, rule: str | None, directory: Path) -> dict[str, Any]:
    """Train to the end and measure every checkpoint."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from entrocraft.lab.models import WarmStartConfig, warm_start
    from tests.verl import runs as verl_runs

    model = warm_start(WarmStartConfig.for_task("countdown"))
    home = directory / name.replace(" ", "-")
    home.mkdir(parents=True, exist_ok=True)
    part = len(list(home.glob("part-*.jsonl")))
    actor = "actor_rollout_ref.actor"
    verl_runs.run(
        home,
        name=f"part-{part}",
        module="entrocraft.verl",
        model=model,
        steps=STEPS,
        prompts=32,
        generations=8,
        response_length=24,
        problems=3000,
        timeout=6 * 3600,
        overrides={
            "entrocraft.schedule": SCHEDULE,
            "entrocraft.rule": rule,
            "entrocraft.seed": SEED,
            f"{actor}.optim.lr": 3e-4,
            f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
            "trainer.save_freq": EVERY,
        },
    )
    steps: dict[int, dict[str, float]] = {}
    for file in sorted(home.glob("part-*.jsonl"), key=lambda f: int(f.stem[5:])):
        for text in file.read_text().splitlines():
            row = json.loads(text)
            # a part that went on from a checkpoint replaces what came after it
            steps = {step: kept for step, kept in steps.items() if step < row["step"]}
            steps[row["step"]] = row["data"]
    kept = ("entropy/target", "entropy/measured", "entropy/estimate", "entropy/kept_fraction")
    return {
        "steps": [
            {"step": step - 1, "reward": _round(data["critic/score/mean"])}
            | {key: _round(data[key]) for key in kept}
            for step, data in sorted(steps.items())
        ],
        "probe": [_probe(model, 0)]
        + [
            _probe(home / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface", step)
            for step in range(EVERY, STEPS + 1, EVERY)
        ],
    }


def _probe(model: Path, step: int) -> dict[str, float]:
    """Entropy on problems that are never trained on."""
    from entrocraft.lab.evaluation import evaluate
    from entrocraft.lab.models import load_model
    from entrocraft.lab.tasks import get_task
    from entrocraft.lab.tasks.store import stored_problems

    policy, tokenizer = load_model(str(model))
    task = get_task("countdown")
    seen = evaluate(
        policy,
        tokenizer,
        task,
        stored_problems(task, "probe", 2048),
        seed=7_001,
        max_new_tokens=24,
        temperature=1.0,
        chat=False,
        batch_size=1024,
    )
    return {
        "step": step,
        "entropy": _round(seen.entropy.value),
        "stderr": _round(seen.entropy.stderr),
    }


def _round(value: float) -> float:
    return round(float(value), 5)


def main() -> None:
    """Run what is missing."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, rule in RULES.items():
        if name in results["runs"]:
            continue
        result = run(name, rule, Path("runs/verl").resolve())
        results["command"] = "python benchmarks/verl_loop.py"
        results["settings"] = {"schedule": SCHEDULE, "steps": STEPS, "seed": SEED}
        results["versions"] = {n: version(n) for n in ("verl", "torch", "ray", "entrocraft")}
        results["runs"][name] = result
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(partial, RESULTS)


if __name__ == "__main__":
    main()
