"""The result as tables, on the terminal and in Markdown, and as CSV."""

import csv
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlx_recurrent import atomic
from mlx_recurrent.benchmarks.cases import (
    CALLABLES,
    EVERY,
    LONG_WAYS,
    NETWORKS,
    PADDED,
    PLAIN,
    TRANSFORMS,
    Case,
)
from mlx_recurrent.benchmarks.peers import OURS, UPSTREAM
from mlx_recurrent.benchmarks.result import Result, Row

# What is wanted of one thread against two, where the batch is divided and where the
# hidden units of a batch of one are.
BATCH_SPEED_UP = 1.8
UNITS_SPEED_UP = 1.6
# Of an evaluated step above an evaluated addition, and of a call, in seconds.
DECODE_ABOVE_ADDITION = 10e-6
CALL = 8e-6
# Of a step of a stream with so many hidden units: its median, and the slowest of a
# hundred.
STREAM = {64: (3e-6, 10e-6), 256: (8e-6, None)}
# Of a gradient penalty through mlx.nn.RNN against ours.
PENALTY = 20.0
# Of rows whose mean length is a quarter of L, against all of their steps.
LENGTHS_SHARE = 0.4
# Of training mode with a regulariser, against none.
REGULARISER = 1.15
# Of training on a long sequence, in bytes beyond the input, by what it is: where the
# outputs are used, beyond them and their gradient too.
LONG_MEMORY = {
    f"outputs, checkpoint_every={EVERY}": 50e6,
    f"state, checkpoint_every={EVERY}": 100e6,
}

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


def passes_tables(result: Result, section: str) -> list[Table]:
    """Time, ratio to each peer and per cent of the limit, for each case."""
    rows = result.find(section)
    peers = _peers(result, rows)
    table = Table(
        {"forward": "Forward pass", "training": "Training"}[section],
        "Milliseconds, float32: medians of the rounds; in parentheses the quartiles of "
        "ours, and how many times ours each peer takes. "
        + (
            "Training is the vector-Jacobian product with respect to the weights. "
            if section == "training"
            else ""
        )
        + "The limit is what the machine allows at most (below); the best peer's time "
        f"over ours comes last, with the rows where ours takes longer marked `{LOST}`.",
        [
            "case",
            "N, L, D, H",
            "ours",
            *(result.labels[name] for name in peers),
            "limit",
            "of limit",
            "best peer / ours",
        ],
        names=2,
    )
    ratios: dict[str, list[float]] = {name: [] for name in [*peers, "best"]}
    for case in _cases(rows):
        by_name = {r.library: r for r in rows if r.case == case}
        mine = by_name[OURS]
        cells = [case.name, case.shape, _with_quartiles(mine)]
        for name in peers:
            cell, ratio = _beside(by_name.get(name), mine)
            cells.append(cell)
            ratios[name] += [] if ratio is None else [ratio]
        cells.append(milliseconds(mine.limit) if mine.limit else "-")
        if mine.median and mine.limit:
            cells.append(f"{100 * mine.limit / mine.median:.0f} %")
        else:
            cells.append("-")
        best = _best(mine, list(by_name.values()))
        ratios["best"] += [] if best is None else [best]
        table.rows.append([*cells, _won(best)])
    if any(ratios.values()):
        means = {
            n: f"{geometric_mean(r):.2f}x" if r else "-" for n, r in ratios.items()
        }
        table.rows.append(
            [
                "geometric mean",
                "",
                "",
                *(means[n] for n in peers),
                "",
                "",
                means["best"],
            ]
        )
    return [table]


def threads_tables(result: Result) -> list[Table]:
    """One thread against all."""
    rows = result.find("threads")
    count = result.machine.threads
    table = Table(
        f"One thread against {count}",
        "Our layer, milliseconds. Wanted on two threads: "
        f"{BATCH_SPEED_UP} times as fast where the batch is divided, {UNITS_SPEED_UP} "
        "for a batch of one with 512 hidden units or more.",
        ["case", "N, L, D, H", "pass", "1 thread", f"{count} threads", "speed-up", ""],
        names=3,
    )
    for first in [r for r in rows if r.variant == "1"]:
        (second,) = (
            r
            for r in rows
            if (r.case, r.kind) == (first.case, first.kind) and r.variant != "1"
        )
        cells = [first.case.name, first.case.shape, first.kind]
        cells += [_time(first), _time(second)]
        if first.median and second.median:
            speed_up = first.median / second.median
            wanted = UNITS_SPEED_UP if first.case.N == 1 else BATCH_SPEED_UP
            cells += [f"{speed_up:.2f}", _met(speed_up >= wanted, f"{wanted}")]
        else:
            cells += ["-", ""]
        table.rows.append(cells)
    return [table]


