"""Problems from a data set, on the hub or in a local file, and a reward by name."""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from entrocraft.lab.tasks.base import Problem, Split, Task, extract_answer
from entrocraft.lab.tasks.rewards import BUILT_IN, RewardFunction, as_rewards, get_reward
from entrocraft.lab.waiting import progress_bar

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_BOXED = "\\boxed"
_COLUMN = re.compile(r"\{(\w+)\}")
_OWN_ARGUMENTS = ("prompts", "completions", "question", "answer")


@dataclass
class DataTask(Task):
    """Rows of a data set with a question and an answer.

    Rows without a question or an answer and repeated questions are left out. Probe and evaluation
    use the same held-out rows; a question among them is never trained on.

    Attributes:
        data: a file (.parquet, .jsonl, .json, .csv, .tsv), a directory that save_to_disk wrote, or
            a name on the hub.
        subset: configuration of a data set on the hub.
        split: split to train on, slices such as train[:5000] included.
        eval_data: held-out data, as `data`; null takes `data` itself if eval_split is given.
        eval_split: split to measure on; null takes train of a file and test of anything else.
        holdout: share of the rows to measure on where there is no held-out data.
        question: column of the question, text or a list of one user message, after a system message
            if need be.
        answer: column of the answer; null if there is none, for a reward that needs none.
        answer_after: the answer is what follows the last of these, e.g. "####"; with \\boxed what
            is in its braces.
        template: what the model reads, e.g. "{question} Choose from: {choices}"; names in braces
            are columns, a list becomes lines A. to J. null adds how to answer to the question.
        system: system message of a chat; before the question for other models.
        reward: math, exact, choice, package.module:function or file.py:function, which is called as
            TRL calls its reward functions.
    """

    name: ClassVar[str] = "hf"
    lasting: ClassVar[bool] = False

    data: str = ""
    subset: str | None = None
    split: str = "train"
    eval_data: str | None = None
    eval_split: str | None = None
    holdout: float = 0.1
    question: str = "question"
    answer: str | None = "answer"
    answer_after: str = ""
    template: str | None = None
    system: str = ""
    reward: str = "math"

    def __post_init__(self) -> None:
        if not self.data:
            name = "the task 'hf' needs data: a file, a saved data set or a name on the hub"
            raise ValueError(f"{name}, e.g. --task.options.data problems.jsonl")
        if not 0 < self.holdout < 1:
            raise ValueError(f"task.options.holdout is {self.holdout}; use a share between 0 and 1")
        if self.answer is None and self.reward in BUILT_IN:
            remedy = "name the column of the answer, or use a reward function of your own"
            raise ValueError(f"the reward {self.reward!r} compares with an answer; {remedy}")
        self._reward: RewardFunction = get_reward(self.reward)

    @functools.cached_property
    def splits(self) -> dict[str, list[Problem]]:
        """Problems to train on and held out, each question once.

        Raises:
            ValueError: data or columns that are not there, or no row to train or to measure on.
        """
        source, split = self._held_out
        rows, counts = self._read(self.data, self.split)
        if source is None:
            held = {key: row for key, row in rows.items() if _share(key) < self.holdout}
            leaked = 0
        else:
            held, _ = self._read(source, split)
            leaked = len(rows.keys() & held.keys())
        train = [row for key, row in rows.items() if key not in held]
        self.counts = counts | {"also held out": leaked, "train": len(train), "held out": len(held)}
        for name, found in (("train on", train), ("measure on", held)):
            if not found:
                raise ValueError(f"{self.data} has no row to {name} ({self.describe()})")
        return {"train": train, "held out": list(held.values())}

    def describe(self) -> str:
        """What was found in the data, once `splits` was asked for."""
        return ", ".join(f"{name} {count:,}" for name, count in self.counts.items() if count)

    def candidates(self, split: Split, seed: int) -> Iterator[tuple[Problem | None, int]]:
        """Problems of the split in random order."""
        found = list(self.splits["train" if split == "train" else "held out"])
        random.Random(f"{split}:{seed}").shuffle(found)
        yield from ((problem, 1) for problem in found)

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the task {self.name!r} has no worked answers; give a model of your own")

    def score(self, problem: Problem, answer: str) -> float:
        """Reward of an answer."""
        return self.verify(problem, answer)

    def verify(self, problem: Problem, completion: str) -> float:
        """Reward of a completion; where the function has no say 0."""
        return self.rewards([problem], [completion])[0] or 0.0

    def rewards(
        self, problems: Sequence[Problem], completions: Sequence[Any], **more: Any
    ) -> list[float | None]:
        """Reward each completion by the reward function.

        Raises:
            ValueError: the function gave what are no rewards.
        """
        rows = [problem.metadata["row"] for problem in problems]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        arguments = {
            "prompts": [problem.prompt for problem in problems],
            **more,
            **columns,
            "question": [problem.question for problem in problems],
            "answer": [problem.answer for problem in problems],
            "completions": list(completions),
        }
        return as_rewards(self._reward(**arguments), len(problems), self.reward)

    @property
    def _held_out(self) -> tuple[str | None, str]:
        if self.eval_data is None and self.eval_split is None:
            return None, ""
        source = self.eval_data or self.data
        usual = "train" if Path(source).suffix in _READERS else "test"
        return source, self.eval_split or usual

    def _read(self, source: str, split: str) -> tuple[dict[str, Problem], dict[str, int]]:
        """Problems of a source by their keys, and what was left out."""
        dataset = _load(source, self.subset, split)
        wanted = {"question": self.question, **({"answer": self.answer} if self.answer else {})}
        if self.template:
            named = _COLUMN.findall(self.template)
            wanted |= {name: name for name in named if name not in _OWN_ARGUMENTS}
        for option, column in wanted.items():
            if column not in dataset.column_names:
                remedy = f"name one with --task.options.{option}"
                if option not in ("question", "answer"):
                    remedy = "task.options.template names it"
                columns = ", ".join(dataset.column_names)
                raise ValueError(f"{source} has no column {column!r}; it has {columns}: {remedy}")
        found: dict[str, Problem] = {}
        counts = {"rows": len(dataset), "without question or answer": 0, "repeated": 0}
        for row in progress_bar(dataset, f"reading {source}", len(dataset)):
            problem = self._problem(row)
            if problem is None:
                counts["without question or answer"] += 1
            elif problem.key in found:
                counts["repeated"] += 1
            else:
                found[problem.key] = problem
        return found, counts

    def _problem(self, row: dict[str, Any]) -> Problem | None:
        system, question = _asked(row[self.question])
        answer = "" if self.answer is None else self._true_answer(row[self.answer])
        if not question or (self.answer is not None and not answer):
            return None
        text = self._filled(row, question)
        system = self.system or system
        same = hashlib.sha256(" ".join(f"{system} {text}".split()).casefold().encode())
        return Problem(
            key=same.hexdigest()[:24],
            prompt=(f"{system}\n\n" if system else "") + text + ("" if self.template else "\n"),
            question=text.strip(),
            answer=answer,
            metadata={"row": row},
            system=system,
        )

    def _filled(self, row: dict[str, Any], question: str) -> str:
        if self.template is None:
            told = BUILT_IN[self.reward][1] if self.reward in BUILT_IN else ""
            return f"{question}\n\n{told}" if told else question

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return question if name == "question" else _text(row[name]) if name in row else match[0]

        return _COLUMN.sub(value, self.template)

    def _true_answer(self, value: Any) -> str:
        if self.reward == "choice" and isinstance(value, int) and 0 <= value < 10:
            return "ABCDEFGHIJ"[value]
        text = _text(value)
        if self.answer_after == _BOXED:
            return extract_answer(text) if _BOXED in text else ""
        if self.answer_after:
            return (
                text.rpartition(self.answer_after)[2].strip() if self.answer_after in text else ""
            )
        return text


