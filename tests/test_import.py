"""Importing the package: what it refuses, and how; and what the README promises."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_recurrent._build import MLX_VERSION
from scripts import SECONDS

README = Path(__file__).parent.parent / "README.md"


def python(code, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=SECONDS,
    )


def error_of(run):
    """The one sentence of an ImportError that ended a run."""
    assert run.returncode == 1, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), run.stderr
    return last.removeprefix("ImportError: ")


REFUSED = """
import sys
{}
try:
    import mlx_recurrent
finally:
    # The module that could crash was never loaded.
    assert "mlx_recurrent._native" not in sys.modules
"""


def test_another_version_of_mlx():
    run = python(REFUSED.format("import mlx.core as mx; mx.__version__ = '0.99.1'"))
    sentence = error_of(run)
    assert MLX_VERSION in sentence and "0.99.1" in sentence
    assert "pip install" in sentence and sentence.endswith(".")


def test_no_mlx():
    sentence = error_of(python(REFUSED.format("sys.modules['mlx.core'] = None")))
    assert "pip install" in sentence and f"=={MLX_VERSION}" in sentence


def available_isas():
    """The names that the refusal of a wrong one lists."""
    sentence = error_of(python("import mlx_recurrent", MLX_RECURRENT_ISA="sse9"))
    assert "MLX_RECURRENT_ISA" in sentence
    return sentence.rpartition(": ")[2].removesuffix(".").split(", ")


def test_instruction_set_that_is_not_there():
    least = "neon" if platform.machine() in ("arm64", "aarch64") else "baseline"
    assert available_isas()[-1] == least


@pytest.mark.parametrize("isa", available_isas())
def test_instruction_set(isa):
    code = (
        "import mlx.core as mx, mlx_recurrent as m;"
        "print(m.RNN(3, 5).plan(mx.zeros((2, 4, 3))).isa)"
    )
    run = python(code, MLX_RECURRENT_ISA=isa)
    assert (run.returncode, run.stdout) == (0, f"{isa}\n"), run.stderr


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
)
def test_readme(code, tmp_path):
    run = python("import mlx.nn as nn; model = nn.Linear(2, 3)\n" + code, tmp_path)
    assert run.returncode == 0, run.stderr


ANEW = """
import copy, importlib, sys
import mlx.core as mx
import mlx_recurrent as before

x = mx.ones((5, 3))
layer = before.RNN(3, 4)
stream = layer.stream()
{}
import mlx_recurrent as after

for made in (after.RNN(3, 4), after.RNN(3, 4, nonlinearity=lambda a: mx.sin(a) * a)):
    ours = made(x)
    made.stream()(x)
    again = after.rnn(x, **made.parameters(), nonlinearity=made.nonlinearity)
    assert mx.allclose(again, ours)
    grads = mx.grad(lambda w: after.rnn(x, w, made.Whh, made.bias).sum())(made.Wxh)
    mx.eval(grads)
stacked = after.Stack([layer, after.Bidirectional(after.RNN(4, 4))])  # of both
assert stacked(x).shape == (5, 8)
assert mx.array_equal(mx.array(stream(x)), layer(x))
assert after.RNN(3, 4).plan(x).path == "native"
assert copy.deepcopy(layer)(x).shape == (5, 4)
print("done")
"""
PURGE = """
for name in list(sys.modules):
    if name.partition(".")[0] == "mlx_recurrent" and {}:
        del sys.modules[name]
"""


@pytest.mark.parametrize(
    "anew",
    [
        PURGE.format(True),
        PURGE.format(True) * 2 + "import mlx_recurrent" + PURGE.format(True),
        PURGE.format("name == 'mlx_recurrent'"),
        PURGE.format("name != 'mlx_recurrent'"),
        PURGE.format("'_native' in name"),
        PURGE.format("'_native' not in name"),
        PURGE.format("'.interop' in name"),
        "importlib.reload(before)",
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('mlx_recurrent'):\n"
        "        importlib.reload(module)",
    ],
)
def test_imported_anew(anew):
    """After a purge of sys.modules, in whole or in part, or a reload."""
    run = python(ANEW.format(anew))
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@pytest.mark.parametrize("before", ["", "import mlx_recurrent; import mlx.nn"])
def test_subinterpreter(before):
    run = python(f"""
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
{before}
other = interpreters.create()
try:
    failed = interpreters.run_string(other, "import mlx_recurrent")
except interpreters.RunFailedError as error:
    failed = error
assert "ImportError" in str(failed) and "subinterpreter" in str(failed), failed
interpreters.destroy(other)
print("done")
""")
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
