"""What a run found."""

import statistics
from dataclasses import dataclass, field, replace

from mlx_recurrent.benchmarks.cases import CELLS, PASSES, RNN, Case
from mlx_recurrent.benchmarks.machine import Machine


@dataclass(frozen=True)
class Row:
    """One figure: the median of the rounds, and their quartiles.

    Args:
        section (str): The section that it belongs to.
        case (Case): The shapes.
        kind (str): What was done.
        library (str): What did it.
        variant (str, optional): How, where a section compares ways. Default: ``""``.
        median, low, high (float, optional): In the unit; ``None`` where there is none.
        rounds (int, optional): How many there were. Default: ``0``.
        unit (str, optional): ``"s"`` or ``"bytes"``. Default: ``"s"``.
        limit (float, optional): The least time, or the most memory. Default: ``None``.
        note (str, optional): Why there is no figure. Default: ``""``.
        cell (str, optional): One of ``CELLS``. Default: ``"RNN"``.
    """

    section: str
    case: Case
    kind: str
    library: str
    variant: str = ""
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    unit: str = "s"
    limit: float | None = None
    note: str = ""
    cell: str = RNN

    def of(self, medians: list[float]) -> "Row":
        """Return this row with the figures of some rounds."""
        low, high = min(medians), max(medians)
        if len(medians) > 3:
            low, _, high = statistics.quantiles(medians, n=4, method="inclusive")
        return replace(
            self,
            median=statistics.median(medians),
            low=low,
            high=high,
            rounds=len(medians),
        )


@dataclass
class Result:
    """Everything that a run found.

    Args:
        command (str): What was run.
        date (str): When.
        system (dict): The machine and the versions, by name.
        labels (dict): The names of libraries in tables, in their order.
        absent (dict): Why a library was not compared, by label.
        machine (Machine): What the machine can do.
        rows (list, optional): The figures.
    """

    command: str
    date: str
    system: dict[str, str]
    labels: dict[str, str]
    absent: dict[str, str]
    machine: Machine
    rows: list[Row] = field(default_factory=list)

    def find(self, section: str, **what: object) -> list[Row]:
        """Return the rows of a section with these values."""
        return [
            row
            for row in self.rows
            if row.section == section
            and all(getattr(row, name) == value for name, value in what.items())
        ]

    def drop(self, section: str, cell: str) -> None:
        """Forget the rows of a cell in a section."""
        away = self.find(section, cell=cell)
        self.rows = [row for row in self.rows if row not in away]

    def set_limits(self) -> None:
        """Give each pass the least time that the machine allows.

        The exchange of a cache line is the one that was measured beside it.
        """
        for at, row in enumerate(self.rows):
            if row.section not in PASSES:
                continue
            machine = self.machine
            measured = {"case": row.case, "kind": row.section, "cell": row.cell}
            for beside in self.find("exchange", **measured):
                if beside.median:
                    machine = replace(machine, exchange=beside.median)
            limit = machine.limit(row.case, row.section, CELLS[row.cell])
            self.rows[at] = replace(row, limit=limit)
