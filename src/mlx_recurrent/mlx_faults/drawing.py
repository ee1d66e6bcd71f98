"""Threads that draw random numbers and end while Python closes down."""

from mlx_recurrent import _native


def draws() -> None:
    """Say that this thread is going to draw with MLX's own functions.

    Its random state, an object of Python's, would else be freed without the
    interpreter, which ends the process.
    """
    _native.random_key()
