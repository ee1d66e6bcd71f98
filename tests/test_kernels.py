"""The C++ programs in ``tests/kernels``, built here: the kernels and threads alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_import import available_isas

SOURCE = Path(__file__).parent / "kernels"
BUILD = SOURCE.parent.parent / "build" / "kernel_tests"
# Generous: only a program that hangs is to reach it.
SECONDS = 500


def tool(name):
    """A program beside this Python, or else on the path."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=beside + os.pathsep + os.environ.get("PATH", ""))


def run(*command, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **environment},
    )
    print(done.stdout)
    assert done.returncode == 0, f"{command[0]}: exit status {done.returncode}"


@pytest.fixture(scope="module")
def programs():
    """The folder of the programs, built anew where a source changed."""
    names = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    compiler = next(filter(None, (tool(name) for name in names if name)), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    configure = [tool("cmake"), "-S", SOURCE, "-B", BUILD, "-G", "Ninja"]
    run(
        *configure,
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
    )
    run(tool("cmake"), "--build", BUILD)
    return BUILD


@pytest.mark.parametrize("isa", available_isas())
def test_kernels(programs, isa):
    run(programs / "check_kernels", MLX_RECURRENT_ISA=isa)


def test_team(programs):
    run(programs / "check_team")