def matmul_tables(result: Result) -> list[Table]:
    """Our product beside MLX's."""
    rows = result.find("matmul")
    # Not the layer's name, but what was preloaded.
    label = result.system.get("mlx.nn with", "its own BLAS")
    table = Table(
        "Matrix product",
        f"Square, milliseconds and GFLOP/s, beside MLX with {label}; `linear` with a "
        "bias. The last column is MLX's time over ours.",
        ["side", "operation", "ours", "GFLOP/s", "MLX", "GFLOP/s", "MLX / ours"],
        names=2,
    )
    for theirs in [r for r in rows if r.library == UPSTREAM]:
        (mine,) = (
            r
            for r in rows
            if (r.case, r.kind, r.library) == (theirs.case, theirs.kind, OURS)
        )
        cells = [str(mine.case.L), mine.kind]
        for row in (mine, theirs):
            rate = 2e-9 * row.case.L**3 / row.median if row.median else None
            cells += [_time(row), f"{rate:.0f}" if rate else "-"]
        table.rows.append([*cells, _won(_beside(theirs, mine)[1])])
    return [table]


def decode_tables(result: Result) -> list[Table]:
    """One evaluated step beside an addition."""
    rows = {row.kind: row for row in result.find("decode")}
    step, addition = rows["forward"], rows["addition"]
    table = Table(
        "One step",
        f"An evaluated call with L = 1 at N = {step.case.N}, D = {step.case.D}, "
        f"H = {step.case.H}, microseconds, beside an `mx.eval` of an addition in the "
        f"same process. Wanted: at most {DECODE_ABOVE_ADDITION * 1e6:.0f} more.",
        ["step", "addition", "difference", ""],
        names=0,
    )
    if step.median and addition.median:
        above = step.median - addition.median
        table.rows.append(
            [
                _micro(step),
                _micro(addition),
                f"{above * 1e6:.1f}",
                _met(
                    above <= DECODE_ABOVE_ADDITION,
                    f"at most {DECODE_ABOVE_ADDITION * 1e6:.0f}",
                ),
            ]
        )
    else:
        table.rows.append([_time(step), _time(addition), "-", ""])
    return [table]


def streaming_tables(result: Result) -> list[Table]:
    """A step after another."""
    table = Table(
        "Steps in real time",
        "The next step of a layer with one row, microseconds from Python and back: the "
        "median of the calls, and the 99th percentile, each the median of the rounds. "
        "Ours are `layer.stream` and, in the graph and evaluated, `layer.step`; "
        "PyTorch's is `RNNCell` without gradients, ONNX Runtime's a run of its `RNN` "
        "operator for a step, both on one thread as ours; MLX's is an evaluated call "
        "for a step.",
        ["N, L, D, H", "library", "median", "99 %", "median / ours", ""],
        names=2,
    )
    rows = result.find("streaming")
    for case in _cases(rows):
        found = {(r.library, r.kind, r.variant): r for r in rows if r.case == case}
        ours = found[OURS, "stream", "median"]
        for name, kind in dict.fromkeys((r.library, r.kind) for r in found.values()):
            median, worst = (found[name, kind, which] for which in ("median", "p99"))
            label = result.labels[name]
            if name == OURS:
                label += f", {kind}"
            cells = [case.shape, label, _micro(median, 2), _micro(worst, 2)]
            if median.median and ours.median:
                cells.append(f"{median.median / ours.median:.1f}x")
            else:
                cells.append(_absent(median))
            met = ""
            if median is ours and case.H in STREAM and median.median and worst.median:
                wanted, wanted_worst = STREAM[case.H]
                limits = [f"under {wanted * 1e6:.0f}"]
                fits = median.median < wanted
                if wanted_worst:
                    limits.append(f"99 % under {wanted_worst * 1e6:.0f}")
                    fits = fits and worst.median < wanted_worst
                met = _met(fits, ", ".join(limits))
            table.rows.append([*cells, met])
    return [table]


