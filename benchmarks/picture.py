"""The result at a glance: how near each library comes to the machine's limit."""

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mlx_recurrent import atomic
from mlx_recurrent.benchmarks.cases import LENGTH_CASE, PASSES, Case
from mlx_recurrent.benchmarks.peers import LIBRARIES, OURS, UPSTREAM
from mlx_recurrent.benchmarks.result import Result, Row
from mlx_recurrent.benchmarks.tables import PASS_TITLES

INK, FAINT, GRID = "#1f2328", "#6e7781", "#e4e7eb"
# Distinct in hue, in lightness and in form.
STYLES = {
    OURS: ("#c2255c", "D"),
    UPSTREAM: ("#868e96", "X"),
    "torch": ("#e8590c", "s"),
    "onnxruntime": ("#2f9e44", "^"),
    "jax": ("#1971c2", "o"),
    "openvino": ("#7048b0", "v"),
}


def draw(result: Result, path: Path) -> None:
    """Write the picture, a row of panels for each cell.

    Time over the limit by case, and time over the length.
    """
    panels = [pass_ for pass_ in PASSES if result.find(pass_)]
    lengths = [r for r in result.find("length", kind="training") if r.median]
    shown = [row for pass_ in panels for row in result.find(pass_)] + lengths
    cells = list(dict.fromkeys(row.cell for row in shown))
    if not cells:
        raise ValueError(
            "the picture shows the sections forward, training and length: none was run"
        )
    cases = max((len(_cases(result, p, c)) for p in panels for c in cells), default=0)
    columns = len(panels) + bool(lengths)
    style = {
        "font.size": 10,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "mlx-recurrent",
    }
    with matplotlib.rc_context(style):
        height = 0.7 + len(cells) * max(3.5, 1.2 + 0.6 * cases)
        figure = Figure(figsize=(1.5 + 4.6 * columns, height), facecolor="white")
        axes = figure.subplots(len(cells), columns, squeeze=False)
        for of_cell, cell in zip(axes, cells, strict=True):
            for i, (axis, pass_) in enumerate(zip(of_cell, panels, strict=False)):
                _limits(axis, result, pass_, cell, named=i == 0)
            if lengths:
                _lengths(of_cell[-1], [r for r in lengths if r.cell == cell], cell)
        _legend(figure, result)
        _same_scale(axes[:, : len(panels)].flat)
        machine = f"{result.system['processor']}, {result.machine.threads} threads"
        figure.text(
            0.995, 0.05 / height, f"{machine}, float32, {result.date}", ha="right",
            color=FAINT, fontsize=8.5,
        )  # fmt: skip
        figure.tight_layout(
            rect=(0, 0.15 / height, 1, 1 - 0.4 / height), w_pad=2.5, h_pad=2.0
        )
        kind = path.suffix[1:].lower()
        atomic.write(
            path,
            lambda file: figure.savefig(file, format=kind, dpi=160, facecolor="white"),
        )


def _cases(result: Result, pass_: str, cell: str) -> list[Case]:
    return list(dict.fromkeys(r.case for r in result.find(pass_, cell=cell)))


def _limits(axis: Any, result: Result, pass_: str, cell: str, named: bool) -> None:
    cases = _cases(result, pass_, cell)
    for i, case in enumerate(cases):
        rows = result.find(pass_, case=case, cell=cell)
        times = {r.library: r.median / r.limit for r in rows if r.median and r.limit}
        for library, aside in _apart(times).items():
            colour, marker = STYLES[library]
            ours = library == OURS
            axis.plot(
                times[library],
                i + aside,
                marker,
                color=colour,
                markersize=9 if ours else 7,
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=4 if ours else 3,
                clip_on=False,
            )
    axis.axvline(1, color=INK, linewidth=1.2, zorder=2)
    axis.set_xscale("log")
    axis.set_title(
        f"{PASS_TITLES[pass_]}: {cell}", loc="left", fontweight="bold", pad=18
    )
    axis.set_xlabel("time over the machine's limit (log scale; less is better)")
    axis.text(
        1, 1.012, "limit", transform=axis.get_xaxis_transform(), ha="center",
        va="bottom", fontsize=8.5, color=INK,
    )  # fmt: skip
    axis.set_yticks(range(len(cases)))
    if named:
        axis.set_yticklabels(f"{case.name}\n{case.shape}" for case in cases)
    else:
        axis.set_yticklabels([])
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.tick_params(length=0)
    _ticks(axis.xaxis)
    axis.grid(axis="x", color=GRID, zorder=0)
    for y in range(len(cases)):
        axis.axhspan(y - 0.5, y + 0.5, color="#f6f8fa" if y % 2 else "white", zorder=0)
    _bare(axis)


