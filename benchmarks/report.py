"""The result as tables, on the terminal and in Markdown, and as CSV."""

import csv
import io
import os
from pathlib import Path

from mlx_recurrent import atomic
from mlx_recurrent.benchmarks.cases import CELLS
from mlx_recurrent.benchmarks.result import Result
from mlx_recurrent.benchmarks.table import LOST, Table
from mlx_recurrent.benchmarks.tables import TABLES, machine_tables


def terminal(tables: list[Table]) -> str:
    """Return tables in columns of plain text."""
    parts = []
    for table in tables:
        lines = [table.header, *table.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts.append(f"\n{table.title}")
        for cells in lines:
            aligned = [
                cell.ljust(width) if i < table.names else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            parts.append("  ".join(aligned).rstrip())
    return "\n".join(parts)


def markdown(table: Table) -> str:
    """Return a table in Markdown, with its title and text."""
    rule = ["---" if i < table.names else "---:" for i in range(len(table.header))]
    lines = [f"## {table.title}", ""]
    if table.text:
        lines += [table.text, ""]
    for cells in [table.header, rule, *table.rows]:
        marked = [f"**{c}**" if c.endswith(f" {LOST}") else c for c in cells]
        lines.append(f"| {' | '.join(marked)} |")
    return "\n".join(lines) + "\n"


def write_markdown(result: Result, path: Path, picture: Path | None) -> None:
    """Write the whole result as a page."""
    parts = [
        "# Performance\n",
        f"Written by `{result.command}` on {result.date}: every figure is of that one "
        "run. Each library has a process of its own, with the same cores and threads, "
        "and they take turns; a result is compared with the float64 reference of the "
        "tests before it is timed. Absolute times move with the machine: compare "
        "ratios within a run.\n",
    ]
    if picture:
        link = os.path.relpath(picture, path.parent).replace(os.sep, "/")
        parts.append(f"![Time over the limit, and over the length]({link})\n")
    for section, tables in TABLES.items():
        if result.find(section):
            parts += [markdown(table) for table in tables(result)]
    parts += [markdown(table) for table in machine_tables(result)]
    functions = "elementary functions ("
    functions += ", ".join(f"{name} {cell.functions}" for name, cell in CELLS.items())
    functions += ")"
    system = [[name, value] for name, value in result.system.items()]
    parts.append(
        "The limit of a pass, of a cell with `G` gates, is the sum of: an evaluation "
        f"and 8 us for the call; {functions} for each unit and step, as long as tanh; "
        "the projection, `2NLGDH` operations; for an output of 32 MiB and more 0.042 "
        "ms a MB (fresh pages at each call); and for each step the cheaper of two "
        "ways. One divides the batch: the longer of `2NGH^2` operations and reading "
        "`4GH^2` bytes on each core. The other divides the hidden units, where each "
        "core reads its part only, and exchanges a cache line. Training adds the steps "
        "again and `2NLGH(D + H)` operations for the gradients of the weights.\n"
    )
    parts.append(markdown(Table("The run", "", ["what", "which"], system, names=2)))
    atomic.write(path, lambda file: file.write("\n".join(parts).encode()))


COLUMNS = (
    "section,cell,case,N,L,D,H,kind,library,variant,median,low,high,rounds,unit,limit,"
    "note"
)


def write_csv(result: Result, path: Path) -> None:
    """Write every figure, in seconds and bytes, and the machine's."""
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS.split(","))
        for row in result.rows:
            writer.writerow(
                [
                    row.section,
                    row.cell,
                    *row.case,
                    row.kind,
                    row.library,
                    row.variant,
                    row.median,
                    row.low,
                    row.high,
                    row.rounds,
                    row.unit,
                    row.limit,
                    row.note,
                ]
            )
        for name, value, unit in result.machine.figures():
            writer.writerow(
                ["machine", "", name, *[""] * 7, value, "", "", "", unit, "", ""]
            )
        content = file.getvalue().encode()
    atomic.write(path, lambda file: file.write(content))
