"""Chain sum: add and subtract a row of numbers, taking the terms in any order."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION, LibraryTask, Problem, check_range
from entrocraft.lab.tasks.expressions import normalize

# of a wrong running total in demonstrations
_LARGEST_ERROR = 9

_TERM = re.compile(r"([+-])(\d+)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")


@dataclass
class ChainSumTask(LibraryTask):
    """Sums such as ``12+7-5:``; the answer is the last number of the completion.

    A demonstration is a running total over the terms in random order, ``7+12=19-5=14``, so that a
    problem has many right completions. Only the final number is scored.

    Attributes:
        min_terms, max_terms: how many terms.
        min_digits, max_digits: how many digits a term has.
    """

    name: ClassVar[str] = "chain_sum"

    min_terms: int = 3
    max_terms: int = 3
    min_digits: int = 1
    max_digits: int = 1

    def __post_init__(self) -> None:
        check_range(self, "terms", 2, 12)
        check_range(self, "digits", 1, 6)

    def candidate(self, entry: dict[str, Any]) -> Problem | None:
        """Problem of a library entry; the order of its terms is part of its identity."""
        expression = entry["metadata"]["expression"].replace(" ", "")
        terms = [int(sign + digits) for sign, digits in _TERM.findall(f"+{expression}")]
        return Problem(
            key=expression,
            prompt=f"{expression}:",
            question=f"{entry['question'].strip()}\n\n{ANSWER_INSTRUCTION}",
            answer=entry["answer"],
            metadata={"terms": terms, "total": sum(terms)},
        )

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """Running total in random order; with probability ``1 - skill`` some totals are wrong."""
        terms: list[int] = problem.metadata["terms"]
        signs = [sign for sign, _ in _TERM.findall(f"+{problem.key}")]
        order = list(range(len(terms)))
        rng.shuffle(order)
        # A row starts with a number that is added: there always is one, the first term.
        head = next(index for index in order if signs[index] == "+")
        order.remove(head)
        wrong = {rng.randrange(len(order))} if rng.random() >= skill else set()
        if wrong:
            wrong |= {position for position in range(len(order)) if rng.random() < 0.5}
        total = terms[head]
        chain = str(total)
        for position, index in enumerate(order):
            total += terms[index]
            if position in wrong:
                total += rng.choice((-1, 1)) * rng.randint(1, _LARGEST_ERROR)
            chain += f"{signs[index]}{abs(terms[index])}={total}"
        return chain

    def result(self, completion: str) -> str:
        """What follows the last ``=``."""
        return super().result(completion).rpartition("=")[2].strip()

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 where the number after the last ``=``, or the whole answer, is the total."""
        text = normalize(answer).rpartition("=")[2].strip().replace(",", "")
        if not _INTEGER.fullmatch(text):
            return 0.0
        return float(int(text) == problem.metadata["total"])
