"""The C++ programs of this folder: built, and run on each instruction set."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
BUILDS = SOURCE.parents[1] / "build"
# Generous: only a program that hangs is to reach it.
MOST_SECONDS = 1800
# The line that ends a run of check_kernels.
LAST = re.compile(r"^(\w+): (\d+) cases, (\d+) failures", re.MULTILINE)


def tool(name: str) -> str | None:
    """A program beside this Python, or else on the path."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=beside + os.pathsep + os.environ.get("PATH", ""))


def require(name: str, package: str) -> str:
    """A program that must be there; ends the process where it is not.

    Args:
        name (str): The program.
        package (str): Debian's name of what it comes with.
    """
    found = tool(name)
    if found is None:
        sys.exit(f"{name} is not installed (Debian and Ubuntu: apt install {package})")
    return found


def compiler() -> str | None:
    """The C++ compiler that ``CXX`` names, or one of the usual ones."""
    names = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    return next(filter(None, (tool(name) for name in names if name)), None)


def run(*command: object, **environment: str) -> str:
    """What a program prints. It is shown where the program fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=MOST_SECONDS,
        env={**os.environ, **environment},
    )
    if done.returncode:
        print(done.stdout)
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}")
    return done.stdout


def build(
    name: str, *options: str, cxx: str | None = None, target: str = "all"
) -> Path:
    """The folder of the programs, built anew where a source changed.

    Args:
        name (str): Of the folder in ``build``.
        options: For CMake, such as ``-DSANITIZE=thread``.
        cxx (str, optional): The compiler. ``None`` is the usual one.
        target (str, optional): What is built of it. Default: ``"all"``.
    """
    folder = BUILDS / name
    run(
        require("cmake", "cmake"),
        *("-S", SOURCE, "-B", folder, "-G", "Ninja", *options),
        f"-DCMAKE_MAKE_PROGRAM={require('ninja', 'ninja-build')}",
        f"-DCMAKE_CXX_COMPILER={cxx or compiler() or require('g++', 'g++')}",
    )
    run(require("cmake", "cmake"), "--build", folder, "--target", target)
    return folder


class Table:
    """Runs of the programs, a line each as it ends.

    Its :attr:`failed` counts those that found something.
    """

    def __init__(self) -> None:
        self.failed = 0
        print(f"{'what':30} {'cases':>8} {'failures':>8} {'seconds':>8}", flush=True)

    def add(self, what: str, command: Sequence[object], **environment: str) -> None:
        """Run a command and print its line; all that it printed where it failed."""
        begun = time.monotonic()
        # A program that hangs is ended, and has failed.
        done = subprocess.run(
            ["timeout", str(MOST_SECONDS), *(str(word) for word in command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
        )
        seconds = time.monotonic() - begun
        cases, failures = "", "0"
        if last := LAST.search(done.stdout):
            cases, failures = last[2], last[3]
        if done.returncode:
            failures = f"exit {done.returncode}" if failures == "0" else failures
            self.failed += 1
        print(f"{what:30} {cases:>8} {failures:>8} {seconds:8.0f}", flush=True)
        if done.returncode:
            print(done.stdout, flush=True)
