"""The tables of each section, and of the machine."""

import math
from collections.abc import Callable

from mlx_recurrent.benchmarks.cases import (
    CALLABLES,
    CELLS,
    CHECKPOINTED,
    CHECKPOINTED_LENGTH,
    CHECKPOINTED_SHARE,
    EVERY,
    NETWORKS,
    PADDED,
    PLAIN,
    RNN,
    STREAM_CALL,
    STREAM_WEIGHTS,
    STREAMING,
    TRANSFORMS,
)
from mlx_recurrent.benchmarks.peers import OURS, UPSTREAM
from mlx_recurrent.benchmarks.result import Result, Row
from mlx_recurrent.benchmarks.table import (
    LOST,
    Table,
    absent,
    best_of,
    cases_in,
    cells_in,
    geometric_mean,
    groups,
    micro,
    micro_quartiles,
    milliseconds,
    peers_of,
    time_of,
    whether_met,
    with_quartiles,
    with_ratio,
    won,
)

# What a row of several cells and cases begins with.
NAMES = ("cell", "case", "N, L, D, H")

PASS_TITLES = {"forward": "Forward pass", "training": "Training"}

# What is wanted of one thread against two, where the batch is divided and where the
# hidden units of a batch of one are.
BATCH_SPEED_UP = 1.8
UNITS_SPEED_UP = 1.6
# Of an evaluated step above an evaluated addition, and of a call, in seconds.
DECODE_ABOVE_ADDITION = 10e-6
CALL = 8e-6
# Of a step of a stream: its median and, of the first, the slowest of a hundred.
STREAM = {STREAMING[1]: (3e-6, 10e-6), STREAMING[3]: (8e-6,)}
# Of a step that reads its weights, over the call's own time and the reading; and of
# ONNX Runtime's session for the same step, over ours.
STREAM_OVER_CALL, STREAM_OF_SESSION = 1.3, 2.5
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


def passes_tables(result: Result, section: str) -> list[Table]:
    """For each cell: time, ratio to each peer and per cent of the limit, by case."""
    rows = result.find(section)
    return [
        _passes_table(result, section, cell, [r for r in rows if r.cell == cell])
        for cell in cells_in(rows)
    ]


def _passes_table(result: Result, section: str, cell: str, rows: list[Row]) -> Table:
    peers = peers_of(result, rows)
    table = Table(
        f"{PASS_TITLES[section]}: {cell}",
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
            *("case", "N, L, D, H", "ours"),
            *(result.labels[name] for name in peers),
            *("limit", "of limit", "best peer / ours"),
        ],
        names=2,
    )
    ratios: dict[str, list[float]] = {name: [] for name in [*peers, "best"]}
    for case in cases_in(rows):
        by_name = {r.library: r for r in rows if r.case == case}
        mine = by_name[OURS]
        cells = [case.name, case.shape, with_quartiles(mine)]
        for name in peers:
            text, ratio = with_ratio(by_name.get(name), mine)
            cells.append(text)
            ratios[name] += [] if ratio is None else [ratio]
        cells.append(milliseconds(mine.limit) if mine.limit else "-")
        if mine.median and mine.limit:
            cells.append(f"{100 * mine.limit / mine.median:.0f} %")
        else:
            cells.append("-")
        best = best_of(mine, list(by_name.values()))
        ratios["best"] += [] if best is None else [best]
        table.rows.append([*cells, won(best)])
    if any(ratios.values()):
        means = {
            n: f"{geometric_mean(r):.2f}x" if r else "-" for n, r in ratios.items()
        }
        of_peers = [means[name] for name in peers]
        table.rows.append(["geometric mean", "", "", *of_peers, "", "", means["best"]])
    return table


def threads_tables(result: Result) -> list[Table]:
    """One thread against all."""
    rows = result.find("threads")
    count = result.machine.threads
    table = Table(
        f"One thread against {count}",
        "Our layer, milliseconds. Wanted on two threads: "
        f"{BATCH_SPEED_UP} times as fast where the batch is divided, {UNITS_SPEED_UP} "
        "for a batch of one with 512 hidden units or more.",
        [*NAMES, "pass", "1 thread", f"{count} threads", "speed-up", ""],
        names=4,
    )
    for names, found in groups(rows):
        (first,) = (r for r in found if r.variant == "1")
        (second,) = (r for r in found if r.variant != "1")
        cells = [*names, first.kind, time_of(first), time_of(second)]
        if first.median and second.median:
            speed_up = first.median / second.median
            wanted = UNITS_SPEED_UP if first.case.N == 1 else BATCH_SPEED_UP
            cells += [f"{speed_up:.2f}", whether_met(speed_up >= wanted, f"{wanted}")]
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
            cells += [time_of(row), f"{rate:.0f}" if rate else "-"]
        table.rows.append([*cells, won(with_ratio(theirs, mine)[1])])
    return [table]


