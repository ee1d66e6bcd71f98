"""A fast drop-in replacement for MLX's recurrent layers."""

# ruff: noqa: E402

from importlib.metadata import version

from mlx_recurrent._compatibility import require_mlx

# Before anything below loads the native module.
require_mlx()

# Before mlx.nn, which does not return in a subinterpreter.
from mlx_recurrent import _native  # noqa: F401, I001

from mlx_recurrent import init, interop
from mlx_recurrent.layers.accelerate import accelerate
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.check_cell import check_cell
from mlx_recurrent.functional.dispatch import exporting
from mlx_recurrent.functional.functions import (
    get_num_threads,
    matmul,
    rnn,
    scan,
    set_num_threads,
)
from mlx_recurrent.functional.gated import gru, lstm
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.linear import Linear
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.recurrent import Recurrent, cell
from mlx_recurrent.layers.rnn import RNN
from mlx_recurrent.functional.placement import placement, set_placement
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.stack import Stack
from mlx_recurrent.layers.streaming import Stream

__version__ = version("mlx-recurrent")

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "Linear",
    "Plan",
    "Recurrent",
    "Stack",
    "Stream",
    "__version__",
    "accelerate",
    "cell",
    "check_cell",
    "exporting",
    "get_num_threads",
    "gru",
    "init",
    "interop",
    "lstm",
    "matmul",
    "placement",
    "rnn",
    "scan",
    "set_num_threads",
    "set_placement",
]