def memory_tables(result: Result) -> list[Table]:
    """What a pass holds beside its output."""
    table = Table(
        "Memory",
        "What MLX's allocator held at the peak of a pass beside its output, in MB of "
        "10^6 bytes. Allowed: the packed weights and 2^20 bytes a thread; in training "
        "one more array of the output's size, and the gradients.",
        ["case", "N, L, D, H", "pass", "beside the output", "allowed", ""],
        names=3,
    )
    for row in result.find("memory"):
        assert row.median is not None and row.limit is not None
        table.rows.append(
            [
                row.case.name,
                row.case.shape,
                row.kind,
                f"{row.median / 1e6:.2f}",
                f"{row.limit / 1e6:.2f}",
                "yes" if row.median <= row.limit else "no",
            ]
        )
    return [table]


def call_tables(result: Result) -> list[Table]:
    """From Python to the primitive."""
    table = Table(
        "The call",
        "The layer's call without its evaluation, microseconds. Wanted: under "
        f"{CALL * 1e6:.0f}.",
        ["case", "N, L, D, H", "call", ""],
        names=2,
    )
    for row in result.find("call"):
        assert row.median is not None
        table.rows.append(
            [
                row.case.name,
                row.case.shape,
                _micro(row),
                _met(row.median < CALL, f"under {CALL * 1e6:.0f}"),
            ]
        )
    return [table]


def length_tables(result: Result) -> list[Table]:
    """Training over the length."""
    rows = result.find("length")
    times = [row for row in rows if row.kind == "training"]
    if not times:
        return []
    case = times[0].case
    slopes = []
    for name, what in ((OURS, "ours"), (UPSTREAM, "mlx.nn.RNN's")):
        points = [r for r in times if r.library == name and r.median]
        if len(points) > 1:
            a, b = points[-2:]
            assert a.median and b.median
            slope = math.log(b.median / a.median) / math.log(b.case.L / a.case.L)
            slopes.append(
                f"between L = {a.case.L:,} and {b.case.L:,} {what} grows as L to the "
                f"power {slope:.2f}"
            )
    text = f"Training at N = {case.N}, D = {case.D}, H = {case.H}, milliseconds"
    text += ": " + "; ".join(slopes) + "." if slopes else "."
    for row in rows:
        if row.kind == "memory" and row.median is not None:
            output = 4 * row.case.N * row.case.L * row.case.H
            text += (
                f" Over {row.case.L:,} steps MLX's allocator holds "
                f"{row.median / 1e9:.2f} GB at the peak of a training step beside its "
                f"inputs; the output alone is {output / 1e9:.2f}."
            )
    label = result.labels.get(UPSTREAM, "mlx.nn.RNN")
    table = Table(
        "Length", text, ["L", "ours", "us a step", label, f"{label} / ours"], names=0
    )
    for mine in [r for r in times if r.library == OURS]:
        theirs = [r for r in times if r.library == UPSTREAM and r.case == mine.case]
        cells = [f"{mine.case.L:,}", _time(mine)]
        cells.append(f"{1e6 * mine.median / mine.case.L:.3f}" if mine.median else "-")
        cells.append(_time(theirs[0]) if theirs else "-")
        if theirs and theirs[0].median and mine.median:
            cells.append(f"{theirs[0].median / mine.median:.1f}")
        else:
            cells.append("-")
        table.rows.append(cells)
    return [table]


def types_tables(result: Result) -> list[Table]:
    """Half types and denormals."""
    return _relative(
        result.find("types"),
        Table(
            "Types",
            "Our layer: milliseconds in float32, and how many times as long the others "
            "take; `denormal` is float32 with states (forward) or deltas (training) "
            "below the least normal number.",
            [],
            names=3,
        ),
        "float32",
    )


