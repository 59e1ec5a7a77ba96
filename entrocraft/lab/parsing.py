"""Reading of configs from YAML files, flags and plain mappings, through jsonargparse."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser

Config = TypeVar("Config")

_MOST_NODES = 100_000
# what reading settings of a wrong shape raises, in jsonargparse or in a config class
_WRONG_SHAPE = (TypeError, LookupError, AttributeError, RecursionError, OverflowError)


def config_from_arguments(
    config_class: type[Config],
    command: str,
    description: str,
    arguments: list[str],
    first: Sequence[str] = (),
    more: Callable[[], str] | None = None,
) -> Config:
    """Read a config file, if the first argument is none of the flags, and flags, which win.

    The help shows the keys in `first` before the rest, and `more` after it. A wrong flag ends the
    process with the usage.

    Raises:
        ValueError: a file that cannot be read, or settings of a wrong shape.
    """
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    parser = _parser(
        config_class,
        prog=f"entrocraft {command}",
        usage=f"entrocraft {command} [CONFIG.yaml] [--key value ...]",
        description=description,
    )
    for file in _config_files(arguments):
        _check_sections(config_class, read_yaml(file), str(file))
    if first:
        _show_first(parser, first)
    if more and {"-h", "--help"} & set(arguments):
        parser.print_help()
        print(f"\n{more()}")
        raise SystemExit
    return _instantiate(config_class, parser, arguments)


def config_from_mapping(config_class: type[Config], keys: dict[str, Any]) -> Config:
    """Make a config from nested keys; ValueError for an unknown key or a value of a wrong type."""
    parser = _parser(config_class, exit_on_error=False)
    _check_sections(config_class, keys, "the settings")
    return _instantiate(config_class, parser, keys)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of nested keys; an empty one has none.

    Raises:
        ValueError: it is not YAML or has no keys, or aliases that expand to too much.
    """
    try:
        text = file.read_text(encoding="utf-8")
        _expanded(yaml.compose(text, yaml.SafeLoader), {})
        keys = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        problem = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where}: not valid YAML ({problem}); correct or remove the file"
        ) from None
    if not isinstance(keys := keys or {}, dict):
        raise ValueError(f"{file}: expected a mapping such as 'name: my-run'; correct the file")
    return keys


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Number of nodes with every alias written out; recursive ones end in a RecursionError."""
    if id(node) not in known:
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else [pair])]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    if known[id(node)] > _MOST_NODES:
        raise yaml.YAMLError(f"its aliases expand to more than {_MOST_NODES} values")
    return known[id(node)]


def _config_files(arguments: list[str]) -> Iterator[Path]:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name = value if flag == "--config" else flag.removeprefix("--config=")
        if flag.partition("=")[0] == "--config" and Path(name).is_file():
            yield Path(name)


def _check_sections(config_class: Any, keys: Any, where: str, section: str = "") -> None:
    """Refuse a section that is no mapping; jsonargparse would pass it over, or fail in its depth.

    Raises:
        ValueError: names the section, and what it has instead.
    """
    hints = get_type_hints(config_class)
    if not isinstance(keys, dict):
        wanted = f"it has keys: {', '.join(hints)}"
        raise ValueError(f"{where}: {section or 'it'} is {keys!r}"[:200] + f"; {wanted}")
    for key, value in keys.items():
        kinds = [kind for kind in (hints.get(key), *get_args(hints.get(key))) if is_dataclass(kind)]
        if kinds and not (value is None and type(None) in get_args(hints[key])):
            _check_sections(kinds[0], value, where, f"{section}.{key}".lstrip("."))


def flat_keys(keys: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested keys as one level of dotted ones.

    >>> flat_keys({"steps": 3, "control": {"rule": "tilt", "options": {}}})
    {'steps': 3, 'control.rule': 'tilt', 'control.options': {}}
    """
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, dict) and value:
            flat |= flat_keys(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping.

    >>> merge({"steps": 3, "control": {"rule": "tilt"}}, {"control": {"band": 0.1}})
    {'steps': 3, 'control': {'rule': 'tilt', 'band': 0.1}}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both and old is not None else value
    return merged


def _parser(config_class: type, **options: Any) -> ArgumentParser:
    parser = ArgumentParser(**options)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def _show_first(parser: ArgumentParser, keys: Sequence[str]) -> None:
    """Let the help begin with these keys, in this order."""
    groups: Any = parser._action_groups
    actions = {action.dest: (group, action) for group in groups for action in group._group_actions}
    ahead = parser.add_argument_group("what most runs set")
    for key in keys:
        group, action = actions[key]
        group._group_actions.remove(action)
        ahead._group_actions.append(action)
    groups.insert(0, groups.pop(groups.index(ahead)))
    groups[1:] = sorted(groups[1:], key=lambda group: group.title == "options", reverse=True)
    parser._optionals.title = "the rest"


def _instantiate(config_class: type[Config], parser: ArgumentParser, given: Any) -> Config:
    """Make a config of flags or of nested keys."""
    try:
        read = parser.parse_args if isinstance(given, list) else parser.parse_object
        values = vars(parser.instantiate_classes(read(given)))
        values.pop("config", None)
        return config_class(**values)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    except _WRONG_SHAPE as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"the settings have a wrong shape ({problem}); --debug shows where"
        ) from error
