"""``make sanitize``: the kernels and their threads under sanitizers and valgrind.

Exit status 1 where one of them found anything; nothing is left out: where valgrind is
not installed this ends before it begins.
"""

import argparse
import platform
import sys

from programs import SOURCE, Table, build, require, run

# What valgrind knows of this processor's instructions.
VALGRIND_ISAS = ("avx2", "baseline", "neon")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    text = "random cases, each sanitizer and instruction set (default: %(default)s)"
    parser.add_argument("--cases", type=int, default=1500, metavar="N", help=text)
    text = "the first of them (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=1, metavar="S", help=text)
    options = parser.parse_args()
    if options.cases < 1 or options.seed < 0:
        parser.error("--cases must be at least 1 and --seed at least 0")
    if platform.system() != "Linux":
        parser.error("valgrind and GCC's sanitizers are those of Linux")
    gcc, valgrind = require("g++", "g++"), require("valgrind", "valgrind")

    def random(cases: int) -> list[object]:
        return ["--random", max(1, cases), "--seed", options.seed]

    plain = build("kernel_tests")
    isas = run(plain / "check_kernels", "--isas").strip().split(", ")
    table = Table()
    for name in ("address,undefined", "thread"):
        folder = build(f"sanitize_{name}", f"-DSANITIZE={name}", cxx=gcc)
        for isa in isas:
            program, force = folder / "check_kernels", {"MLX_RECURRENT_ISA": isa}
            command = [program, "--corpus", SOURCE / "corpus.txt"]
            table.add(f"{name}, {isa}, corpus", command, **force)
            if name != "thread":  # most of the list is for one thread
                table.add(f"{name}, {isa}, list", [program], **force)
            command = [program, *random(options.cases)]
            table.add(f"{name}, {isa}, random", command, **force)
        table.add(f"{name}, cores", [folder / "check_cores"])
        table.add(f"{name}, team", [folder / "check_team"])
    # Threads that wait for work at the end are no leak.
    memcheck = [valgrind, "--quiet", "--error-exitcode=9", "--leak-check=full"]
    memcheck += ["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]
    for isa in (isa for isa in isas if isa in VALGRIND_ISAS):
        # It takes 30 times as long.
        command = [*memcheck, plain / "check_kernels", *random(options.cases // 10)]
        table.add(f"valgrind, {isa}, random", command, MLX_RECURRENT_ISA=isa)
    print(f"{table.failed} failed" if table.failed else "nothing was found")
    return int(table.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
