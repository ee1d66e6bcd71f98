"""Importing the package: what it refuses, and how; and what the README promises."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_recurrent._build import MLX_VERSION

README = Path(__file__).parent.parent / "README.md"


def python(code, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
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