def transforms_tables(result: Result) -> list[Table]:
    """Derivatives of derivatives, and mapped calls."""
    rows = result.find("transforms")
    peers = _peers(result, rows)
    table = Table(
        "Derivatives of derivatives, mapped calls",
        "Milliseconds, float32; in parentheses how many times ours a peer takes. The "
        "gradients are of the weights. PyTorch's RNN has no rule for vmap, so it takes "
        "the rows one at a time, and no ensemble. Wanted: a gradient penalty through "
        f"mlx.nn.RNN takes {PENALTY:.0f} times ours.",
        ["what", "N, L, D, H", "ours", *(result.labels[name] for name in peers), ""],
        names=2,
    )
    for case in _cases(rows):
        for kind in dict.fromkeys(r.kind for r in rows if r.case == case):
            found = {r.library: r for r in rows if (r.case, r.kind) == (case, kind)}
            mine = found[OURS]
            cells = [TRANSFORMS[kind], case.shape, _time(mine)]
            met = ""
            for name in peers:
                cell, ratio = _beside(found.get(name), mine)
                cells.append(cell)
                if (kind, name) == ("penalty", UPSTREAM) and ratio is not None:
                    met = _met(ratio >= PENALTY, f"{PENALTY:.0f}")
            table.rows.append([*cells, met])
    return [table]


def callables_tables(result: Result) -> list[Table]:
    """Other nonlinearities."""
    return _relative(
        result.find("callables"),
        Table(
            "Other nonlinearities",
            "Our layer: milliseconds with tanh, and how many times as long it takes "
            "with other functions of `mlx.nn` and `mlx.core`; `clip_tanh` is "
            "`lambda a: mx.tanh(mx.clip(a, -1, 1))`.",
            [],
            names=3,
        ),
        CALLABLES[0],
    )


def lengths_tables(result: Result) -> list[Table]:
    """Rows that end early."""
    rows = result.find("lengths")
    peers = _peers(result, rows)
    table = Table(
        "Rows that end early",
        "A batch whose rows run a quarter of L steps on average, the longest all of "
        "them; milliseconds, float32, in parentheses how many times ours a peer takes. "
        "PyTorch's rows are packed outside the timing, and its outputs left so; ONNX "
        "Runtime and OpenVINO are given the lengths, JAX's scan selects by them at "
        "each step. `padded` is our layer without lengths, over every step. Wanted: "
        f"lengths take at most {LENGTHS_SHARE} of that.",
        [
            *("case", "N, L, D, H", "pass", "ours"),
            *(result.labels[name] for name in peers),
            *("best peer / ours", PADDED, "ours / padded", ""),
        ],
        names=3,
    )
    for case, kind, found in _groups(rows):
        (padded,) = (r for r in found if r.variant == PADDED)
        by_name = {r.library: r for r in found if r is not padded}
        mine = by_name[OURS]
        cells = [case.name, case.shape, kind, _time(mine)]
        cells += [_beside(by_name.get(name), mine)[0] for name in peers]
        cells += [_won(_best(mine, list(by_name.values()))), _time(padded)]
        if mine.median and padded.median:
            share = mine.median / padded.median
            met = _met(share <= LENGTHS_SHARE, f"at most {LENGTHS_SHARE}")
            cells += [f"{share:.2f}", met]
        else:
            cells += ["-", ""]
        table.rows.append(cells)
    return [table]


NETWORK_TEXTS = {
    "bidirectional": (
        "Both directions",
        "`Bidirectional`, whose outputs are side by side. MLX's are two of its layers, "
        "one on the input reversed; JAX's two scans.",
    ),
    "depth": (
        f"{NETWORKS['depth']} layers",
        "`Stack`. MLX's and JAX's are its layers called one after another, ONNX "
        "Runtime's and OpenVINO's as many nodes.",
    ),
}


def network_tables(result: Result, section: str) -> list[Table]:
    """Several layers in one, for each case and pass."""
    rows = result.find(section)
    peers = _peers(result, rows)
    title, text = NETWORK_TEXTS[section]
    table = Table(
        title,
        f"{text} Milliseconds, float32; in parentheses how many times ours a peer "
        f"takes, with the rows where ours takes longer marked `{LOST}`.",
        [
            *("case", "N, L, D, H", "pass", "ours"),
            *(result.labels[name] for name in peers),
            "best peer / ours",
        ],
        names=3,
    )
    for case, kind, found in _groups(rows):
        by_name = {r.library: r for r in found}
        mine = by_name[OURS]
        cells = [case.name, case.shape, kind, _time(mine)]
        cells += [_beside(by_name.get(name), mine)[0] for name in peers]
        table.rows.append([*cells, _won(_best(mine, found))])
    return [table]


