"""A table, and what stands in its cells."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_recurrent.benchmarks.cases import Case
from mlx_recurrent.benchmarks.peers import OURS
from mlx_recurrent.benchmarks.result import Result, Row

LOST = "lost"


@dataclass
class Table:
    """A table with a title and what to know about it."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    # Columns of names, from the left; those of figures follow.
    names: int = 1


def milliseconds(seconds: float) -> str:
    """Return three figures or so of milliseconds."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.{max(0, 2 - _digits(ms))}f}"


def geometric_mean(ratios: list[float]) -> float:
    """Return the geometric mean of some ratios."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def groups(rows: list[Row]) -> Iterator[tuple[list[str], list[Row]]]:
    """Each cell, case and kind of work: the first three as text, and their rows."""
    for group in dict.fromkeys((row.cell, row.case, row.kind) for row in rows):
        cell, case, _ = group
        found = [row for row in rows if (row.cell, row.case, row.kind) == group]
        yield [cell, case.name, case.shape], found


def peers_of(result: Result, rows: list[Row]) -> list[str]:
    """The libraries that have a row, but for ours, in their order."""
    there = {row.library for row in rows} - {OURS}
    return [name for name in result.labels if name in there]


def with_ratio(row: Row | None, mine: Row) -> tuple[str, float | None]:
    """A peer's time, and how many times ours it is."""
    if row is None or row.median is None or mine.median is None:
        return absent(row), None
    ratio = row.median / mine.median
    return f"{milliseconds(row.median)} ({ratio:.2f}x)", ratio


def best_of(mine: Row, rows: list[Row]) -> float | None:
    """How many times ours the best peer's time is."""
    times = [row.median for row in rows if row.library != OURS and row.median]
    return min(times) / mine.median if times and mine.median else None


def won(ratio: float | None) -> str:
    """A peer's time over ours, and whether ours takes longer."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + (f" {LOST}" if ratio < 1 else "")


def cells_in(rows: list[Row]) -> list[str]:
    """The cells that have a row."""
    return list(dict.fromkeys(row.cell for row in rows))


def cases_in(rows: list[Row]) -> list[Case]:
    """The cases that have a row."""
    return list(dict.fromkeys(row.case for row in rows))


def _digits(value: float) -> int:
    return 0 if value <= 0 else math.floor(math.log10(value))


def absent(row: Row | None) -> str:
    """What stands where there is no figure."""
    return "-" if row is None or not row.note else row.note.partition(":")[0]


def time_of(row: Row) -> str:
    """The median."""
    return absent(row) if row.median is None else milliseconds(row.median)


def with_quartiles(row: Row) -> str:
    """The median and the quartiles."""
    if row.median is None or row.low is None or row.high is None:
        return absent(row)
    low, high = milliseconds(row.low), milliseconds(row.high)
    return f"{milliseconds(row.median)} ({low} to {high})"


def micro(row: Row, decimals: int = 1) -> str:
    """The median in microseconds."""
    return "-" if row.median is None else f"{row.median * 1e6:.{decimals}f}"


def micro_quartiles(row: Row) -> str:
    """The quartiles in microseconds."""
    ends = (row.low, row.high)
    return " to ".join("-" if end is None else f"{end * 1e6:.2f}" for end in ends)


def whether_met(met: bool, wanted: str) -> str:
    """Whether a figure is what is wanted."""
    return "yes" if met else f"no, wanted {wanted}"
