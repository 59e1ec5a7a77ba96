"""Base classes of tasks: problems in disjoint splits, worked completions, and a verifier.

A problem has two forms: a short ``prompt`` for a character-level model and a ``question`` in
natural language for a chat model. A `LibraryTask` has its problems from the `reasoning_gym
<https://github.com/open-thought/reasoning-gym>`_ library.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from entrocraft.lab.waiting import progress_bar

Split = Literal["train", "probe", "eval"]
SPLITS: tuple[str, ...] = get_args(Split)

MAX_COMPLETION_CHARACTERS = 100_000
MAX_ANSWER_CHARACTERS = 256

ANSWER_INSTRUCTION = "Put the final answer, and nothing else, inside <answer> and </answer>."

# Of ten hash buckets the first six are train, the next two probe, the last two eval.
_BUCKETS: tuple[Split, ...] = ("train",) * 6 + ("probe",) * 2 + ("eval",) * 2
# The search ends after this many attempts in a row without a new problem; a candidate that the
# library gives up on counts as _LIBRARY_ATTEMPTS.
_PATIENCE = 5000
_LIBRARY_ATTEMPTS = 100

_ANSWER_TAG = re.compile(r"<answer>([^<]*)</answer>")


@dataclass(frozen=True)
class Problem:
    """One problem in both of its forms.

    ``metadata`` is what the verifier needs, JSON-serializable.
    """

    key: str  # two problems with the same key are the same problem
    prompt: str  # for a character-level model, for example "3 7 8 4=22:"
    question: str  # for a chat model, with how to give the final answer
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    system: str = ""  # message before the question, for a chat model


def split_of(task: str, key: str) -> Split:
    """Split of a problem, a function of the task's name and the problem's key only.

    >>> split_of("countdown", "3,4,7,8=22") == split_of("countdown", "3,4,7,8=22")
    True
    """
    digest = hashlib.sha256(f"{task}:{key}".encode()).digest()
    return _BUCKETS[int.from_bytes(digest[:8], "big") % len(_BUCKETS)]


def extract_answer(completion: str) -> str:
    """Last ``<answer>`` of a completion, else its last ``\\boxed{}``, else its last line.

    Nothing before ``</think>`` counts. The result is stripped and may be empty.

    >>> extract_answer("I try 3+4.\\n<answer> 3*4 </answer>")
    '3*4'
    >>> extract_answer("so \\\\boxed{12}.")
    '12'
    >>> extract_answer("3*4=12")
    '3*4=12'
    """
    text = completion.rpartition("</think>")[2]
    if tags := _ANSWER_TAG.findall(text):
        return str(tags[-1]).strip()
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        return _braced(text, boxed + len("\\boxed{")).strip()
    return text.rstrip().rpartition("\n")[2].strip()


def _braced(text: str, start: int) -> str:
    """Text from ``start`` to the brace that closes it, or the rest where none does."""
    depth = 1
    stop = min(len(text), start + 2 * MAX_ANSWER_CHARACTERS)
    for position in range(start, stop):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return text[start:stop]


def check_range(task: Task, of: str, least: int, most: int | None = None) -> None:
    """Raise a ValueError unless ``least <= min_{of} <= max_{of} <= most``."""
    low, high = getattr(task, f"min_{of}"), getattr(task, f"max_{of}")
    if not least <= low <= high <= (high if most is None else most):
        limits = f"{least} <= min_{of} <= max_{of}" + ("" if most is None else f" <= {most}")
        raise ValueError(f"min_{of}={low}, max_{of}={high}; use {limits}")


@dataclass
class Task(ABC):
    """Base class of tasks. A task is a dataclass whose fields are its options."""

    name: ClassVar[str]
    # whether the same options always mean the same problems, which may then be kept on disk
    lasting: ClassVar[bool] = True

    def problems(
        self, split: Split, size: int, seed: int = 0, fewer: bool = False
    ) -> list[Problem]:
        """Draw distinct problems of one split.

        Lists of the same seed and split are prefixes of one another. Problems of different
        splits are never the same, whatever the seeds and options. With ``fewer`` all that a
        bounded search finds are taken where there are not as many as ``size``.

        Raises:
            ValueError: an unknown split, a size below 1, or too few problems; with ``fewer``, none.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
        if size < 1:
            raise ValueError(f"size={size} problems; ask for at least 1")
        found: dict[str, Problem] = {}
        fruitless = 0
        candidates = itertools.chain(self.candidates(split, seed), [(None, _PATIENCE)])
        with progress_bar(None, f"{self.name}: {split} problems", size) as bar:
            for candidate, attempts in candidates:
                fruitless += attempts
                if candidate is not None and candidate.key not in found:
                    found[candidate.key] = candidate
                    fruitless = 0
                    bar.update()
                    if len(found) == size:
                        break
                if fruitless >= _PATIENCE:
                    if fewer and found:
                        break
                    raise ValueError(
                        f"task {self.name!r} yields only {len(found)} distinct {split} problems "
                        f"of the {size} asked for with {self}; ask for fewer, widen its ranges "
                        "or add data"
                    )
        return list(found.values())

    @abstractmethod
    def candidates(self, split: Split, seed: int) -> Iterator[tuple[Problem | None, int]]:
        """Problems of the split, or None, each with the attempts it took; it need not end."""

    @abstractmethod
    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """One worked completion of ``problem.prompt`` for supervised warm start.

        It is right with probability ``skill``, else a well-formed attempt that is mostly wrong.
        """

    @abstractmethod
    def score(self, problem: Problem, answer: str) -> float:
        """Score in [0, 1] of an extracted answer of bounded length, whatever a model wrote.

        Bound the work by the answer's length and magnitude: there is no time limit.
        """

    def result(self, completion: str) -> str:
        """What completions have in common that say the same; as it stands, their answer."""
        return extract_answer(completion[:MAX_COMPLETION_CHARACTERS])[:MAX_ANSWER_CHARACTERS]

    def verify(self, problem: Problem, completion: str) -> float:
        """Score in [0, 1] of a completion; of one without an answer or too long 0. None raises."""
        if not isinstance(completion, str) or len(completion) > MAX_COMPLETION_CHARACTERS:
            return 0.0
        answer = extract_answer(completion)
        return self.score(problem, answer) if 0 < len(answer) <= MAX_ANSWER_CHARACTERS else 0.0

    def rewards(
        self, problems: Sequence[Problem], completions: Sequence[Any], **more: Any
    ) -> list[float | None]:
        """Reward each completion, text or a list of messages; as it stands, by `verify`.

        `more` is what TRL hands to reward functions besides.
        """
        texts = map(completion_text, completions)
        return [self.verify(*pair) for pair in zip(problems, texts, strict=True)]


