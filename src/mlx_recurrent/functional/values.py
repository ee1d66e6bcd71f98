"""The values of MLX's arrays, for what Python has to know."""

import mlx.core as mx
import numpy as np

from mlx_recurrent import _native
from mlx_recurrent.functional.devices import StreamOrDevice


def evaluate(*arrays: mx.array) -> None:
    """Compute arrays that are not there yet.

    Raises:
        RuntimeError: If MLX would have to compute something that another thread made,
            or, in a forked process, something that it would wait for for ever.
        ValueError: Inside a compiled function or a vmap.
    """
    _native.expect_threads(arrays)
    mx.eval(arrays)


def values_of(array: mx.array) -> np.ndarray:
    """Return an array's values, computed where they are not there yet.

    Raises:
        RuntimeError: As :func:`evaluate`.
        ValueError: Inside a compiled function or a vmap.
    """
    # NumPy asks for memory, which MLX before 0.32.4 cannot refuse: where it may not
    # compute, its error goes through Python's own frames and leaves them broken.
    evaluate(array)
    return np.array(array)


def as_dtype(a: mx.array, dtype: mx.Dtype, stream: StreamOrDevice = None) -> mx.array:
    """Return an array in a dtype; itself where it is of that."""
    return a if a.dtype == dtype else a.astype(dtype, stream=stream)
