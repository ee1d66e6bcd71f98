"""What a run is asked for, from the command line."""

import argparse
import ctypes.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_recurrent.benchmarks.cases import (
    CASES,
    CELLS,
    PASSES,
    QUICK_CASES,
    SECTIONS,
    Case,
    cells_of,
    named_case,
)
from mlx_recurrent.benchmarks.peers import PEERS, UPSTREAM


@dataclass(frozen=True)
class Options:
    """What a run is asked for; the fields are the options of ``add_options``."""

    sections: list[str]
    cells: list[str]
    cases: list[Case]
    chosen: bool
    peers: list[str]
    rounds: int
    budget: float
    pause: float
    threads: int
    blas: str | None
    csv: Path | None
    picture: Path | None
    report: Path | None
    quick: bool
    routes: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run."""
    _add_work(parser)
    _add_turns(parser)
    _add_files(parser)
    parser.add_argument(
        "--quick", action="store_true", help="few cases and rounds: some minutes"
    )
    parser.add_argument(
        "--routes",
        action="store_true",
        help="in place of the sections: each way that this machine has to run a layer "
        "(on the GPU, on the CPU, there with a BLAS, mlx.nn's loop), and where the "
        "rules chose wrongly; a report to paste into an issue",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    """Add what is measured, and beside whom."""
    sections = "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
    parser.add_argument(
        "--sections",
        type=_names("section", list(SECTIONS)),
        default=list(SECTIONS),
        metavar="A,B",
        help=f"what to measure (default: all). {sections}",
    )
    parser.add_argument(
        "--cells",
        type=_names("cell", list(CELLS)),
        default=list(CELLS),
        metavar="A,B",
        help=f"whose layers to measure: {', '.join(CELLS)} (default: all)",
    )
    parser.add_argument(
        "--case",
        type=_case,
        action="append",
        metavar="N,L,D,H",
        help="a shape, or the name of a case: "
        + ", ".join(f'"{case.name}"' for case in CASES)
        + ". Repeat it for more (default: all of these)",
    )
    parser.add_argument(
        "--peers",
        type=_names("peer", PEERS, empty="none"),
        default=PEERS,
        metavar="A,B",
        help=f"whom to compare with: {', '.join(PEERS)}, or none (default: whichever "
        "are installed)",
    )


def _add_turns(parser: argparse.ArgumentParser) -> None:
    """Add how it is measured."""
    parser.add_argument(
        "--rounds",
        type=_count,
        metavar="N",
        help="turns of each library, at most (default: 11; 3 with --quick)",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="SECONDS",
        help="no further turn for a library that took so long at one row (default: 6; "
        "1 with --quick)",
    )
    parser.add_argument(
        "--pause",
        type=_seconds,
        default=0.02,
        metavar="SECONDS",
        help="between two turns, repeated until the threads of the last library have "
        "stopped spinning (default: 0.02)",
    )
    parser.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="of every library, each on that many cores (default: the usable cores)",
    )
    parser.add_argument(
        "--blas",
        default=openblas(),
        metavar="LIBRARY",
        help="what mlx.nn is given in place of its own BLAS by LD_PRELOAD; '' for "
        "nothing (default: OpenBLAS, where the system has it)",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Add where the result goes."""
    parser.add_argument("--csv", type=_file, metavar="FILE", help="write every figure")
    parser.add_argument("--picture", type=_file, metavar="FILE", help="draw the result")
    parser.add_argument(
        "--report",
        type=_file,
        metavar="FILE",
        help="write the tables in Markdown, with the picture if there is one",
    )


def options_of(parsed: argparse.Namespace, usable_cores: int) -> Options:
    """Return the options, with what was left out filled in.

    Raises:
        ValueError: If more threads are asked for than there are cores, a picture of
            sections that it does not show, or sections that the cells do not have.
    """
    if not any(cells_of(section, parsed.cells) for section in parsed.sections):
        raise ValueError(
            f"argument --cells: {', '.join(parsed.sections)} is of RNN alone, not of "
            f"{', '.join(parsed.cells)}"
        )
    if parsed.picture and not set(parsed.sections) & {*PASSES, "length"}:
        raise ValueError(
            "argument --picture: shows the sections forward, training and length, and "
            "none of them is run"
        )
    if parsed.routes and (parsed.csv or parsed.picture):
        raise ValueError("argument --routes: writes --report alone")
    threads = parsed.threads or usable_cores
    if threads > usable_cores:
        raise ValueError(
            f"argument --threads: must be at most {usable_cores}, the usable cores, "
            f"not {threads}"
        )
    budget = parsed.budget
    if budget is None:
        budget = 1.0 if parsed.quick else 6.0
    return Options(
        sections=parsed.sections,
        cells=parsed.cells,
        cases=list(dict.fromkeys(parsed.case or []))
        or (QUICK_CASES if parsed.quick else CASES),
        chosen=bool(parsed.case),
        peers=parsed.peers,
        rounds=parsed.rounds or (3 if parsed.quick else 11),
        budget=budget,
        pause=parsed.pause,
        threads=threads,
        blas=parsed.blas or None,
        csv=parsed.csv,
        picture=parsed.picture,
        report=parsed.report,
        quick=parsed.quick,
        routes=parsed.routes,
    )


def openblas() -> str | None:
    """Return the library to preload, where this system has it and MLX needs it."""
    if not sys.platform.startswith("linux"):
        return None
    return ctypes.util.find_library("openblas")


def _names(what: str, known: list[str], empty: str = "") -> object:
    def parse(text: str) -> list[str]:
        if empty and text == empty:
            return []
        names = [name.strip() for name in text.split(",")]
        names = [UPSTREAM if name == "mlx" else name for name in names]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"no {what} is named {name!r}; there are {', '.join(known)}"
                )
        return [name for name in known if name in names]

    return parse


def _case(text: str) -> Case:
    try:
        return named_case(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 on, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from 0 on, not {text!r}"
        )
    return seconds


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must be a file in a folder that exists, not {text!r}"
        )
    if not os.access(path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path
