"""`entrocraft`, or `python -m entrocraft`: the lab's commands, where the extra is installed."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; a missing extra is named."""
    try:
        from entrocraft.lab.cli.main import main as run

        return run(arguments)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "entrocraft":
            raise
        print(
            f"entrocraft: this command needs the extra [lab] (no module named {name!r}): "
            "pip install 'entrocraft[lab]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
