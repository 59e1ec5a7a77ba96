"""`python -m entrocraft` is the `entrocraft` command."""

import sys

from entrocraft.lab.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
