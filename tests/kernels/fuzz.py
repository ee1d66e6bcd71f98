"""``make fuzz-kernels``: libFuzzer chooses the kernels' cases, by what they reach.

It starts from the corpus, ``corpus.txt``, an input a line as hexadecimal digits, which
the tests run too (``check_kernels --corpus``), and ``make sanitize``. The guards, the
reference and AddressSanitizer judge. ``--keep`` writes the corpus anew: the fewest
inputs that reach all that was reached. Exit status 1 where a case fails; the line that
it prints repeats the case. Where Clang is not installed, cases are random ones, under
GCC's sanitizers.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from programs import SOURCE, Table, build, require, tool

CORPUS = SOURCE / "corpus.txt"
# More bytes than the choices of a case take.
MOST_BYTES = 128


def unpack(folder: Path) -> None:
    """The corpus as libFuzzer reads it: a file for each input."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for line in CORPUS.read_text().split() if CORPUS.exists() else ():
        data = bytes.fromhex(line)
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def pack(folder: Path) -> None:
    lines = sorted(file.read_bytes().hex() for file in folder.iterdir())
    temporary = CORPUS.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines if line))
    temporary.replace(CORPUS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    text = "cases to run (default: %(default)s)"
    parser.add_argument("--runs", type=int, default=20_000, metavar="N", help=text)
    text = "of the choices (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="S", help=text)
    parser.add_argument("--keep", action="store_true", help="write the corpus anew")
    options = parser.parse_args()
    if options.runs < 1 or options.seed < 1:
        parser.error("--runs and --seed must be at least 1")
    if tool("clang++") is None:
        if options.keep:
            require("clang++", "clang libclang-rt-dev")
        print("clang++ is not installed: random cases, under GCC's sanitizers")
        sanitizers = "address,undefined"
        sanitize = f"-DSANITIZE={sanitizers}"
        folder = build(f"sanitize_{sanitizers}", sanitize, cxx=require("g++", "g++"))
        table = Table()
        program = folder / "check_kernels"
        table.add("corpus", [program, "--corpus", CORPUS])
        random = ["--random", options.runs, "--seed", options.seed]
        table.add("random", [program, *random])
        return int(table.failed > 0)

    options_of_build = ("-DFUZZ=ON", "-DSANITIZE=address", "-DKERNELS_OPTIMIZE=-O1")
    name = "fuzz_kernels"
    folder = build(name, *options_of_build, cxx=tool("clang++"), target=name)
    program, corpus = folder / name, folder / "corpus"
    unpack(corpus)
    limits = [f"-max_len={MOST_BYTES}", "-timeout=120", f"-seed={options.seed}"]
    limits.append("-rss_limit_mb=8192")  # the sanitizer keeps what was freed
    status = subprocess.run(
        [
            *(program, corpus, f"-runs={options.runs}", *limits),
            *("-print_final_stats=1", f"-artifact_prefix={folder}{os.sep}"),
        ]
    ).returncode
    if status == 0 and options.keep:
        smallest = folder / "smallest"
        shutil.rmtree(smallest, ignore_errors=True)
        smallest.mkdir()
        merge = ("-set_cover_merge=1", "-use_counters=0")
        subprocess.run([program, *merge, *limits, smallest, corpus], check=True)
        pack(smallest)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
