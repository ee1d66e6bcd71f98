"""The functions, which layers call with their weights.

They judge their arguments, settle dtypes and shapes, choose the path and run on it.
"""

from mlx_recurrent.functional.bidirectional import bidirectional
from mlx_recurrent.functional.functions import (
    get_num_threads,
    linear,
    matmul,
    rnn,
    scan,
    set_num_threads,
)
from mlx_recurrent.functional.gated import gru, lstm
from mlx_recurrent.functional.layer_calls import (
    DeclaredFunction,
    Function,
    cell_of,
    one_step,
    plan,
    step,
)

__all__ = [
    "DeclaredFunction",
    "Function",
    "bidirectional",
    "cell_of",
    "get_num_threads",
    "gru",
    "linear",
    "lstm",
    "matmul",
    "one_step",
    "plan",
    "rnn",
    "scan",
    "set_num_threads",
    "step",
]
