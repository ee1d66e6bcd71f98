"""Arrays of one dtype, and what broadcasting asks of a derivative."""

import numpy as np


def wide(*arrays):
    """The arrays (or None) in one dtype, at least float64."""
    dtype = np.result_type(np.float64, *[a for a in arrays if a is not None])
    return [None if a is None else np.asarray(a, dtype) for a in arrays]


def sum_to(a, shape):
    """The sum of a over the axes that broadcasting gave it."""
    a = a.sum(axis=tuple(range(a.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and a.shape[i] != 1)
    return a.sum(axis=axes, keepdims=True)


def rows(a):
    return a.reshape(-1, a.shape[-1])
