"""``make soak``: the memory of a process over 100,000 calls of each kind.

The work is that of ``test_leaks.py``, ten times as long and more, each kind in a
process of its own. Fails if what is held grew, from a tenth of the calls to the last,
by more than ``tolerances.py`` allows.
"""

import argparse
import multiprocessing
import sys
import time

import mlx.core as mx

from test_leaks import WORK, held
from tolerances import ACTIVE, RESIDENT

KINDS = ["forward", "training", "training_compiled", "streams"]
TENTHS = [1, 5, 10]


def soak(name, calls):
    """Print what is held on the way; exit with 1 if it grew."""
    mx.set_default_device(mx.cpu)
    work = WORK[name][0]()
    start = time.perf_counter()
    seen, done = [], 0
    for tenths in TENTHS:
        for _ in range(done, calls * tenths // 10):
            work()
        done = calls * tenths // 10
        active, resident = held()
        seen.append((active, resident))
        print(
            f"{name:>24} {done:>9,} {resident / 1024:>12,.0f} KiB {active:>8,} B "
            f"{time.perf_counter() - start:>6.0f} s",
            flush=True,
        )
    grew = [last - first for first, last in zip(seen[0], seen[-1], strict=True)]
    for what, by, bound in zip(
        ("MLX's arrays", "the process"), grew, (ACTIVE, RESIDENT), strict=True
    ):
        if by > bound:
            sys.exit(f"{name}: {what} grew by {by:,} bytes")


def main():
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="kind", help=", ".join(WORK))
    parser.add_argument("--calls", type=int, default=100_000)
    options = parser.parse_args()
    kinds = options.kinds or KINDS
    if unknown := [kind for kind in kinds if kind not in WORK]:
        parser.error(f"no such kind: {', '.join(unknown)}")
    if options.calls < 10:
        parser.error(f"--calls must be at least 10, but is {options.calls}")
    print(f"{'kind':>24} {'calls':>9} {'resident':>16} {'of MLX':>10} {'time':>8}")
    failed = 0
    for kind in kinds:
        process = multiprocessing.get_context("spawn").Process(
            target=soak, args=(kind, options.calls)
        )
        process.start()
        process.join()
        failed += process.exitcode != 0
    print(
        f"{len(kinds)} kinds, {failed} failed (from 10 % of the calls to the last the "
        f"process may grow by {RESIDENT:,} bytes, MLX's arrays by {ACTIVE:,})"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