def regularisers_tables(result: Result) -> list[Table]:
    """Leak, zoneout and dropouts."""
    return _relative(
        result.find("regularisers"),
        Table(
            "Regularisers",
            "Our layer in training mode: milliseconds without any, and how many times "
            "as long it takes with a constant leak of 0.5, zoneout of 0.1, or an input "
            "or recurrent dropout of 0.2, each new masks at each call. Wanted: at most "
            f"{REGULARISER} of each.",
            [],
            names=3,
        ),
        PLAIN,
        most=REGULARISER,
    )


def long_tables(result: Result) -> list[Table]:
    """Training over a long sequence."""
    rows = result.find("long")
    table = Table(
        "A long sequence",
        "Training of our layer, the vector-Jacobian product with respect to the "
        "weights, by what of the pass is used, all outputs or "
        '(`return_state="only"`) the last state, and the arguments of the call. Beside '
        "it what MLX's allocator holds at the peak beyond the input and, where they "
        "are used, the outputs and their gradient, in MB of 10^6 bytes.",
        ["used", "N, L, D, H", "ms", "us a step", "MB", ""],
        names=2,
    )
    for way in LONG_WAYS:
        for row in [r for r in rows if (r.variant, r.kind) == (way, "kept")]:
            cells = [way, row.case.shape, _time(row)]
            if row.median is None:
                table.rows.append([*cells, "-", "-", ""])
                continue
            (memory,) = (
                r
                for r in rows
                if (r.variant, r.case, r.kind) == (way, row.case, "memory")
            )
            assert memory.median is not None
            cells.append(f"{1e6 * row.median / row.case.L:.3f}")
            cells.append(f"{memory.median / 1e6:.1f}")
            met = ""
            if way in LONG_MEMORY:
                most = LONG_MEMORY[way]
                met = _met(memory.median < most, f"under {most / 1e6:.0f} MB")
            table.rows.append([*cells, met])
    return [table]


def machine_tables(result: Result) -> list[Table]:
    """The machine's figures, and who is not there."""
    table = Table(
        "The machine",
        "The best of several measurements, before and after the sections.",
        ["figure", "value", "unit"],
        [
            [n, f"{v:.3g}" if v < 100 else f"{v:.0f}", u]
            for n, v, u in result.machine.figures()
        ],
    )
    tables = [table]
    if beside := result.find("exchange"):
        tables.append(
            Table(
                "A cache line to the other core and back",
                "Measured again in the rounds of each pass that divides hidden units, "
                "and used in its limit: on a virtual machine it depends on where the "
                "cores are at the time.",
                ["case", "pass", "microseconds (quartiles)"],
                [
                    [r.case.name, r.kind, f"{_micro(r, 2)} ({_micro_quartiles(r)})"]
                    for r in beside
                ],
                names=2,
            )
        )
    if result.absent:
        tables.append(
            Table(
                "Not compared",
                "",
                ["library", "why"],
                [[label, why] for label, why in result.absent.items()],
                names=2,
            )
        )
    return tables


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "forward": lambda result: passes_tables(result, "forward"),
    "training": lambda result: passes_tables(result, "training"),
    "threads": threads_tables,
    "matmul": matmul_tables,
    "decode": decode_tables,
    "streaming": streaming_tables,
    "memory": memory_tables,
    "call": call_tables,
    "length": length_tables,
    "types": types_tables,
    "transforms": transforms_tables,
    "callables": callables_tables,
    "lengths": lengths_tables,
    **{
        name: lambda result, name=name: network_tables(result, name)
        for name in NETWORKS
    },
    "regularisers": regularisers_tables,
    "long": long_tables,
}


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
    system = [[name, value] for name, value in result.system.items()]
    parts.append(
        "The limit of a pass is the sum of: an evaluation and 8 us for the call; tanh; "
        "the projection, `2NLDH` operations; for an output of 32 MiB and more 0.042 ms "
        "a MB (fresh pages at each call); and for each step the cheaper of two ways. "
        "One divides the batch: the longer of `2NH^2` operations and reading `4H^2` "
        "bytes on each core. The other divides the hidden units, where each core reads "
        "its part only, and exchanges a cache line. Training adds the steps again and "
        "`2NLH(D + H)` operations for the gradients of the weights.\n"
    )
    parts.append(markdown(Table("The run", "", ["what", "which"], system, names=2)))
    atomic.write(path, lambda file: file.write("\n".join(parts).encode()))


