"""Entry point of the `entrocraft` command; one module per command, imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "train": "one training run whose entropy follows a schedule, from a YAML file and flags",
    "compare": "several methods and seeds side by side, resumable, one report",
    "dynamics": "what moves the entropy of a model: predictions, the theorem, reach by rule",
    "watch": "a local page that follows runs and steers those that are live",
    "report": "figures and report.html of runs, of any trainer that transformers logs for",
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: entrocraft COMMAND ...\n\n"
        "Policy entropy as a hyperparameter with a schedule, for RL of language models.\n\n"
        f"{lines}\n\n"
        "entrocraft COMMAND --help prints the options of a command."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command, return its exit status; bad input ends with one line on what to change."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from entrocraft import __version__

        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"entrocraft: no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        import_module(f"entrocraft.lab.cli.{name}").run(rest)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"entrocraft {name}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "entrocraft":
            raise
        print(
            f"entrocraft {name} needs the extra [lab] ({error}): pip install 'entrocraft[lab]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt as stop:
        known = str(stop) or "the same command goes on from here"
        print(f"entrocraft {name}: stopped; {known}", file=sys.stderr)
        return 130
    return 0