# ready-made options; the columns are those of the data sets on the hub
PRESETS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "data": "openai/gsm8k",
        "subset": "main",
        "eval_split": "test",
        "answer_after": "####",
    },
    "math500": {
        "data": "HuggingFaceH4/MATH-500",
        "split": "test",
        "question": "problem",
        "holdout": 0.2,
    },
    "numinamath": {
        "data": "AI-MO/NuminaMath-CoT",
        "question": "problem",
        "answer": "solution",
        "answer_after": _BOXED,
        "eval_split": "test",
    },
    "aime": {
        "data": "HuggingFaceH4/aime_2024",
        "question": "problem",
        "holdout": 0.5,
    },
}
"""Name of a task -> options of `DataTask`."""


def _load(source: str, subset: str | None, split: str) -> Any:
    import datasets

    path = Path(source).expanduser()
    try:
        if path.is_dir() and any((path / f"{n}.json").exists() for n in ("state", "dataset_dict")):
            return _split_of_saved(datasets.load_from_disk(str(path)), source, split)
        if path.is_file():
            if path.suffix not in _READERS:
                raise ValueError(f"{source} is none of {', '.join(_READERS)}")
            more = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
            reader = _READERS[path.suffix]
            return datasets.load_dataset(reader, data_files=str(path), split=split, **more)
        local = source.startswith((".", "/", "~")) and not path.is_dir()
        if local or path.suffix in _READERS:
            raise ValueError(f"there is no file {path.absolute()}")
        return datasets.load_dataset(source, subset, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        problem = f"data {source!r} cannot be read ({' '.join(str(error).split())})"
        remedy = "give a file, a directory or a hub name with --task.options.data"
        raise ValueError(f"{problem}; {remedy}") from error


def _split_of_saved(saved: Any, source: str, split: str) -> Any:
    if not hasattr(saved, "keys"):
        return saved
    if split not in saved:
        raise ValueError(f"it has no split {split!r}; it has {', '.join(saved)}")
    return saved[split]


def _asked(value: Any) -> tuple[str, str]:
    """System message and question of a cell, which is text or a list of messages."""
    if not isinstance(value, list):
        return "", _text(value)
    roles = [message.get("role") if isinstance(message, dict) else None for message in value]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            f"a question has the messages {roles}; one user message can be trained on, after a "
            "system message if need be"
        )
    *before, asked = (_text(message["content"]) for message in value)
    return "".join(before), asked


def _text(value: Any) -> str:
    """A cell as text: whole numbers without a point, a list as lettered lines."""
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return "\n".join(f"{chr(65 + i)}. {_text(item)}" for i, item in enumerate(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _share(key: str) -> float:
    """A number in [0, 1) from a question alone: added rows do not move the others."""
    return int(key[:8], 16) / 16**8
