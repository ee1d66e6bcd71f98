"""``make fuzz``: the long run. Prints what fails in the form of the corpus."""

import argparse
import os
import sys
import time
from itertools import islice

from tqdm import tqdm

from fuzz.cases import CALLS, LEFT_OUT, numbers_of
from fuzz.workers import run


def main():
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument(
        "--calls", nargs="+", choices=CALLS, default=list(CALLS), metavar="CALL"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print(f"--cases {options.cases} --seed {options.seed} --first {options.first}")
    numbers = islice(numbers_of(options.calls, options.first), options.cases)
    with tqdm(total=options.cases, unit="case", mininterval=1.0) as bar:

        def on_case(finding):
            bar.update()
            if finding is not None:
                bar.write(f"\n    # {finding.what}\n    {finding.case!r},")
                bar.write(finding.where, end="")

        findings = run(((options.seed, n) for n in numbers), options.processes, on_case)
    without = ", ".join(f"{a} ({b} is not installed)" for a, b in LEFT_OUT.items())
    without = f"; left out: {without}" if without else ""
    print(f"{options.cases} cases, {len(findings)} failed{without}")
    if findings:
        print("Put them, once mended, into tests/fuzz/corpus.py.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
