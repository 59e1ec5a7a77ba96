"""Pages of the documentation whose tables come from a result file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

START, END = "<!-- tables -->", "<!-- end of tables -->"


def into_page(made: str, page: Path) -> None:
    """Write tables into a page, between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text()
    if START not in text or END not in text:
        raise ValueError(f"{page} has no lines {START} and {END} to write the tables between")
    before, after = text.partition(START)[0], text.partition(END)[2]
    page.write_text(f"{before}{START}\n\n{made}\n\n{END}{after}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