def decode_tables(result: Result) -> list[Table]:
    """One evaluated step beside an addition."""
    rows = result.find("decode")
    _, N, _, D, H = rows[0].case
    most = f"{DECODE_ABOVE_ADDITION * 1e6:.0f}"
    table = Table(
        "One step",
        f"An evaluated call with L = 1 at N = {N}, D = {D}, H = {H}, microseconds, "
        "beside an `mx.eval` of an addition in the same process. Wanted: at most "
        f"{most} more.",
        ["cell", "step", "addition", "difference", ""],
    )
    for cell in cells_in(rows):
        by_kind = {row.kind: row for row in rows if row.cell == cell}
        step, addition = by_kind["forward"], by_kind["addition"]
        if step.median and addition.median:
            above = step.median - addition.median
            wanted = whether_met(above <= DECODE_ABOVE_ADDITION, f"at most {most}")
            cells = [micro(step), micro(addition), f"{above * 1e6:.1f}", wanted]
        else:
            cells = [time_of(step), time_of(addition), "-", ""]
        table.rows.append([cell, *cells])
    return [table]


def streaming_tables(result: Result) -> list[Table]:
    """A step after another."""
    square = STREAM_WEIGHTS
    table = Table(
        "Steps in real time",
        "The next step of a layer with one row, microseconds from Python and back: the "
        "median of the calls, and the 99th percentile, each the median of the rounds. "
        "Ours are `layer.stream` and, in the graph and evaluated, `layer.step`; "
        "PyTorch's is `RNNCell`, `GRUCell` or `LSTMCell` without gradients, ONNX "
        "Runtime's a run of its operator for a step, both on one thread as ours; MLX's "
        "is an evaluated call for a step. Wanted of the gated cells at "
        f"D = {square.D}, H = {square.H}: at most {STREAM_OVER_CALL} times what a step "
        f"takes at D = {STREAM_CALL.D}, H = {STREAM_CALL.H}, and the weights' "
        f"reading from the cache that holds them; and {STREAM_OF_SESSION} times as "
        "fast as ONNX Runtime.",
        ["cell", "N, L, D, H", "library", "median", "99 %", "median / ours", ""],
        names=3,
    )
    rows = result.find("streaming")
    for cell, case in dict.fromkeys((row.cell, row.case) for row in rows):
        found = {
            (r.library, r.kind, r.variant): r
            for r in rows
            if (r.cell, r.case) == (cell, case)
        }
        ours = found[OURS, "stream", "median"]
        for name, kind in dict.fromkeys((r.library, r.kind) for r in found.values()):
            median, worst = (found[name, kind, which] for which in ("median", "p99"))
            label = result.labels[name]
            if name == OURS:
                label += f", {kind}"
            cells = [cell, case.shape, label, micro(median, 2), micro(worst, 2)]
            if median.median and ours.median:
                cells.append(f"{median.median / ours.median:.1f}x")
            else:
                cells.append(absent(median))
            wanted = _wanted_of_stream(result, ours, worst) if median is ours else ""
            table.rows.append([*cells, wanted])
    return [table]


def _wanted_of_stream(result: Result, ours: Row, worst: Row) -> str:
    """Whether a stream takes as little as is wanted."""
    rows = result.find("streaming", cell=ours.cell, variant="median")
    limits: list[tuple[Row, float, str]] = []
    if ours.cell == RNN:
        for row, limit, which in zip(
            (ours, worst), STREAM.get(ours.case, ()), ("", "99 % "), strict=False
        ):
            limits.append((row, limit, f"{which}under {limit * 1e6:.0f}"))
    elif ours.case == STREAM_WEIGHTS:
        _, _, _, D, H = ours.case
        bytes_ = 4.0 * CELLS[ours.cell].gates * H * (D + H)
        read = bytes_ / result.machine.bandwidth(bytes_)
        for row in rows:
            if row.median is None:
                continue
            if (row.library, row.kind, row.case) == (OURS, "stream", STREAM_CALL):
                limit = STREAM_OVER_CALL * (row.median + read)
                limits.append((ours, limit, f"under {limit * 1e6:.2f}"))
            if (row.library, row.case) == ("onnxruntime", ours.case):
                limit = row.median / STREAM_OF_SESSION
                limits.append((ours, limit, f"under {limit * 1e6:.2f}"))
    if not limits:
        return ""
    fits = all(row.median is not None and row.median < most for row, most, _ in limits)
    return whether_met(fits, ", ".join(text for _, _, text in limits))


