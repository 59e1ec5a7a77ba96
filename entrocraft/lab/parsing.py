"""Reading of configs from YAML files, flags and plain mappings, through jsonargparse."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

Config = TypeVar("Config")


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
    """
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    parser = _parser(
        config_class,
        prog=f"entrocraft {command}",
        usage=f"entrocraft {command} [CONFIG.yaml] [--key value ...]",
        description=description,
    )
    if first:
        _show_first(parser, first)
    if more and {"-h", "--help"} & set(arguments):
        parser.print_help()
        print(f"\n{more()}")
        raise SystemExit
    return _instantiate(config_class, parser, parser.parse_args(arguments))


def config_from_mapping(config_class: type[Config], keys: dict[str, Any]) -> Config:
    """Make a config from nested keys; ValueError for an unknown key or a value of a wrong type."""
    parser = _parser(config_class, exit_on_error=False)
    try:
        return _instantiate(config_class, parser, parser.parse_object(keys))
    except ArgumentError as error:
        raise ValueError(str(error)) from error


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


def _instantiate(config_class: type[Config], parser: ArgumentParser, namespace: Any) -> Config:
    values = vars(parser.instantiate_classes(namespace))
    values.pop("config", None)
    return config_class(**values)
