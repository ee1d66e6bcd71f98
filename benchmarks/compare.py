"""Compare this package with ``mlx.nn.RNN``, side by side on this machine.

    python benchmarks/compare.py [--rounds N] [--budget SECONDS] [--blas LIBRARY]
    python benchmarks/compare.py --lengths

Each library runs in a process of its own, the rounds of both in turn; the medians and
their ratio are printed. A result is checked against the float64 reference of the tests,
by the tests' rule, before it is timed. On Linux, where MLX's wheel carries reference
BLAS, ``mlx.nn.RNN`` is given OpenBLAS by ``LD_PRELOAD`` (Debian and Ubuntu:
``apt install libopenblas0-pthread``): the best that a user can get from it.
"""

import argparse
import ctypes.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from cases import CASES, LENGTH_CASE, LENGTHS, LONGEST, Case

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import reference  # noqa: E402
import tolerances  # noqa: E402

OURS, UPSTREAM = "mlx_recurrent", "mlx.nn"


class Library:
    """A library in a process of its own."""

    def __init__(self, package: str, preload: str | None = None) -> None:
        environment = dict(os.environ)
        if preload:
            environment["LD_PRELOAD"] = preload
        self.package = package
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: object) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {self.package} ended early")
        return json.loads(answer)

    def prepare(self, case: Case, pass_: str, save: Path | None) -> dict:
        self.ask(case=list(case), save=str(save) if save else None, **{"pass": pass_})
        if save is None:
            return {}
        with np.load(save) as saved:
            return {name: mx.array(saved[name]) for name in saved.files}

    def seconds(self) -> float:
        return self.ask(run=True)["seconds"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def truth(case: Case, pass_: str) -> dict[str, np.ndarray]:
    """The same result from the tests' float64 reference."""
    arrays = case.arrays()
    cotangent = arrays.pop("cotangent")
    if pass_ == "forward":
        return {"h": reference.rnn(**arrays)}
    _, dWxh, dWhh, dbias, _ = reference.rnn_grad(
        **arrays, hidden=None, d_states=cotangent
    )
    return {"Wxh": dWxh, "Whh": dWhh, "bias": dbias}


def openblas() -> str | None:
    """The library to preload, if this system has it."""
    return ctypes.util.find_library("openblas") if sys.platform == "linux" else None


def compare(rounds: int, budget: int, blas: str | None) -> None:
    """Print a row for each case and pass."""
    name = "mlx.nn.RNN" + (f" with {blas}" if blas else "")
    print(f"{OURS}.RNN against {name}, float32, medians in milliseconds\n")
    print("| case | N, L, D, H | pass | mlx.nn.RNN | ours | ratio | rounds |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    slower = 0
    for case in CASES:
        for pass_ in ("forward", "training"):
            ours, upstream = Library(OURS), Library(UPSTREAM, blas)
            if blas and not upstream.ask(loaded=Path(blas).name)["loaded"]:
                raise SystemExit(f"--blas: {blas} could not be preloaded")
            with tempfile.TemporaryDirectory() as folder:
                got = ours.prepare(case, pass_, Path(folder, "ours.npz"))
                theirs = upstream.prepare(case, pass_, Path(folder, "theirs.npz"))
            tolerances.all_close(got, theirs, truth(case, pass_))
            times: dict[str, list[float]] = {OURS: [], UPSTREAM: []}
            while len(times[OURS]) < rounds and sum(times[UPSTREAM]) < budget:
                times[UPSTREAM].append(upstream.seconds())
                times[OURS].append(ours.seconds())
            ours.close()
            upstream.close()
            a, b = (1e3 * statistics.median(times[p]) for p in (UPSTREAM, OURS))
            slower += b >= a
            shape = ", ".join(map(str, case[1:]))
            print(
                f"| {case.name} | {shape} | {pass_} | {a:.2f} | {b:.2f} | {a / b:.1f} "
                f"| {len(times[OURS])} |",
                flush=True,
            )
    print(f"\nrows where ours is not faster: {slower}")


def lengths(rounds: int) -> None:
    """Print how a training step's time grows with the length, and the longest one."""
    cases = [LENGTH_CASE._replace(L=L) for L in LENGTHS]
    libraries = [Library(OURS) for _ in cases]
    times: list[list[float]] = [[] for _ in cases]
    for library, case in zip(libraries, cases, strict=True):
        library.prepare(case, "training", None)
    for _ in range(rounds):
        for library, seconds in zip(libraries, times, strict=True):
            seconds.append(library.seconds())
    for library in libraries:
        library.close()
    short, long = (statistics.median(seconds) for seconds in times)
    N, D, H = LENGTH_CASE.N, LENGTH_CASE.D, LENGTH_CASE.H
    print(f"training at N={N}, D={D}, H={H}, float32:")
    for case, median in zip(cases, (short, long), strict=True):
        print(f"  L = {case.L:>9,}: {1e3 * median:9.2f} ms")
    print(
        f"  ratio {long / short:.2f} for {LENGTHS[1] / LENGTHS[0]:.0f} times the steps"
    )
    library = Library(OURS)
    before = library.ask(peak=True)["bytes"]
    library.prepare(LENGTH_CASE._replace(L=LONGEST), "training", None)
    seconds = library.seconds()
    peak = library.ask(peak=True)["bytes"]
    library.close()
    print(
        f"  L = {LONGEST:>9,}: {1e3 * seconds:9.2f} ms, peak memory of the process "
        f"{peak / 1e9:.2f} GB ({before / 1e9:.2f} GB before)"
    )


def count(text: str) -> int:
    """An argument type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer from 1 on, not {text!r}")
    return int(text)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=count, default=15, help="at most this many")
    parser.add_argument(
        "--budget",
        type=count,
        default=20,
        help="seconds that the slower library may take for one row",
    )
    parser.add_argument("--blas", default=openblas(), help="the library to preload")
    parser.add_argument("--lengths", action="store_true", help="time over length only")
    options = parser.parse_args()
    if options.lengths:
        lengths(options.rounds)
    else:
        compare(options.rounds, options.budget, options.blas)


if __name__ == "__main__":
    main()
