"""A run of the benchmark, from its options to its exit code."""

import datetime
import importlib
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import mlx_recurrent
from mlx_recurrent import _native
from mlx_recurrent.benchmarks import machine, report, sections
from mlx_recurrent.benchmarks.cases import DECODE, Work, cells_of
from mlx_recurrent.benchmarks.options import Options
from mlx_recurrent.benchmarks.peers import LIBRARIES, OURS, PEERS, UPSTREAM
from mlx_recurrent.benchmarks.process import Library, LibraryError, take_turns
from mlx_recurrent.benchmarks.result import Result
from mlx_recurrent.benchmarks.tables import TABLES, machine_tables


def run(options: Options, arguments: list[str]) -> int:
    """Measure, print and write what the options ask for.

    Args:
        options (Options): What is asked for.
        arguments (list of str): The command line, for the report.

    Returns:
        int: 0, or 1 where a result of ours was wrong or none, or a file could not be
            written.
    """
    if options.picture:
        # Before the minutes that it takes, not after.
        importlib.import_module("mlx_recurrent.benchmarks.picture")
    start = time.perf_counter()
    mlx_recurrent.set_num_threads(options.threads)
    libraries = {
        name: Library(name, options.threads, options.blas if name == UPSTREAM else None)
        for name in LIBRARIES
    }
    compared, absent = {}, {}
    for name, library in libraries.items():
        missing = library.missing()
        if missing:
            absent[LIBRARIES[name].label] = f"not installed (no module {missing})"
        elif name == OURS or name in options.peers:
            compared[name] = library.label
        elif name in PEERS:
            absent[LIBRARIES[name].label] = "not asked for"
    command = shlex.join(["mlx-recurrent", *arguments])
    date = datetime.date.today().isoformat()
    print(f"{command}\n\nmeasuring the machine", file=sys.stderr, flush=True)
    result = Result(
        command=command,
        date=date,
        system=system(options, [libraries[name] for name in compared]),
        labels=compared,
        absent=absent,
        machine=best_of_machine(options, libraries[OURS]),
    )
    state = sections.Run(options, libraries, result)
    print(report.terminal(machine_tables(result)), flush=True)
    try:
        for section in options.sections:
            for cell in cells_of(section, options.cells):
                try:
                    sections.RUN[section](state, cell)
                except LibraryError as error:
                    # The others go on: a run takes minutes.
                    state.failed = True
                    print(f"{section}, {cell} ended early: {error}", file=sys.stderr)
                    result.drop(section, cell)
            if result.find(section):
                print(report.terminal(TABLES[section](result)), flush=True)
        # Once more: whoever else used the machine at first may be gone.
        again = best_of_machine(options, libraries[OURS])
        result.machine = result.machine.better(again)
        result.set_limits()
    finally:
        for library in libraries.values():
            library.close()
    minutes = (time.perf_counter() - start) / 60
    result.system["the run"] = f"{minutes:.1f} minutes"
    unwritten = not write(result, options)
    if state.failed:
        print("A result of this package is wrong or missing.", file=sys.stderr)
    return int(state.failed or unwritten)


def write(result: Result, options: Options) -> bool:
    """Write the files that the options ask for; return whether all could be."""

    def draw(path: Path) -> None:
        from mlx_recurrent.benchmarks import picture

        picture.draw(result, path)

    writers: list[tuple[Path | None, Callable[[Path], None]]] = [
        (options.csv, lambda path: report.write_csv(result, path)),
        (options.picture, draw),
        (
            options.report,
            lambda path: report.write_markdown(result, path, options.picture),
        ),
    ]
    written = True
    for path, write_to in writers:
        if path is None:
            continue
        try:
            write_to(path)
        except OSError as error:
            # The others hold what took minutes to measure.
            written = False
            print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
        else:
            print(f"wrote {path}")
    return written


def best_of_machine(options: Options, library: Library) -> machine.Machine:
    """The machine's best figures over a second or two."""
    evaluation = evaluation_seconds(library, options.pause)
    best = machine.measure(options.threads, evaluation)
    for _ in range(1 if options.quick else 3):
        time.sleep(0.1)
        best = best.better(machine.measure(options.threads, evaluation))
    return best


def evaluation_seconds(library: Library, pause: float) -> float:
    """The least median time of an ``mx.eval`` of an addition over some turns."""
    library.prepare("addition", Work("addition", DECODE))
    (medians,) = take_turns([(library, "addition")], 9, float("inf"), pause)
    library.forget()
    return min(medians)


def system(options: Options, libraries: list[Library]) -> dict[str, str]:
    """The machine and the versions, by name."""
    found = {
        "processor": machine.processor(),
        "cores": f"{options.threads} of {_native.usable_cores()}, as many threads",
        "instruction set": _native.isa(),
        "system": _system_name(),
        "Python": platform.python_version(),
        "mlx_recurrent": mlx_recurrent.__version__,
        "MLX": version("mlx"),
        "NumPy": version("numpy"),
        "rounds": f"at most {options.rounds} of each library, interleaved",
    }
    for library in libraries:
        if library.name not in (OURS, UPSTREAM):
            found[library.label] = library.version()
    if options.blas:
        found["mlx.nn with"] = options.blas
    return found


def _system_name() -> str:
    try:
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip('"')
    except OSError:
        pass
    return f"{platform.system()} {platform.release()}"
