"""The routes that a layer can take on this machine, timed, and the rules' choices.

A route is a device and what multiplies there. Which a call takes is decided by two
rules of sizes, of its place and of its products: where a run finds another route
faster, it says so, in a report to paste into an issue.
"""

import datetime
import os
import shlex
import sys
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx

import mlx_recurrent
from mlx_recurrent import _native, atomic
from mlx_recurrent.benchmarks import gate, report, run
from mlx_recurrent.benchmarks.cases import CELLS, DECODE, PASSES, Case, Work
from mlx_recurrent.benchmarks.options import Options
from mlx_recurrent.benchmarks.peers import OURS, UPSTREAM
from mlx_recurrent.benchmarks.process import Library, LibraryError, take_turns
from mlx_recurrent.benchmarks.table import Table, milliseconds
from mlx_recurrent.functional import devices, placement

GPU, KERNELS, BLAS = "GPU, composed", "CPU, kernels", "CPU, kernels and BLAS"
GPU_UPSTREAM, CPU_UPSTREAM = "GPU, mlx.nn", "CPU, mlx.nn"
# What is called wrong is slower by more than a run's noise.
NOISE = 1.1


class Route(NamedTuple):
    """A way to run a layer.

    Args:
        name (str): Its name in the report.
        library (str): Whose layer.
        device (str): ``"cpu"``, or ``""`` for MLX's default.
        environment (dict): What makes it this route.
    """

    name: str
    library: str
    device: str
    environment: dict[str, str]


class Found(NamedTuple):
    """What a pass took by each route, in seconds, and what the rules choose.

    Args:
        cell (str): The cell.
        case (Case): The shapes.
        kind (str): The pass.
        seconds (dict): By the name of the route; ``None`` where it was wrong.
        place (str): What the rule chooses on an Apple GPU: ``"cpu"`` or ``"gpu"``.
        by_blas (bool): Whether products of it go through a BLAS.
    """

    cell: str
    case: Case
    kind: str
    seconds: dict[str, float | None]
    place: str
    by_blas: bool

    @property
    def name(self) -> str:
        """The row in words."""
        return f"{self.cell}, {self.case.name} ({self.case.shape}), {self.kind}"


def routes(gpu: bool, blas: str) -> list[Route]:
    """Return the routes of a machine.

    Args:
        gpu (bool): Whether MLX's default device is a GPU.
        blas (str): The BLAS of the process, or nothing.
    """
    found = [Route(KERNELS, OURS, "cpu", {"MLX_RECURRENT_BLAS": "none"})]
    if blas:
        found.append(Route(BLAS, OURS, "cpu", {"MLX_RECURRENT_BLAS": blas}))
    found.append(Route(CPU_UPSTREAM, UPSTREAM, "cpu", {}))
    if gpu:
        stay = {"MLX_RECURRENT_PLACEMENT": "stay"}
        found += [Route(GPU, OURS, "", stay), Route(GPU_UPSTREAM, UPSTREAM, "", {})]
    return found


def wrong_choices(found: Found, crossing: float) -> list[str]:
    """Return where the rules chose another route than the fastest.

    Args:
        found (Found): What was measured.
        crossing (float): Seconds from the GPU to the CPU and back.
    """
    said = []
    kernels, blas = found.seconds.get(KERNELS), found.seconds.get(BLAS)
    if found.by_blas and kernels and blas and blas > NOISE * kernels:
        said.append(
            f"{found.name}: its products go through the BLAS, which takes "
            f"{blas / kernels:.2f} times as long as the kernels"
        )
    gpu, cpu = found.seconds.get(GPU), blas or kernels
    if not gpu or not cpu:
        return said
    # A derivative crosses twice.
    cpu += crossing * (2 if found.kind == "training" else 1)
    chosen, other = (cpu, gpu) if found.place == "cpu" else (gpu, cpu)
    if chosen > NOISE * other:
        there = "GPU" if found.place == "cpu" else "CPU"
        said.append(
            f"{found.name}: it runs on the {found.place.upper()}, which takes "
            f"{chosen / other:.2f} times as long as the {there}"
        )
    return said


def measure(options: Options, arguments: list[str]) -> int:
    """Time every route, print the report, and write it where the options say.

    Args:
        options (Options): What is asked for.
        arguments (list of str): The command line, for the report.

    Returns:
        int: 0, or 1 where a result of ours was wrong or none.
    """
    mlx_recurrent.set_num_threads(options.threads)
    gpu = mx.default_device() == mx.gpu
    ways = routes(gpu, _native.blas())
    libraries = {
        way.name: Library(
            way.library,
            options.threads,
            device=way.device,
            environment=way.environment,
        )
        for way in ways
    }
    found: list[Found] = []
    wrong: list[str] = []
    try:
        crossing = _crossing(libraries[GPU], options) if gpu else 0.0
        for cell in options.cells:
            for case in options.cases:
                for kind in PASSES:
                    row = _row(Work(kind, case, cell=cell), libraries, options, wrong)
                    found.append(row)
    finally:
        for library in libraries.values():
            library.close()
    text = _report(options, arguments, found, wrong, crossing)
    print(text)
    if options.report:
        path = options.report
        atomic.write(path, lambda file: file.write(text.encode()))
    return int(bool(wrong))


