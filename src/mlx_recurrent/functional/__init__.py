"""The functions, which layers call with their weights.

They judge their arguments, settle dtypes and shapes, choose the path and run on it.
"""

from mlx_recurrent.functional.bidirectional import bidirectional
from mlx_recurrent.functional.functions import (
    get_num_threads,
    linear,
    matmul,
    plan,
    rnn,
    scan,
    set_num_threads,
    step,
)

__all__ = [
    "bidirectional",
    "get_num_threads",
    "linear",
    "matmul",
    "plan",
    "rnn",
    "scan",
    "set_num_threads",
    "step",
]