def memory_tables(result: Result) -> list[Table]:
    """What a pass holds beside its output."""
    table = Table(
        "Memory",
        "What MLX's allocator held at the peak of a pass beside its output, in MB of "
        "10^6 bytes. Allowed: the packed weights and 2^20 bytes a thread; in training "
        "the gradients and so many arrays of the output's size: "
        + ", ".join(f"{name} {cell.kept}" for name, cell in CELLS.items())
        + f"; with `{CHECKPOINTED}`, over {CHECKPOINTED_LENGTH:,} steps and more, "
        f"{CHECKPOINTED_SHARE} of these.",
        [*NAMES, "pass", "beside the output", "allowed", ""],
        names=4,
    )
    for row in result.find("memory"):
        assert row.median is not None and row.limit is not None
        table.rows.append(
            [
                row.cell,
                row.case.name,
                row.case.shape,
                ", ".join(filter(None, (row.kind, row.variant))),
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
        [*NAMES, "call", ""],
        names=3,
    )
    for row in result.find("call"):
        assert row.median is not None
        table.rows.append(
            [
                row.cell,
                row.case.name,
                row.case.shape,
                micro(row),
                whether_met(row.median < CALL, f"under {CALL * 1e6:.0f}"),
            ]
        )
    return [table]


def length_tables(result: Result) -> list[Table]:
    """Training over the length, for each cell."""
    rows = result.find("length")
    return [
        _length_table(result, cell, [r for r in rows if r.cell == cell])
        for cell in cells_in(rows)
    ]


def _length_table(result: Result, cell: str, rows: list[Row]) -> Table:
    times = [row for row in rows if row.kind == "training"]
    _, N, _, D, H = times[0].case
    slopes = []
    for name, what in ((OURS, "ours"), (UPSTREAM, f"mlx.nn.{cell}'s")):
        points = [r for r in times if r.library == name and r.median]
        if len(points) > 1:
            a, b = points[-2:]
            assert a.median and b.median
            slope = math.log(b.median / a.median) / math.log(b.case.L / a.case.L)
            slopes.append(
                f"between L = {a.case.L:,} and {b.case.L:,} {what} grows as L to the "
                f"power {slope:.2f}"
            )
    text = f"Training at N = {N}, D = {D}, H = {H}, milliseconds"
    text += ": " + "; ".join(slopes) + "." if slopes else "."
    for row in rows:
        if row.kind == "memory" and row.median is not None:
            output = 4 * row.case.N * row.case.L * row.case.H
            text += (
                f" Over {row.case.L:,} steps MLX's allocator holds "
                f"{row.median / 1e9:.2f} GB at the peak of a training step beside its "
                f"inputs; the output alone is {output / 1e9:.2f}."
            )
    label = result.labels.get(UPSTREAM, "mlx.nn")
    table = Table(
        f"Length: {cell}",
        text,
        ["L", "ours", "us a step", label, f"{label} / ours"],
        names=0,
    )
    for mine in [r for r in times if r.library == OURS]:
        theirs = [r for r in times if r.library == UPSTREAM and r.case == mine.case]
        cells = [f"{mine.case.L:,}", time_of(mine)]
        cells.append(f"{1e6 * mine.median / mine.case.L:.3f}" if mine.median else "-")
        cells.append(time_of(theirs[0]) if theirs else "-")
        if theirs and theirs[0].median and mine.median:
            cells.append(f"{theirs[0].median / mine.median:.1f}")
        else:
            cells.append("-")
        table.rows.append(cells)
    return table


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
            names=4,
        ),
        "float32",
    )


def transforms_tables(result: Result) -> list[Table]:
    """Derivatives of derivatives, and mapped calls."""
    rows = result.find("transforms")
    peers = peers_of(result, rows)
    table = Table(
        "Derivatives of derivatives, mapped calls",
        "Milliseconds, float32; in parentheses how many times ours a peer takes. The "
        "gradients are of the weights. PyTorch's layers have no rule for vmap, so it "
        "takes the rows one at a time, and no ensemble. Wanted: a gradient penalty "
        f"through mlx.nn takes {PENALTY:.0f} times ours.",
        [
            *("what", "cell", "N, L, D, H", "ours"),
            *(result.labels[name] for name in peers),
            "",
        ],
        names=3,
    )
    for (cell, _, shape), found in groups(rows):
        by_name = {r.library: r for r in found}
        mine = by_name[OURS]
        cells = [TRANSFORMS[mine.kind], cell, shape, time_of(mine)]
        met = ""
        for name in peers:
            text, ratio = with_ratio(by_name.get(name), mine)
            cells.append(text)
            if (mine.kind, name) == ("penalty", UPSTREAM) and ratio is not None:
                met = whether_met(ratio >= PENALTY, f"{PENALTY:.0f}")
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
            names=4,
        ),
        CALLABLES[0],
    )


