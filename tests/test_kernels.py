"""The C++ programs in ``tests/kernels``, built here: the kernels and threads alone."""

import pytest

from kernels import programs
from test_import import available_isas


@pytest.fixture(scope="module")
def folder():
    if programs.compiler() is None:
        pytest.skip("no C++ compiler")
    return programs.build("kernel_tests")


@pytest.mark.parametrize("isa", available_isas())
def test_kernels(folder, isa):
    print(programs.run(folder / "check_kernels", MLX_RECURRENT_ISA=isa))


@pytest.mark.parametrize("isa", available_isas())
def test_what_a_fuzzer_found(folder, isa):
    corpus = programs.SOURCE / "corpus.txt"
    command = [folder / "check_kernels", "--corpus", corpus]
    print(programs.run(*command, MLX_RECURRENT_ISA=isa))


def test_cores(folder):
    print(programs.run(folder / "check_cores"))


def test_team(folder):
    print(programs.run(folder / "check_team"))
