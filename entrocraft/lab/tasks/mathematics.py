"""Whether two mathematical answers are equal: math-verify, in processes that may be killed."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import TimeoutError as Expired
from concurrent.futures.process import BrokenProcessPool
from typing import Any

SECONDS = 10.0
_TRIES = 3
_WORKERS = 4
_MEMORY = 4 << 30  # bytes of data that one worker may allocate
_pool: Any = None


def equal(pairs: Sequence[tuple[str, str]], seconds: float = SECONDS) -> list[bool]:
    """Say of each (answer, truth), in LaTeX or plain text, whether they mean the same.

    An answer that takes longer than `seconds` is wrong, with a warning, and its process is
    replaced. Where processes died, what they had is judged anew: the cause may be elsewhere.

    Raises:
        ImportError: math-verify or pebble is missing.
    """
    from pebble import ProcessExpired

    found = [answer.strip() == truth.strip() for answer, truth in pairs]
    left = [index for index, (answer, _) in enumerate(pairs) if answer.strip() and not found[index]]
    late = 0
    for _ in range(_TRIES):
        if not left:
            break
        pool = _running_pool()
        futures = {index: pool.schedule(_same, pairs[index], timeout=seconds) for index in left}
        left = []
        for index, future in futures.items():
            try:
                found[index] = future.result()
            except Expired:
                late += 1
            except (ProcessExpired, BrokenProcessPool):
                left.append(index)
    if late or left:
        warnings.warn(
            f"of {len(pairs)} answers, {late} were not judged within {seconds:g} s and {len(left)} "
            "ended the process that judged them; they count as wrong",
            stacklevel=2,
        )
    return found


def check_installed() -> None:
    """Raise a ValueError that says what to install, where something is missing."""
    try:
        import math_verify  # noqa: F401
        import pebble  # noqa: F401
    except ImportError as error:
        remedy = "pip install math-verify pebble, or use another reward"
        raise ValueError(f"the reward 'math' needs {error.name}: {remedy}") from error


def _running_pool() -> Any:
    """The pool of processes; a new one where it broke, as when idle workers are killed."""
    from pebble import ProcessPool

    global _pool
    if _pool is not None and not _pool.active:
        _stop()
    if _pool is None:
        # not forked: the caller has threads, and math-verify's own time limit needs a main thread
        context = multiprocessing.get_context("spawn")
        workers = min(_WORKERS, os.cpu_count() or 1)
        _pool = ProcessPool(workers, initializer=_prepare, context=context)
    return _pool


@atexit.register
def _stop() -> None:
    global _pool
    if _pool is not None:
        _pool.stop()
        _pool.join()
    _pool = None


def _prepare() -> None:
    """Bound the worker's memory, and load what it needs before its first time limit runs."""
    import math_verify  # noqa: F401

    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.RLIM_INFINITY))
    except (ImportError, ValueError, OSError):  # another system, or a lower limit is set already
        pass


def _same(answer: str, truth: str) -> bool:
    from math_verify import parse, verify

    try:
        # read as LaTeX as a whole, or for the mathematics in a sentence
        boxed, plain = (f"\\boxed{{{answer}}}", answer)
        true = parse(f"\\boxed{{{truth}}}") or parse(truth)
        return bool(true) and any(verify(true, parse(text)) for text in (boxed, plain))
    except Exception:  # whatever a model wrote, it is not the right answer
        return False
