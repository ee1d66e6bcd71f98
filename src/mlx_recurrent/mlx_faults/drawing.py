"""Threads that draw random numbers and end while Python closes down.

Fault: of a thread's random state, an object of Python's, MLX lets go when the thread
ends, without the interpreter, and that ends the process.
MLX: 0.32.0 to 0.32.4.
Shown by: test_python_ends_after_threads_that_read_a_callable
"""

from mlx_recurrent import _native


def draws() -> None:
    """Say that this thread is going to draw with MLX's own functions."""
    _native.random_key()
