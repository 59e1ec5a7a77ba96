"""Reward of the NuminaMath recipe: is the boxed answer right?"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as Expired
from pathlib import Path
from typing import Any

import math_verify  # noqa: F401  # missing, it shall be missed at once: pip install math-verify

SECONDS = 10.0
LONGEST = 300
_pool: ProcessPoolExecutor | None = None


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **more: Any
) -> float:
    """Return 1.0 if the last boxed answer of a solution is right, 0.0 else.

    math-verify reads the answer as LaTeX, in a process of its own with a time limit; nothing that
    the model wrote is evaluated.
    """
    answer = boxed(solution_str)
    if answer is None or not answer.strip() or len(answer) > LONGEST:
        return 0.0
    if answer.strip() == str(ground_truth).strip():
        return 1.0
    try:
        work = _importable().same
        return float(_workers().submit(work, answer, str(ground_truth)).result(timeout=SECONDS))
    except Expired:
        return 0.0


def boxed(text: str) -> str | None:
    """Content of the last \\boxed{...} with balanced braces; None if there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def same(answer: str, truth: str) -> bool:
    """Whether two pieces of LaTeX mean the same."""
    from math_verify import LatexExtractionConfig, parse, verify

    read = [parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()]) for text in (truth, answer)]
    return bool(all(read) and verify(*read))


def _importable() -> Any:
    """Return this module under a name that other processes can import.

    verl loads the file under a name of its own, which means nothing to them.
    """
    here = Path(__file__).resolve()
    if str(here.parent) not in sys.path:
        sys.path.append(str(here.parent))  # spawned processes get the same path
    return importlib.import_module(here.stem)


def _workers() -> ProcessPoolExecutor:
    global _pool
    if _pool is None:
        # not forked: the caller may have threads, and math-verify's own limits need a main thread
        _pool = ProcessPoolExecutor(4, multiprocessing.get_context("spawn"))
    return _pool
