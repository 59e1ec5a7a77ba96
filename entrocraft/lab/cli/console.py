"""Terminal of a command."""

from __future__ import annotations

import os
import warnings

from rich.console import Console


def quiet_console() -> Console:
    """Silence transformers and return a console, which prints on the first process only."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    return Console(quiet=os.environ.get("RANK", "0") != "0")