def lengths_tables(result: Result) -> list[Table]:
    """Rows that end early."""
    rows = result.find("lengths")
    peers = peers_of(result, rows)
    table = Table(
        "Rows that end early",
        "A batch whose rows run a quarter of L steps on average, the longest all of "
        "them; milliseconds, float32, in parentheses how many times ours a peer takes. "
        "PyTorch's rows are packed outside the timing, and its outputs left so; ONNX "
        "Runtime and OpenVINO are given the lengths, JAX's scan selects by them at "
        "each step. `padded` is our layer without lengths, over every step. Wanted: "
        f"lengths take at most {LENGTHS_SHARE} of that.",
        [
            *(*NAMES, "pass", "ours"),
            *(result.labels[name] for name in peers),
            *("best peer / ours", PADDED, "ours / padded", ""),
        ],
        names=4,
    )
    for names, found in groups(rows):
        (padded,) = (r for r in found if r.variant == PADDED)
        by_name = {r.library: r for r in found if r is not padded}
        mine = by_name[OURS]
        cells = [*names, mine.kind, time_of(mine)]
        cells += [with_ratio(by_name.get(name), mine)[0] for name in peers]
        cells += [won(best_of(mine, list(by_name.values()))), time_of(padded)]
        if mine.median and padded.median:
            share = mine.median / padded.median
            met = whether_met(share <= LENGTHS_SHARE, f"at most {LENGTHS_SHARE}")
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
    peers = peers_of(result, rows)
    title, text = NETWORK_TEXTS[section]
    table = Table(
        title,
        f"{text} Milliseconds, float32; in parentheses how many times ours a peer "
        f"takes, with the rows where ours takes longer marked `{LOST}`.",
        [
            *(*NAMES, "pass", "ours"),
            *(result.labels[name] for name in peers),
            "best peer / ours",
        ],
        names=4,
    )
    for names, found in groups(rows):
        by_name = {r.library: r for r in found}
        mine = by_name[OURS]
        cells = [*names, mine.kind, time_of(mine)]
        cells += [with_ratio(by_name.get(name), mine)[0] for name in peers]
        table.rows.append([*cells, won(best_of(mine, found))])
    return [table]


def regularisers_tables(result: Result) -> list[Table]:
    """Leak, zoneout, dropouts and skipped steps."""
    return _relative(
        result.find("regularisers"),
        Table(
            "Regularisers",
            "Our layer in training mode: milliseconds without any, and how many times "
            "as long it takes with a constant leak of 0.5, zoneout of 0.1 (of LSTM's "
            "two states, each with masks of its own), or an input or recurrent dropout "
            "of 0.2, each new masks at each call; or with a `mask` by which one step "
            f"in four is skipped. Wanted: at most {REGULARISER} of each.",
            [],
            names=4,
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
        ["used", "cell", "N, L, D, H", "ms", "us a step", "MB", ""],
        names=3,
    )
    for row in [r for r in rows if r.kind == "kept"]:
        cells = [row.variant, row.cell, row.case.shape, time_of(row)]
        if row.median is None:
            table.rows.append([*cells, "-", "-", ""])
            continue
        (memory,) = (
            r
            for r in rows
            if r.kind == "memory"
            and (r.variant, r.case, r.cell) == (row.variant, row.case, row.cell)
        )
        assert memory.median is not None
        cells.append(f"{1e6 * row.median / row.case.L:.3f}")
        cells.append(f"{memory.median / 1e6:.1f}")
        met = ""
        if row.variant in LONG_MEMORY:
            most = LONG_MEMORY[row.variant]
            met = whether_met(memory.median < most, f"under {most / 1e6:.0f} MB")
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
                ["cell", "case", "pass", "microseconds (quartiles)"],
                [
                    [
                        r.cell,
                        r.case.name,
                        r.kind,
                        f"{micro(r, 2)} ({micro_quartiles(r)})",
                    ]
                    for r in beside
                ],
                names=3,
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


def _relative(
    rows: list[Row], table: Table, first: str, most: float | None = None
) -> list[Table]:
    """Fill a table with the time of the first variant, and the others over it.

    With ``most`` the last column says which of them take longer.
    """
    variants = list(dict.fromkeys([first, *(row.variant for row in rows)]))
    table.header = [*NAMES, "pass", *variants]
    table.header += [] if most is None else [""]
    for names, of_group in groups(rows):
        found = {r.variant: r for r in of_group}
        base = found[first]
        cells = [*names, base.kind]
        ratios = []
        for variant in variants:
            row = found.get(variant)
            if row is None:  # which the cell does not have
                cells.append("-")
            elif row is base or not row.median or not base.median:
                cells.append(time_of(row))
            else:
                ratios.append(row.median / base.median)
                cells.append(f"{ratios[-1]:.2f}x")
        if most is not None:
            cells.append(whether_met(max(ratios, default=1) <= most, f"at most {most}"))
        table.rows.append(cells)
    return [table]
