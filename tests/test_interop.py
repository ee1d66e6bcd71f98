"""What is imported for interchange, and when."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from mlx_recurrent import RNN, Bidirectional, Stack, interop

# The function that needs it, with arguments.
NEEDS = {
    "torch": ["from_torch(object())", "to_torch(RNN(2, 3))"],
    "keras": ["from_keras(object())", "to_keras(RNN(2, 3))"],
    "flax": ["from_flax(object())"],
}


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )


def test_nothing_is_imported_before_it_is_used():
    run = python(
        "import sys, mlx_recurrent.interop\n"
        "from mlx_recurrent.interop import from_torch, from_keras, from_flax\n"
        "print({'torch', 'keras', 'flax', 'jax', 'onnx', 'onnxruntime'} "
        "& set(sys.modules))"
    )
    assert (run.returncode, run.stdout) == (0, "set()\n"), run.stderr


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_not_installed(name):
    lines = [
        f"import sys; sys.modules[{name!r}] = None",
        "from mlx_recurrent import RNN",
    ]
    for call in NEEDS[name]:
        lines += [
            f"from mlx_recurrent.interop import {call.partition('(')[0]}",
            "try:",
            f"    {call}",
            "except ImportError as error:",
            "    print(error)",
        ]
    run = python("\n".join(lines))
    assert run.returncode == 0, run.stderr
    sentences = run.stdout.splitlines()
    for call, sentence in zip(NEEDS[name], sentences, strict=True):
        assert sentence.startswith(f"{call.partition('(')[0]} needs {name}, which")
        assert sentence.endswith(f"): pip install {name}")


@pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")
def test_backend_of_keras_that_is_not_installed():
    run = python(
        "import os, sys\n"
        "os.environ['KERAS_BACKEND'], sys.modules['jax'] = 'jax', None\n"
        "from mlx_recurrent import RNN\n"
        "from mlx_recurrent.interop import to_keras\n"
        "try:\n"
        "    to_keras(RNN(2, 3))\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("to_keras needs keras, which cannot be imported")
    assert ": pip install jax, or set KERAS_BACKEND to a backend" in run.stdout


def test_names():
    assert set(dir(interop)) == set(interop.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'from_caffe'"):
        getattr(interop, "from_" + "caffe")


def test_trees_need_no_framework():
    layer = interop.from_flax(interop.to_flax(RNN(2, 3)))
    weights = {
        "weight_ih": np.array(layer.Wxh),
        "weight_hh": np.array(layer.Whh),
    }
    assert "bias" not in interop.from_torch(weights)


class Doubled(RNN):
    def __call__(self, x, *arguments, **keywords):
        return 2 * super().__call__(x, *arguments, **keywords)


class DoubledStack(Stack):
    def __call__(self, x, *arguments, **keywords):
        return 2 * super().__call__(x, *arguments, **keywords)


@pytest.mark.parametrize(
    ("framework", "function"),
    [("torch", "to_torch"), ("keras", "to_keras"), ("ml_dtypes", "to_flax")],
)
def test_a_subclass_with_a_call_of_its_own_is_refused(framework, function):
    pytest.importorskip(framework, reason=f"{framework} cannot be imported")
    convert = getattr(interop, function)
    for layer, of in (
        (Doubled(3, 4), "layer must compute what RNN"),
        (Bidirectional(RNN(3, 4), Doubled(3, 4)), r"layer\.backward must compute what"),
        (DoubledStack([RNN(3, 4)]), "layer must compute what Stack"),
    ):
        with pytest.raises(ValueError, match=of):
            convert(layer)
