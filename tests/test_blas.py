"""Large products by a BLAS: which one, which products, and that they are right."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_recurrent import RNN, _native

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A stand-in for a BLAS."""
    compiler = shutil.which("cc") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no compiler for the stand-in")
    path = tmp_path_factory.mktemp("blas") / "libstandin.so"
    source = str(HERE / "stand_in_blas.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", source, "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def run(*arguments, **environment):
    """Python in these tests' folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLX_RECURRENT_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )


def printed(code, **environment):
    result = run("-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# Every option, cell, transformation and layer, in both directions.
TESTS = {
    "options": ("test_option_combinations.py", "-k", "not (pair or transforms)"),
    "shapes": ("test_forward.py", "test_gradients.py", "-k", "shapes or layouts"),
    "cells": ("test_cells.py",),
    "transformations": ("test_transforms.py", "test_compile.py", "test_step.py"),
    "networks": (
        "test_two_streams.py",
        "test_stack.py",
        "-k",
        "networks or Options or bidirectional",
    ),
}


@pytest.mark.parametrize("tests", TESTS)
def test_all_products_by_a_blas(library, tests):
    """The tests of these files, with products of any size through the stand-in."""
    environment = {"MLX_RECURRENT_BLAS": str(library), "MLX_RECURRENT_BLAS_ALWAYS": "1"}
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = run(*command, *TESTS[tests], **environment)
    assert result.returncode == 0, result.stdout[-4000:]


AT_ITS_SIZES = """
import ctypes, os, sys
import mlx.core as mx
import numpy as np
import mlx_recurrent
from cells import CELLS
from optional import problem

mlx_recurrent.set_num_threads(1)
library = os.environ.get("MLX_RECURRENT_BLAS")
counts = library and hasattr(ctypes.CDLL(library), "count_of_calls")
count = ctypes.CDLL(library).count_of_calls if counts else lambda: 0
for name in ("rnn", "gru", "lstm"):
    for lead, L, D, H, dtype, products in (
        ((64,), 5, 70, 130, mx.float32, 2),
        ((64,), 5, 70, 130, mx.bfloat16, 2),
        ((2,), 65, 70, 130, mx.float32, 1),
        ((1,), 3, 20, 20, mx.float32, 0),
        ((64,), 2, 70, 130, mx.float64, 0),
    ):
        rng = np.random.default_rng(5)
        p = problem(rng, lead, L, D, H, of=name, dtype=dtype)
        p.return_state = False
        path = CELLS[name].paths["native"]
        layer = CELLS[name].layer(D, H)
        layer.set_dtype(dtype)
        plan = layer.plan(p.arrays["x"])
        said = plan.by_blas or ""
        found = ("projection" in said) + ("step" in said)
        assert found == (products if library else 0), (name, plan)
        assert not found or library in str(plan)
        before = count()
        p.check(p(path))
        p.check_gradients(lambda *a: p(path, *a), p.cotangents())
        assert not counts or (count() > before) == (products > 0), (name, lead)
print("right")
"""


def test_the_rule_of_sizes(library):
    """Products that are large enough go through it, and no others; plan says which."""
    assert printed(AT_ITS_SIZES, MLX_RECURRENT_BLAS=str(library)) == "right"


def bundled():
    """The BLAS of MLX's wheel for Linux."""
    folder = Path(mx.__file__).parent.parent / "mlx_cpu.libs"
    return next(map(str, folder.glob("libblas-*")), None)


@pytest.mark.skipif(bundled() is None, reason="MLX has no BLAS in a file of its own")
def test_the_one_of_mlx():
    assert printed(AT_ITS_SIZES, MLX_RECURRENT_BLAS=bundled()) == "right"


def test_the_boundaries_of_the_rule(library):
    """What is less than 2**20 in all or 32 on a side is the kernels'."""
    code = """
import mlx.core as mx
from mlx_recurrent import _native

def asked(N, L, D, H, dtype=mx.float32):
    _native_set(1)
    return _native.partition(N, L, D, H, dtype)["by_blas"]

_native_set = _native.set_num_threads
both = ["the projection", "each step's"]
assert asked(64, 10, 128, 128) == both
assert asked(63, 10, 128, 128) == [both[0]]  # of 256 rows at a time
assert asked(32, 10, 31, 1024) == [both[1]]
assert asked(31, 10, 1024, 1024) == [both[0]]
assert asked(1, 256, 64, 64) == [both[0]]
assert asked(1, 255, 64, 64) == []
assert asked(1, 1, 4096, 4096) == []
assert asked(64, 10, 128, 128, mx.float64) == []
assert asked(64, 10, 128, 128, mx.float16) == both
assert asked(0, 10, 128, 128) == asked(64, 0, 128, 128)[:0] == []
print("right")
"""
    assert printed(code, MLX_RECURRENT_BLAS=str(library)) == "right"


ASK = "from mlx_recurrent import _native; print(_native.blas() or 'none')"


def test_none_by_default_but_on_macos(library):
    default = "Accelerate" if sys.platform == "darwin" else "none"
    assert default in printed(ASK)
    assert default in printed(ASK, MLX_RECURRENT_BLAS="")
    assert printed(ASK, MLX_RECURRENT_BLAS="none") == "none"
    assert printed(ASK, MLX_RECURRENT_BLAS=str(library)) == str(library)


WRONG = {
    "no file": ("/nowhere/libblas.so", ""),
    "a folder": (str(HERE), ""),
    "no library": (__file__, ""),
    "another library": (None, "void other(void) {}"),
    "wrong products": (None, "void cblas_sgemm(int order) {}"),
}
USES = {
    "a layer": "RNN(3, 4)(mx.zeros((2, 5, 3)))",
    "plan": "LSTM(3, 4).plan(mx.zeros((2, 5, 3)))",
    "a product": "matmul(mx.zeros((2, 3)), mx.zeros((4, 3)))",
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_blas(tmp_path, kind):
    """Python's error at the first use, which names the variable; doctor says it too."""
    path, text = WRONG[kind]
    if path is None:
        compiler = shutil.which("cc") or shutil.which("c++")
        if compiler is None:
            pytest.skip("there is no compiler for the stand-in")
        path = str(tmp_path / "libwrong.so")
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path]
        subprocess.run(command, check=True, input=text, text=True)
    code = "import mlx.core as mx\nfrom mlx_recurrent import *\n"
    for use in USES.values():
        code += f"try:\n    {use}\n    print('nothing')\n"
        code += "except RuntimeError as error:\n    print(error)\n"
    lines = printed(code, MLX_RECURRENT_BLAS=path).splitlines()
    assert len(lines) == len(USES)
    for line in lines:
        assert line.startswith("The environment variable MLX_RECURRENT_BLAS must be")
        assert path in line and line.endswith(".")
    doctor = run("-m", "mlx_recurrent", "doctor", MLX_RECURRENT_BLAS=path)
    assert doctor.returncode == 1 and lines[0] in doctor.stdout, doctor.stdout


def test_doctor_names_it(library):
    found = printed(ASK, MLX_RECURRENT_BLAS=str(library))
    doctor = run("-m", "mlx_recurrent", "doctor", MLX_RECURRENT_BLAS=found)
    assert str(library) in doctor.stdout and doctor.returncode == 0, doctor.stdout


def test_streams_do_without(library):
    """Bits do not depend on how a sequence is cut, so sizes may not decide."""
    code = """
import numpy as np
from mlx_recurrent import GRU
import ctypes, os
count = ctypes.CDLL(os.environ["MLX_RECURRENT_BLAS"]).count_of_calls
stream = GRU(64, 128).stream(np.zeros((64, 128), np.float32))
x = np.random.default_rng(0).standard_normal((64, 20, 64), np.float32)
before = count()
whole = stream(x)
stream.reset(np.zeros((64, 128), np.float32))
parts = np.concatenate([stream(x[:, :7]), stream(x[:, 7:])], 1)
print(count() == before and (whole == parts).all())
"""
    assert printed(code, MLX_RECURRENT_BLAS=str(library)) == "True"


def test_equal_calls_are_equal(library):
    """With one number of threads, whatever else the pool does."""
    code = """
import mlx.core as mx
from mlx_recurrent import LSTM, set_num_threads
layer, x = LSTM(64, 128), mx.random.normal((64, 20, 64))
set_num_threads(2)
run = mx.value_and_grad(lambda x: mx.sum(layer(x)[0] ** 2))
first = run(x)
mx.eval(first)
print(all(mx.array_equal(a, b).item() for _ in range(5) for a, b in zip(first, run(x))))
"""
    assert printed(code, MLX_RECURRENT_BLAS=str(library)) == "True"


def test_this_process_has_what_it_says():
    assert RNN(3, 4).plan(mx.zeros((2, 5, 3))).by_blas is None
    if sys.platform != "darwin" and "MLX_RECURRENT_BLAS" not in os.environ:
        assert _native.blas() == ""