COLUMNS = (
    "section,case,N,L,D,H,kind,library,variant,median,low,high,rounds,unit,limit,note"
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
                ["machine", name, *[""] * 7, value, "", "", "", unit, "", ""]
            )
        content = file.getvalue().encode()
    atomic.write(path, lambda file: file.write(content))


def _relative(
    rows: list[Row], table: Table, first: str, most: float | None = None
) -> list[Table]:
    """Fill a table with the time of the first variant, and the others over it.

    With ``most`` the last column says which of them take longer.
    """
    variants = list(dict.fromkeys([first, *(row.variant for row in rows)]))
    table.header = ["case", "N, L, D, H", "pass", *variants]
    table.header += [] if most is None else [""]
    for case, kind, of_group in _groups(rows):
        found = {r.variant: r for r in of_group}
        base = found[first]
        cells = [case.name, case.shape, kind]
        ratios = []
        for variant in variants:
            row = found[variant]
            if row is base or not row.median or not base.median:
                cells.append(_time(row))
            else:
                ratios.append(row.median / base.median)
                cells.append(f"{ratios[-1]:.2f}x")
        if most is not None:
            cells.append(_met(max(ratios, default=1) <= most, f"at most {most}"))
        table.rows.append(cells)
    return [table]


def _groups(rows: list[Row]) -> Iterator[tuple[Case, str, list[Row]]]:
    """Each case and pass, with its rows."""
    for case, kind in dict.fromkeys((row.case, row.kind) for row in rows):
        yield case, kind, [row for row in rows if (row.case, row.kind) == (case, kind)]


def _peers(result: Result, rows: list[Row]) -> list[str]:
    """The libraries that have a row, but for ours, in their order."""
    there = {row.library for row in rows} - {OURS}
    return [name for name in result.labels if name in there]


def _beside(row: Row | None, mine: Row) -> tuple[str, float | None]:
    """A peer's time, and how many times ours it is."""
    if row is None or row.median is None or mine.median is None:
        return _absent(row), None
    ratio = row.median / mine.median
    return f"{milliseconds(row.median)} ({ratio:.2f}x)", ratio


def _best(mine: Row, rows: list[Row]) -> float | None:
    """How many times ours the best peer's time is."""
    times = [row.median for row in rows if row.library != OURS and row.median]
    return min(times) / mine.median if times and mine.median else None


def _won(ratio: float | None) -> str:
    """A peer's time over ours, and whether ours takes longer."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + (f" {LOST}" if ratio < 1 else "")


def _cases(rows: list[Row]) -> list[Case]:
    return list(dict.fromkeys(row.case for row in rows))


def _digits(value: float) -> int:
    return 0 if value <= 0 else math.floor(math.log10(value))


def _absent(row: Row | None) -> str:
    return "-" if row is None or not row.note else row.note.partition(":")[0]


def _time(row: Row) -> str:
    return _absent(row) if row.median is None else milliseconds(row.median)


def _with_quartiles(row: Row) -> str:
    if row.median is None or row.low is None or row.high is None:
        return _absent(row)
    low, high = milliseconds(row.low), milliseconds(row.high)
    return f"{milliseconds(row.median)} ({low} to {high})"


def _micro(row: Row, decimals: int = 1) -> str:
    return "-" if row.median is None else f"{row.median * 1e6:.{decimals}f}"


def _micro_quartiles(row: Row) -> str:
    ends = (row.low, row.high)
    return " to ".join("-" if end is None else f"{end * 1e6:.2f}" for end in ends)


def _met(met: bool, wanted: str) -> str:
    return "yes" if met else f"no, wanted {wanted}"