def _crossing(library: Library, options: Options) -> float:
    """What it takes from the GPU to the CPU and back, beside the operations."""
    library.prepare("crossing", Work("crossing", DECODE))
    (rounds,) = take_turns([(library, "crossing")], 9, float("inf"), options.pause)
    library.forget()
    return max(0.0, min(rounds))


def _row(
    work: Work, libraries: dict[str, Library], options: Options, wrong: list[str]
) -> Found:
    """Time a pass by every route whose result is right."""
    print(f"  {work.cell}, {work.case.name}, {work.kind}", file=sys.stderr, flush=True)
    skipped = work.kind == "training" and work.case.L > work.layer.upstream_length
    seconds: dict[str, float | None] = dict.fromkeys(libraries)
    _, base = libraries[CPU_UPSTREAM].prepare("base", work, save=True)
    ready = []
    for name, library in libraries.items():
        if skipped and library.name == UPSTREAM:
            continue
        try:
            _, got = library.prepare("pass", work, save=True)
            of_cpu = name in (KERNELS, BLAS)
            why = (
                gate.ours_is_wrong(got, base, work)
                if of_cpu
                else gate.peer_is_wrong(got, work, base)
            )
        except LibraryError as error:
            why = f"failed: {error}"
        if not why:
            ready.append((name, library))
        elif library.name == OURS:
            wrong.append(f"{work.cell}, {work.case.name}, {work.kind}, {name}: {why}")
    turns = [(library, "pass") for _, library in ready]
    medians = take_turns(turns, options.rounds, options.budget, options.pause)
    for (name, _), rounds in zip(ready, medians, strict=True):
        seconds[name] = sorted(rounds)[len(rounds) // 2]
    for library in libraries.values():
        library.forget()
    return Found(
        work.cell, work.case, work.kind, seconds, _place(work), _goes_by_blas(work)
    )


def _place(work: Work) -> str:
    """Where the rule would have it on an Apple GPU."""
    _, N, L, D, H = work.case
    sizes = placement.Work(work.cell.lower(), N, L, D, H, CELLS[work.cell].gates)
    found = placement.costs(sizes)
    return "cpu" if L > 1 and found.cpu < found.gpu else "gpu"


def _goes_by_blas(work: Work) -> bool:
    _, N, L, D, H = work.case
    cell = "tanh" if work.cell == "RNN" else work.cell.lower()
    return bool(_native.partition(N, L, D, H, mx.float32, cell)["by_blas"])


def _report(
    options: Options,
    arguments: list[str],
    found: list[Found],
    wrong: list[str],
    crossing: float,
) -> str:
    """The report, in Markdown."""
    names = [name for name in found[0].seconds] if found else []
    rows = []
    for row in found:
        times = (row.seconds[name] for name in names)
        figures = ["-" if t is None else milliseconds(t) for t in times]
        of_blas = "yes" if row.by_blas else "no"
        shown = [row.cell, row.case.name, row.case.shape, row.kind]
        rows.append([*shown, *figures, row.place.upper(), of_blas])
    command = shlex.join(["mlx-recurrent", *arguments])
    text = (
        f"`{command}` on {datetime.date.today().isoformat()}, milliseconds, float32, "
        "medians. The last columns are the rules' choices: where an Apple GPU's call "
        "runs, and whether products of it go through the BLAS."
    )
    header = ["cell", "case", "N, L, D, H", "pass", *names, "place", "BLAS"]
    parts = [report.markdown(Table("Routes", text, header, rows, names=4))]
    system = run.system(replace(options, blas=None), [])
    system["devices"] = devices.here().gpu or "the CPU alone"
    system["default device"] = str(mx.default_device().type).rpartition(".")[2]
    system["BLAS"] = _native.blas() or "none"
    system["fast fences"] = os.environ.get("MLX_METAL_FAST_SYNCH", "0")
    if crossing:
        system["from the GPU to the CPU and back"] = f"{1e6 * crossing:.0f} us"
    lines = [[name, value] for name, value in system.items()]
    parts.append(
        report.markdown(Table("Machine", "", ["what", "which"], lines, names=2))
    )
    said = [line for row in found for line in wrong_choices(row, crossing)]
    parts.append("## Where the rules chose wrongly\n")
    parts.append("\n".join(f"- {line}." for line in said) or "Nowhere.")
    if wrong:
        parts.append("\n## Wrong results, which were not timed\n")
        parts.append("\n".join(f"- {line}." for line in wrong))
    return "\n".join(parts) + "\n"
