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
        "entrocraft COMMAND --help prints the options of a command, --debug the traceback of an "
        "error."
    )


def _in_one_line(error: Exception) -> str:
    """What went wrong; of what is no bad input, also how to see where."""
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported here
        found = " ".join(str(error).split())
        return (
            f"the GPU ran out of memory: lower micro_batch, max_completion_length or "
            f"evaluation.batch_size; the same command goes on from the last checkpoint ({found})"
        )
    hint = "" if isinstance(error, ValueError) else "; --debug shows where"
    return f"{error}{hint}"


def main(arguments: list[str] | None = None) -> int:
    """Run one command, return its exit status; bad input ends with one line on what to change.

    With --debug an error is raised as it is.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from entrocraft import __version__

        print(__version__)
        return 0
    debug = "--debug" in arguments
    name, *rest = [argument for argument in arguments if argument != "--debug"]
    if name not in COMMANDS:
        print(f"entrocraft: no command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        import_module(f"entrocraft.lab.cli.{name}").run(rest)
    except (ValueError, OSError, RuntimeError) as error:
        if debug:
            raise
        print(f"entrocraft {name}: {_in_one_line(error)}", file=sys.stderr)
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
