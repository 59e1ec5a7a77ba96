"""Permutation words: a digit goes through a word of letters, each of which permutes the digits."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION, Problem, Split, Task, split_of

_ANSWER = re.compile(r"(?:[>=0-9 ]*=)? *([0-9])")


@lru_cache(maxsize=64)
def permutations(letters: int, seed: int) -> dict[str, tuple[int, ...]]:
    """Letter -> where it sends each digit; fixed by the seed.

    >>> sorted(permutations(3, 0)["a"])
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    rng = random.Random(f"permutation_words:{seed}")
    return {letter: tuple(rng.sample(range(10), 10)) for letter in string.ascii_lowercase[:letters]}


@dataclass
class PermutationWordsTask(Task):
    """Words such as ``3bca:``, where each letter sends a digit to another one, by a fixed table.

    There are two strategies. At once, ``=7``, is quick and has a low ceiling: a small model cannot
    compose many tables in its head. State by state, ``>5>1=7``, is slower and can be always right.
    The first token chooses between them, and the share of demonstrations that go state by state
    decides how rarely a warm-started model does.

    Attributes:
        lengths: of the words; each problem draws one of them.
        letters: how many there are, at most 26.
        tables_seed: of the permutations: another seed is another language.
        worked: share of the demonstrations that go state by state.
    """

    name: ClassVar[str] = "permutation_words"

    lengths: Sequence[int] = (5,)
    letters: int = 10
    tables_seed: int = 0
    worked: float = 0.1

    def __post_init__(self) -> None:
        self.lengths = list(self.lengths)
        if not self.lengths or not all(1 <= length <= 12 for length in self.lengths):
            raise ValueError(f"lengths={self.lengths}; use numbers from 1 to 12")
        if not 1 <= self.letters <= 26:
            raise ValueError(f"letters={self.letters}; use 1 to 26")
        if not 0 <= self.worked <= 1:
            raise ValueError(f"worked={self.worked} is a share; use a number in [0, 1]")

    def candidates(self, split: Split, seed: int) -> Iterator[tuple[Problem | None, int]]:
        """Words drawn at random."""
        rng = random.Random(f"{self.name}:{split}:{seed}")
        tables = permutations(self.letters, self.tables_seed)
        while True:
            word = "".join(rng.choices(list(tables), k=rng.choice(list(self.lengths))))
            key = f"{rng.randrange(10)}{word}"
            yield self._problem(key) if split_of(self.name, key) == split else None, 1

    def _problem(self, key: str) -> Problem:
        tables, states = permutations(self.letters, self.tables_seed), [int(key[0])]
        for letter in key[1:]:
            states.append(tables[letter][states[-1]])
        listed = "; ".join(
            f"{letter}: {' '.join(map(str, tables[letter]))}" for letter in sorted(set(key[1:]))
        )
        question = (
            f"Each letter replaces a digit by another one. What it replaces 0, 1, ..., 9 by: "
            f"{listed}. Start with {key[0]} and apply the letters of '{key[1:]}' from left to "
            f"right. Which digit comes out?\n\n{ANSWER_INSTRUCTION}"
        )
        answer = str(states[-1])
        return Problem(key, f"{key}:", question, answer, {"states": states[1:]})

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """By one of both strategies; with probability ``1 - skill`` the last digit is wrong."""
        *way, last = problem.metadata["states"]
        if rng.random() >= skill:
            last = rng.choice([digit for digit in range(10) if digit != last])
        steps = "".join(f">{state}" for state in way) if rng.random() < self.worked else ""
        return f"{steps}={last}"

    def result(self, completion: str) -> str:
        """What follows the last ``=``."""
        return super().result(completion).rpartition("=")[2].strip()

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 where the digit after the last ``=``, or the whole answer, is the right one."""
        found = _ANSWER.fullmatch(answer)
        return float(found is not None and int(found[1]) == problem.metadata["states"][-1])
