"""Sample a policy on problems it is never trained on: pass@k, and its entropy on a fixed probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entrocraft.effects import token_statistics
from entrocraft.rollouts import RolloutSums
from entrocraft.tasks import Problem, Task
from entrocraft.tasks.prompts import text_prompt

__all__ = ["Estimate", "Evaluation", "evaluate", "pass_at_k", "sample"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error over problems."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Evaluation:
    """Behaviour of a policy on a set of problems.

    Attributes:
        entropy: token mean over responses at the sampling temperature, nats per token.
        correct: (problems,) number of right answers among `samples`.
        samples: completions per problem.
        length: mean response length in tokens, end token included.
        finished: share of responses that end by themselves.
    """

    entropy: Estimate
    correct: Tensor
    samples: int
    length: float
    finished: float

    def pass_at(self, k: int) -> Estimate:
        """Probability that at least one of k samples is right; unbiased, see `pass_at_k`."""
        values = torch.tensor([pass_at_k(self.samples, int(c), k) for c in self.correct])
        spread = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return Estimate(float(values.mean()), spread)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem, ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021, eq. 1).

    >>> pass_at_k(samples=4, correct=1, k=1), pass_at_k(samples=4, correct=1, k=4)
    (0.25, 1.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int | None = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Complete prompts; the global random state is left as it was.

    Args:
        prompts: B prompts.
        max_new_tokens: longest completion, end token included.
        temperature: of sampling, without truncation.
        seed: of the sampling; None decodes greedily.

    Returns:
        Token ids (B, P + T), attention mask of the prompts (B, P), and mask of response tokens,
        end token included, (B, T).
    """
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(
        model.device
    )
    options = (
        {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if seed is None
        else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed or 0)
        ids = model.generate(  # type: ignore[operator]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **options,
        )
    ended = ids[:, batch["input_ids"].shape[1] :] == tokenizer.eos_token_id
    # a token belongs to the response unless an end token came before it
    return ids, batch["attention_mask"], ended.cumsum(1) - ended.long() == 0


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int | None = 0,
    chat: bool = False,
) -> Evaluation:
    """Sample each problem `samples` times, verify the answers, measure the entropy.

    The same seed and weights give the same result. Dropout is off, the training mode is put back.
    """
    prompts = [
        text_prompt(problem, tokenizer, chat) for problem in problems for _ in range(samples)
    ]
    training = model.training
    model.eval()
    entropy, tokens, scores, finished = [], [], [], []
    try:
        for start in range(0, len(prompts), _ROWS_AT_ONCE):
            part = prompts[start : start + _ROWS_AT_ONCE]
            part_seed = None if seed is None else seed + start
            ids, attention, mask = sample(
                model, tokenizer, part, max_new_tokens, temperature=temperature, seed=part_seed
            )
            entropy.append((_entropies(model, ids, attention, mask, temperature) * mask).sum(1))
            tokens.append(mask.sum(1))
            answers = ids[:, -mask.shape[1] :]
            finished.append(((answers == tokenizer.eos_token_id) & mask).any(1))
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            scores += [
                task.verify(problems[(start + row) // samples], text)
                for row, text in enumerate(texts)
            ]
    finally:
        model.train(training)
    entropies, lengths = torch.cat(entropy).cpu().double(), torch.cat(tokens).cpu().double()
    correct = (torch.tensor(scores) >= 1.0).view(-1, samples).sum(1)
    per_problem = torch.arange(len(prompts)) // samples
    sums = RolloutSums(
        advantages=torch.zeros_like(lengths),
        tokens=lengths,
        logprob=-entropies,
        entropy=entropies,
        group=per_problem,
    )
    return Evaluation(
        entropy=Estimate(sums.mean_entropy(), sums.entropy_stderr()),
        correct=correct,
        samples=samples,
        length=float(lengths.mean()),
        finished=float(torch.cat(finished).double().mean()),
    )


def _entropies(
    model: PreTrainedModel, ids: Tensor, attention: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Entropy of the distribution that each response token was drawn from: (B, T), nats."""
    width = mask.shape[1]
    full = torch.cat([attention, mask.to(attention.dtype)], dim=1)
    rows = max(1, 2**26 // (ids.shape[1] * model.config.get_text_config().vocab_size))
    parts = []
    with torch.no_grad():
        for start in range(0, len(ids), rows):
            part = ids[start : start + rows]
            logits = model(part, attention_mask=full[start : start + rows]).logits
            tokens = part[:, -width:]
            parts.append(token_statistics(logits[:, -width - 1 : -1], tokens, temperature).entropy)
    return torch.cat(parts)
