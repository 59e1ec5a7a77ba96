"""REINFORCE in gymnasium, plain and with entropy on a schedule: 3 seeds, 3 minutes, one core."""

import argparse
import json
import sys
from pathlib import Path

import gymnasium  # pip install gymnasium
import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.progress import track
from torch import nn

from entrocraft import EntropyController, RolloutBatch
from entrocraft.effects import token_statistics

EPISODES, TIME_LIMIT, LEARNING_RATE = 24, 1000, 3e-3  # long enough for luck to find the goal
SCHEDULE = "join([cosine(initial, 0.5*initial, 60), cosine(0.5*initial, 0.8*initial, 60)], [60])"
KEYS = ("entropy/measured", "entropy/target", "entropy/kept_fraction")


def play(envs, policy):
    """One episode each: observations (B, T, D), actions and mask (B, T), returns (B,)."""
    observation = np.stack([env.reset()[0] for env in envs])
    running, returns, history = np.ones(len(envs), bool), np.zeros(len(envs)), []
    while running.any():
        seen = torch.tensor(observation, dtype=torch.float32)
        action = policy(seen).detach().softmax(-1).multinomial(1)[:, 0]
        history.append((seen, action, torch.tensor(running)))
        for i, chosen in zip(np.flatnonzero(running), action[running].tolist(), strict=True):
            observation[i], reward, terminated, truncated, _ = envs[i].step(chosen)
            returns[i] += reward
            running[i] = not (terminated or truncated)
    return *(torch.stack(column, 1) for column in zip(*history, strict=True)), torch.tensor(returns)


def train(envs, schedule, rule, seed, steps):
    """Return the metrics in KEYS and the mean return at each step, (len(KEYS) + 1, steps)."""
    torch.manual_seed(seed)
    for i, env in enumerate(envs):
        env.reset(seed=1000 * seed + i)
    inputs, actions = envs[0].observation_space.shape[0], int(envs[0].action_space.n)
    policy = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, actions))
    nn.init.zeros_(policy[-1].weight)  # the same distribution everywhere, nearly uniform
    optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    controller = EntropyController(schedule, rule, effect="logit", seed=seed)
    rows = []
    for step in track(range(steps), f"seed {seed}, {rule or 'plain'}"):
        observation, action, mask, returns = play(envs, policy)
        logits = policy(observation)
        advantages = (returns - returns.mean()) / (returns.std() + 1e-6)
        # an episode is a rollout, an action a token; a rejected rollout gets advantage 0
        batch = RolloutBatch(step, advantages, mask, *token_statistics(logits, action))
        decision = controller.decide(batch)
        logprobs = logits.log_softmax(-1).gather(-1, action[..., None])[..., 0]
        loss = -(decision.advantages.float()[:, None] * logprobs)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append([*(decision.metrics[key] for key in KEYS), returns.mean().item()])
    return np.transpose(rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Acrobot-v1", help="flat observations, discrete actions")
    parser.add_argument("--schedule", default=SCHEDULE, help="target entropy, nats per action")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="gymnasium.png", help="the figure")
    parser.add_argument("--json", default="gymnasium.json", help="the numbers")
    args, results = parser.parse_args(argv), []
    settings = {"episodes": EPISODES, "time_limit": TIME_LIMIT, "learning_rate": LEARNING_RATE}
    envs = [gymnasium.make(args.task, max_episode_steps=TIME_LIMIT) for _ in range(EPISODES)]
    figure, panels = plt.subplots(2, sharex=True, figsize=(8.8, 5.6), layout="constrained")
    for name, rule, color in ("plain", None, "#0072b2"), ("controlled", "tilt", "#009e73"):
        runs = [train(envs, args.schedule, rule, seed, args.steps) for seed in range(args.seeds)]
        for seed, (entropy, target, kept, returns) in enumerate(runs):
            error, last = np.abs(entropy - target)[20:].mean(), returns[-10:].mean()
            print(f"{name}, seed {seed}: {error:.3f} nats off after step 20, return {last:.0f}")
            numbers = {"tracking_error": error, "final_return": last, "kept_fraction": kept.mean()}
            results.append({"method": name, "seed": seed} | numbers)
        for panel, row in zip(panels, (0, -1), strict=True):
            panel.plot(np.transpose(runs)[:, row], color=color, lw=0.8, alpha=0.5)
            panel.plot(np.mean(runs, 0)[row], color=color, lw=2, label=name)
    panels[0].plot(target, "--", color="#1f2328", label="target")
    panels[0].legend(frameon=False, title="thin lines: seeds")
    panels[0].set(title=args.task, ylabel="entropy, nats per action", ylim=(0, None))
    bottom = np.quantile(np.stack(runs)[:, -1], 0.04)  # the first returns are far below the others
    panels[1].set(ylabel="return of an episode", xlabel="optimizer step", ylim=(bottom, None))
    figure.savefig(args.output, dpi=200)
    summary = {"command": " ".join(["python", *sys.argv]), "settings": vars(args) | settings}
    Path(args.json).write_text(json.dumps(summary | {"runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
