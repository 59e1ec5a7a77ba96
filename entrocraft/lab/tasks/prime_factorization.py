"""Prime factorization: write a number as a product of primes, in any order."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION, Problem, Task
from entrocraft.lab.tasks.expressions import normalize

_PRODUCT = re.compile(r"[0-9]{1,12}( ?\* ?[0-9]{1,12})*")


def primes_up_to(limit: int) -> list[int]:
    """Primes up to and including ``limit``.

    >>> primes_up_to(13)
    [2, 3, 5, 7, 11, 13]
    """
    return [n for n in range(2, limit + 1) if all(n % d for d in range(2, math.isqrt(n) + 1))]


@dataclass
class PrimeFactorizationTask(Task):
    """Numbers such as ``360:``; the answer is a product of primes such as ``5*2*3*2*3*2``.

    Numbers with a large prime factor are left out: to find those one must divide, which a model
    of a few layers does not learn in minutes.

    Attributes:
        min_value: smallest number.
        max_value: largest number.
        min_factors: fewest prime factors, counted with multiplicity.
        max_factors: most prime factors.
        max_prime: largest prime factor.
    """

    name: ClassVar[str] = "prime_factorization"

    min_value: int = 2
    max_value: int = 9999
    min_factors: int = 3
    max_factors: int = 8
    max_prime: int = 31

    def __post_init__(self) -> None:
        if not 2 <= self.min_value <= self.max_value <= 10**9:
            raise ValueError(
                f"min_value={self.min_value}, max_value={self.max_value}; "
                "use 2 <= min_value <= max_value <= 10**9"
            )
        if not 1 <= self.min_factors <= self.max_factors:
            raise ValueError(
                f"min_factors={self.min_factors}, max_factors={self.max_factors}; "
                "use 1 <= min_factors <= max_factors"
            )
        if self.max_prime < 3:
            raise ValueError(f"max_prime={self.max_prime}; use at least 3")

    def library_options(self) -> dict[str, Any]:
        """Options of the library's prime_factorization dataset."""
        return {"min_value": self.min_value, "max_value": self.max_value}

    def candidate(self, entry: dict[str, Any]) -> Problem | None:
        """Problem of a library entry within the limits on its factors."""
        factors = [int(factor) for factor in entry["metadata"]["factors"]]
        number = int(entry["metadata"]["number"])
        if not self.min_factors <= len(factors) <= self.max_factors:
            return None
        if max(factors) > self.max_prime or math.prod(factors) != number:
            return None
        return Problem(
            key=str(number),
            prompt=f"{number}:",
            question=f"{entry['question'].strip()}\n\n{ANSWER_INSTRUCTION}",
            answer=entry["answer"],
            metadata={"number": number, "factors": factors},
        )

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """The factors in random order; with probability ``1 - skill`` one of them is wrong."""
        factors: list[int] = list(problem.metadata["factors"])
        rng.shuffle(factors)
        if rng.random() >= skill:
            position = rng.randrange(len(factors))
            others = [p for p in primes_up_to(self.max_prime) if p != factors[position]]
            factors[position] = rng.choice(others)
        return "*".join(map(str, factors))

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 where the answer is the multiset of prime factors, in any order, else 0.0.

        An answer of the form ``360 = 2 * 2 * ...`` counts by what follows the last ``=``.
        """
        text = normalize(answer).rpartition("=")[2].strip()
        if not _PRODUCT.fullmatch(text):
            return 0.0
        factors = sorted(int(factor) for factor in text.split("*"))
        return float(factors == sorted(problem.metadata["factors"]))