def _apart(times: dict[str, float]) -> dict[str, float]:
    """How far each library moves up or down in its band, so that none hides another.

    Ours stays in the middle.
    """
    placed: dict[str, float] = {}
    for library in sorted(times, key=lambda name: (name != OURS, times[name])):
        for aside in (0.0, 0.27, -0.27, 0.4, -0.4):
            near = [
                other
                for other, taken in placed.items()
                if abs(taken - aside) < 0.2
                and abs(math.log10(times[other] / times[library])) < 0.08
            ]
            placed[library] = aside
            if not near:
                break
    return placed


def _lengths(axis: Any, rows: list[Row], cell: str) -> None:
    for library in (UPSTREAM, OURS):
        points = [(r.case.L, 1e3 * r.median) for r in rows if r.library == library]
        if not points:
            continue
        colour, marker = STYLES[library]
        axis.plot(
            *zip(*points, strict=True),
            marker=marker,
            color=colour,
            markersize=8,
            markeredgecolor="white",
            linewidth=1.8,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    _gap(axis, rows)
    title = f"Training over the length: {cell}"
    axis.set_title(title, loc="left", fontweight="bold", pad=18)
    _, N, _, D, H = LENGTH_CASE
    axis.set_xlabel(f"steps L, at N = {N}, D = {D}, H = {H}")
    axis.set_ylabel("milliseconds")
    _ticks(axis.xaxis)
    _ticks(axis.yaxis)
    axis.tick_params(length=0, labelcolor=FAINT)
    axis.grid(color=GRID, zorder=0)
    _bare(axis)


def _gap(axis: Any, rows: list[Row]) -> None:
    """Name the ratio at the longest sequence that both ran."""
    ours = {r.case.L: 1e3 * r.median for r in rows if r.library == OURS and r.median}
    theirs = {r.case.L: 1e3 * r.median for r in rows if r.library != OURS and r.median}
    if not ours.keys() & theirs.keys():
        return
    at = max(ours.keys() & theirs.keys())
    axis.annotate(
        "", (at, ours[at]), (at, theirs[at]),
        arrowprops={"arrowstyle": "-", "color": FAINT, "linestyle": ":", "shrinkA": 7,
                    "shrinkB": 7},
    )  # fmt: skip
    middle = (ours[at] * theirs[at]) ** 0.5
    ratio = theirs[at] / ours[at]
    axis.text(
        0.93 * at, middle, f"{ratio:,.0f} times", ha="right", va="center", color=INK
    )


def _same_scale(axes: Any) -> None:
    """Give the panels of passes one scale, so that they compare."""
    panels = list(axes)
    most = max((axis.get_xlim()[1] for axis in panels), default=1)
    for axis in panels:
        axis.set_xlim(0.8, most)


def _legend(figure: Any, result: Result) -> None:
    from matplotlib.lines import Line2D

    shown = [name for name in LIBRARIES if any(r.library == name for r in result.rows)]
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=STYLES[name][1],
            color=STYLES[name][0],
            markersize=8,
            markeredgecolor="white",
            label="mlx_recurrent" if name == OURS else result.labels.get(name, name),
        )
        for name in shown
    ]
    figure.legend(
        handles=handles,
        loc="upper center",
        ncols=len(handles),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.6,
        fontsize=10.5,
    )


def _ticks(axis: Any) -> None:
    axis.set_major_locator(LogLocator(base=10))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _plain(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _bare(axis: Any) -> None:
    for side in axis.spines.values():
        side.set_visible(False)
