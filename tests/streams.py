"""What the tests of streams have in common."""

import mlx.core as mx
import numpy as np

from conftest import COMPOSED, NATIVE, TRACED
from mlx_recurrent import RNN

PATHS = {"native": NATIVE, "traced": TRACED, "composed": COMPOSED}


def layer_of(problem, path="native"):
    layer = RNN(problem.x.shape[-1], problem.Whh.shape[0])
    f = PATHS[path][problem.activation]
    layer.nonlinearity = mx.tanh if f is None else f
    layer.Wxh, layer.Whh, layer.bias = problem.Wxh, problem.Whh, problem.bias
    return layer


def numpy(a):
    return np.array(a.astype(mx.float32) if a.dtype == mx.bfloat16 else a)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
