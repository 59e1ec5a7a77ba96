"""The table of numbers for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from entrocraft.lab.report.groups import Cell, table_header, table_notes, table_rows
from entrocraft.lab.report.summary import Summary


def render_table(summaries: Sequence[Summary]) -> Table:
    """Return a table with one row per run, or per group of seeds.

    From three seeds on a group shows the interquartile mean and its 95 % interval, with two the
    mean and the range.

    Columns: run, tracking error (nats per token), final reward, pass@1 and the largest pass@k
    from the first to the last evaluation, kept share of rollouts, saturated share of steps, mean
    wall time of a run.
    Print it with ``rich.console.Console().print(table)``.
    """
    rows = table_rows(summaries)
    table = Table(
        caption="\n".join(table_notes(rows)) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,  # eight columns fit into 80 letters without lines between them
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("run", overflow="fold")
    for title in table_header(summaries):
        table.add_column(title, justify="right")
    for row in rows:
        name = Text(row.name)  # Text, not str: square brackets in a name are not rich markup
        if row.runs > 1:
            name.append(f"\n{row.runs} seeds", style="dim")
        table.add_row(name, *map(_text, row.cells))
    return table


def _text(cell: Cell) -> Text:
    text = Text(cell.value)
    if cell.range:
        text.append(f"\n{cell.range}", style="dim")
    return text