def completion_text(completion: Any) -> str:
    """Return the text of a TRL completion, which is text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)


@dataclass
class LibraryTask(Task):
    """A task whose problems are those of the library's dataset of the same name."""

    def candidates(self, split: Split, seed: int) -> Iterator[tuple[Problem | None, int]]:
        """Problems of the library that the task wants."""
        # Importing the library takes seconds, so it waits until problems are wanted.
        # The import draws from the global generator, whose state is put back.
        state = random.getstate()
        from reasoning_gym.factory import create_dataset

        random.setstate(state)
        # The library draws problem i from Random(seed + i): neighboring seeds would give nearly
        # the same list, hence a start far away for every seed.
        digest = hashlib.sha256(f"{self.name}:{split}:{seed}".encode()).digest()
        start = int.from_bytes(digest[:6], "big")
        dataset = create_dataset(self.name, seed=start, size=1, **self.library_options())
        for index in itertools.count():
            try:
                problem = self.candidate(dataset[index])
            except ValueError:  # the library gave up
                yield None, _LIBRARY_ATTEMPTS
                continue
            mine = problem is not None and split_of(self.name, problem.key) == split
            yield problem if mine else None, 1

    def library_options(self) -> dict[str, Any]:
        """Options of the library's dataset of the same name; as it stands, those of the task."""
        return asdict(self)

    @abstractmethod
    def candidate(self, entry: dict[str, Any]) -> Problem | None:
        """Turn a library entry into a problem, or ``None`` where it is not wanted."""
