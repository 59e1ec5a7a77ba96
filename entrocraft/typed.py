"""Typed settings: the values of a dataclass against the types that its fields declare."""

from __future__ import annotations

import functools
import sys
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_type", "check_types", "is_number"]


def check_types(settings: Any, section: str = "") -> None:
    """Check every field of a dataclass by its declared type; `section` goes before its name.

    Raises:
        ValueError: see `check_type`.
    """
    hints = _hints(type(settings))  # type: ignore[arg-type]
    for part in fields(settings):
        check_type(section + part.name, getattr(settings, part.name), hints[part.name])


def check_type(name: str, value: Any, kind: Any) -> None:
    """Check one value; numbers have to be finite, and true and false are no numbers.

    Raises:
        ValueError: another type; the message names the value and the type.
    """
    if not _fits(value, kind):
        raise ValueError(f"{name} is {_shown(value)}; it has to be {_text(kind)}")


def is_number(value: Any, kind: type = float) -> bool:
    """Whether a value is a finite number, or a whole one; true and false are none."""
    number = isinstance(value, Integral if kind is int else Real)
    return number and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    return get_type_hints(of)


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (tuple, list):
        parts = inner if origin is tuple else inner * len(value) if _is_list(value) else ()
        return _is_list(value) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is dict and isinstance(value, dict):
        return all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind is float or kind is int:
        return is_number(value, kind)
    if kind is Path:
        return isinstance(value, (str, Path))
    return kind is Any or isinstance(value, origin or kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, (tuple, list))


_TEXTS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    dict: "a mapping from names",
    NoneType: "null",
    Path: "a path",
}


def _text(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_text, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list):
        count = f"{len(inner)} times " if origin is tuple else ""
        return f"a list of {count}{_text(inner[0])}"
    return _TEXTS.get(origin or kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"a number of {value.bit_length()} bits"
