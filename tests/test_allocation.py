"""Each allocation that the native module asks for fails once: an error, no more.

An allocator that is preloaded makes the k-th one fail, for every k that there is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
SECONDS = 300  # generous: reached only by what hangs

CODE = """
import ctypes, sys
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import mlx_recurrent
from mlx_recurrent import RNN, _native

mx.set_default_device(mx.cpu)
mlx_recurrent.set_num_threads(2)
allocator = ctypes.CDLL(None)
allocator.stop_failing.restype = ctypes.c_long
allocator.fail_allocation.argtypes = [ctypes.c_long]
layer, traced = RNN(16, 64), RNN(16, 64, nonlinearity=nn.silu)
x = mx.random.normal((4, 50, 16))
mx.eval(layer.parameters(), traced.parameters(), x)

def forward():
    return [layer(x)]

def options():
    return [layer(x, lengths=[1, 0, 50, 20], reverse=True)]

def gradient():
    value, gradients = nn.value_and_grad(layer, lambda m: (m(x) ** 2).sum())(layer)
    return [value, *(gradients[name] for name in sorted(gradients))]

def callable_again():
    return [traced(x)]

def callable_anew():
    slope = callable_anew.slope = callable_anew.slope + 1
    f = lambda a: mx.tanh(a * slope) / slope
    mx.eval(mlx_recurrent.rnn(x, layer.Wxh, layer.Whh, nonlinearity=f))
    return []

callable_anew.slope = 1

def stream():
    made = layer.stream()
    return [mx.array(made(np.array(x[0]))), mx.array(made.state)]

def vmapped():
    return [mx.vmap(layer)(x)]

def second_order():
    def f(w):
        return (mlx_recurrent.rnn(x, layer.Wxh, w, layer.bias) ** 2).sum()
    return mx.jvp(mx.grad(f), [layer.Whh], [layer.Whh])[1]

def values(work):
    arrays = work()
    mx.eval(arrays)
    return [np.array(a) for a in arrays]

work = globals()[sys.argv[1]]
expected = values(work)
k, raised = 1, True
while raised:
    _native.release_scratch()
    mx.clear_cache()
    allocator.fail_allocation(k)
    try:
        values(work)
    except MemoryError:
        raised = True
    else:
        raised = False
    there = allocator.stop_failing()
    assert raised == (there >= k), (k, there)
    for a, b in zip(values(work), expected, strict=True):
        assert np.array_equal(a, b), k
    k += 1
assert k > 10, k
print("done")
"""


@pytest.fixture(scope="module")
def allocator(tmp_path_factory):
    if not sys.platform.startswith("linux") or COMPILER is None:
        pytest.skip("preloading needs Linux and a C++ compiler")
    library = tmp_path_factory.mktemp("allocator") / "failing_allocator.so"
    source = Path(__file__).with_name("failing_allocator.cpp")
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", source, "-ldl"]
    subprocess.run([*command, "-o", library], check=True)
    return library


@pytest.mark.parametrize(
    "work",
    [
        "forward",
        "options",
        "gradient",
        "callable_again",
        "callable_anew",
        "stream",
        "vmapped",
        "second_order",
    ],
)
def test_every_allocation_fails(allocator, work):
    done = subprocess.run(
        [sys.executable, "-c", CODE, work],
        env={**os.environ, "LD_PRELOAD": str(allocator)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout
