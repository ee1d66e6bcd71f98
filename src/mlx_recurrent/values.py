"""The values of MLX's arrays, for what Python has to know."""

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native


def values_of(array: mx.array) -> np.ndarray:
    """Return an array's values, computed where they are not there yet.

    Raises:
        RuntimeError: In a forked process, where MLX would wait for ever.
        ValueError: Inside a compiled function or a vmap.
    """
    _native.expect_threads([array])
    return np.array(array)
