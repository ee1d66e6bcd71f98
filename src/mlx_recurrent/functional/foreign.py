"""Other frameworks' arguments, and what stands for them here."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

from mlx_recurrent.functional.cells import LSTM
from mlx_recurrent.functional.options import CallOptions, LSTMOptions

_F = TypeVar("_F", bound=Callable[..., Any])

# The names here, and what else they are called.
_NAMES = {
    "input_size": "in_features input_dim input_dims input_features",
    "input_dims": "in_features input_dim input_features input_size",
    "hidden_size": "cell_size features hidden_dim hidden_dims num_units units",
    "output_dims": "features out_features output_dim output_size units",
    "bias": "use_bias",
    "nonlinearity": "act activation activation_fn",
    "cell": "c0 c_0 cx initial_c",
    "hidden": "h0 h_0 hx initial_carry initial_h initial_state state",
    "lengths": "input_lengths seq_lengths sequence_length sequence_lengths "
    "sequence_lens",
    "merge": "merge_mode",
    "reset_after": "linear_before_reset",
    "reverse": "go_backwards",
}
_BATCH_FIRST = "the batch always comes first, x is (N, L, D)"
_BEFORE = "the layer has it: give it to the constructor"
_DRAWN = "set the weights afterwards, as layer.Whh = ..., or by mlx_recurrent.init"
_DTYPE = "layer.set_dtype(...) changes the dtype of the weights afterwards"
_FIXED = "a GRU and an LSTM have sigmoid and tanh"
_IN_CALL = "it is an argument of the layer's call"
_WAYS_OUT = {
    **dict.fromkeys(("batch_first", "time_major"), _BATCH_FIRST),
    **dict.fromkeys(("learn_hidden", *LSTMOptions.__annotations__), _BEFORE),
    **dict.fromkeys(("kernel_init", "kernel_initializer"), _DRAWN),
    **dict.fromkeys(("recurrent_kernel_init", "recurrent_initializer"), _DRAWN),
    **dict.fromkeys(("bias_init", "bias_initializer"), _DRAWN),
    **dict.fromkeys(("dtype", "param_dtype"), _DTYPE),
    **dict.fromkeys(("hidden", "return_state", *CallOptions.__annotations__), _IN_CALL),
    "bidirectional": "Bidirectional(RNN(...)) runs in both directions, and "
    "Stack.build(..., bidirectional=True)",
    "device": "an array is on no device: mx.set_default_device, or mx.stream around "
    "the call, says where it runs",
    "dropout": "a layer has input_dropout and recurrent_dropout, and "
    "Stack.build(..., dropout=...) has it between layers",
    "go_backwards": "reverse=True in the call runs backward",
    **dict.fromkeys(
        LSTM.starts, "learn_hidden=True makes it, a parameter of the layer"
    ),
    **dict.fromkeys(("leak", "nonlinearity"), "RNN has it: give it to the constructor"),
    **dict.fromkeys(("activation", "recurrent_activation"), _FIXED),
    "num_layers": "Stack.build(input_size, hidden_size, num_layers) makes several",
    "proj_size": "Linear, or mlx.nn.Linear, after the layer projects its outputs",
    "residual": "Stack has it",
    "return_sequences": 'the call returns every state, and with return_state="only" '
    "the last one",
    "rngs": "mx.random.seed(...) before says what is drawn",
    "stateful": "outputs, state = layer(x, state, return_state=True) carries the state",
    "stream": "mx.stream(...) around the call says where it runs",
    "training": "layer.train() and layer.eval() set the mode",
    "unit_forget_bias": "init.forget_bias_(layer) sets it",
    "unroll": "leave it out: one call runs all steps",
}


def names_ways_out(function: _F) -> _F:
    """Let a function say what stands for another framework's argument.

    Its signature and docstring stay.
    """
    known = signature(function).parameters.keys()

    @wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        if not keywords.keys() <= known:
            raise _no_keyword(
                next(name for name in keywords if name not in known), known
            )
        return function(*arguments, **keywords)

    return cast("_F", called)


def judge_keywords(
    options: Mapping[str, Any],
    kind: type,
    others: Collection[str] = ("hidden", "nonlinearity"),
) -> None:
    """Raise a ``TypeError`` for an option that a function does not have.

    Args:
        options (dict): What the user gave.
        kind (type): The dictionary of the options that there are.
        others (tuple(str)): What else the function is given by name.
    """
    for name in options:
        if name not in kind.__annotations__:
            raise _no_keyword(name, {*kind.__annotations__, *others})


def _no_keyword(name: str, known: Collection[str]) -> TypeError:
    """Return the error for a keyword that is not among the known ones."""
    for here, names in _NAMES.items():
        if here in known and name in names.split():
            return TypeError(
                f"there is no keyword argument {name!r}: it is {here} here"
            )
    way_out = f": {_WAYS_OUT[name]}" if name in _WAYS_OUT else ""
    return TypeError(f"there is no keyword argument {name!r}{way_out}")
