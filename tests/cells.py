"""The cells, each by one entry: what every test of what cells share knows of them.

A new cell is an entry of ``CELLS`` here, one of ``reference.CELLS``, and its formulas
for a unit in ``test_reference_cells.py``. Tests take a cell by its name, or a cell on a
path as the argument ``way`` (``optional.py``).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import mlx_recurrent
import reference
from conftest import UPSTREAM, composed, ours, sigmoid, traced
from mlx_recurrent.functional import DeclaredFunction


class Cell(NamedTuple):
    """One cell.

    Args:
        truth (callable): The reference's cell, of the name of an activation (which only
            an Elman cell has).
        step (callable): A step as users write it, in MLX's operations: from the name of
            an activation, the arrays by name, the projection ``(G H,)``, what the
            state's weight sees (``None``: nothing) and the states before, those after.
        paths (dict): How the package runs it: functions of the name of an activation,
            arrays by name and keywords.
        layer (type): The package's layer.
        upstream (type): MLX's, or ``None``.
        torch (str): PyTorch's, or ``""``.
        arguments (dict): What makes the layer this cell.
        sides (callable): PyTorch's weights and biases of an arrays' dictionary.
    """

    truth: Callable
    step: Callable
    paths: dict
    layer: Any
    upstream: Any = None
    torch: str = ""
    arguments: dict = {}  # noqa: RUF012
    sides: Callable | None = None

    @property
    def states(self):
        return self.truth("tanh").states

    @property
    def weights(self):
        return self.truth("tanh").weights


def _elman_step(activation, w, z, p, q):
    a = z if p is None else z + p @ w["Whh"].T
    return [UPSTREAM[activation](a)]


def _gru_step(activation, w, z, p, q, reset_after=True):
    H = w["Wh"].shape[1]
    r, keep, n = mx.split(z, 3, axis=-1)
    Wr, Wz, Wn = mx.split(w["Wh"], 3)
    u = mx.zeros((H,), z.dtype)
    if p is not None:
        r, keep = r + p @ Wr.T, keep + p @ Wz.T
    r, keep = sigmoid(r), sigmoid(keep)
    if p is not None:
        u = p @ Wn.T if reset_after else (r * p) @ Wn.T
    if "bhn" in w:
        u = u + w["bhn"]
    n = mx.tanh(n + (r * u if reset_after else u))
    return [(1 - keep) * n + keep * q[0]]


def _lstm_step(activation, w, z, p, q):
    a = z if p is None else z + p @ w["Wh"].T
    i, f, g, o = mx.split(a, 4, axis=-1)
    c = sigmoid(f) * q[1] + sigmoid(i) * mx.tanh(g)
    return [sigmoid(o) * mx.tanh(c), c]


def _paths(function):
    """Of a cell whose nonlinearities are its own."""

    def native(activation, x, *weights, **keywords):
        return function(x, *weights, **keywords)

    def composed(activation, x, *weights, **keywords):
        with mlx_recurrent.exporting():
            return function(x, *weights, **keywords)

    return {"native": native, "composed": composed}


@mlx_recurrent.cell(gates="r z", input_gates="n", hidden_gates="u", states="hidden")
def declared_gru(r, z, n, u, hidden):
    r, z = sigmoid(r), sigmoid(z)
    return (1 - z) * mx.tanh(n + r * u) + z * hidden


@mlx_recurrent.cell(gates="i f g o", states="hidden cell")
def declared_lstm(i, f, g, o, hidden, cell):
    cell = sigmoid(f) * cell + sigmoid(i) * mx.tanh(g)
    return sigmoid(o) * mx.tanh(cell), cell


def _declared(made, **renamed):
    """The same cell, written as a function of a step; it gives all states of each."""
    function = DeclaredFunction(replace(made, outputs=len(made.states)))

    def declared(activation, x, **arguments):
        named = {renamed.get(name, name): a for name, a in arguments.items()}
        return function(x, **named)

    return {"declared": declared}


def _elman_sides(w):
    zeros = mx.zeros_like(w["bias"])
    return w["Wxh"], w["Whh"], w["bias"], zeros


def _gru_sides(w):
    zeros = mx.zeros((2 * w["bhn"].shape[0],), w["b"].dtype)
    return w["Wx"], w["Wh"], w["b"], mx.concatenate([zeros, w["bhn"]])


def _lstm_sides(w):
    return w["Wx"], w["Wh"], w["bias"], mx.zeros_like(w["bias"])


_RESET_BEFORE = {"reset_after": False}
_before = partial(mlx_recurrent.gru, **_RESET_BEFORE)
CELLS = {
    "rnn": Cell(
        truth=reference.Elman,
        step=_elman_step,
        paths={"native": ours, "traced": traced, "composed": composed},
        layer=mlx_recurrent.RNN,
        upstream=nn.RNN,
        torch="RNN",
        sides=_elman_sides,
    ),
    "gru": Cell(
        truth=lambda _: reference.GRU(),
        step=_gru_step,
        paths=_paths(mlx_recurrent.gru) | _declared(declared_gru, bhn="bh"),
        layer=mlx_recurrent.GRU,
        upstream=nn.GRU,
        torch="GRU",
        sides=_gru_sides,
    ),
    "gru, reset before": Cell(
        truth=lambda _: reference.GRU(reset_after=False),
        step=partial(_gru_step, **_RESET_BEFORE),
        paths={"composed": _paths(_before)["native"]},
        layer=mlx_recurrent.GRU,
        arguments=_RESET_BEFORE,
    ),
    "lstm": Cell(
        truth=lambda _: reference.LSTM(),
        step=_lstm_step,
        paths=_paths(mlx_recurrent.lstm) | _declared(declared_lstm, bias="b"),
        layer=mlx_recurrent.LSTM,
        upstream=nn.LSTM,
        torch="LSTM",
        sides=_lstm_sides,
    ),
}


GATED = [name for name in CELLS if name != "rnn"]


def plain(name, arrays, activation="tanh"):
    """All states of a batch as upstream computes them, each (..., L, H).

    Upstream's own GRU and LSTM have no more than float32's precision in float64.
    """
    cell = CELLS[name]
    Wx, _, bias, *_ = cell.weights
    z = arrays["x"] @ arrays[Wx].T
    if bias in arrays:
        z = z + arrays[bias]
    q = [arrays.get(state) for state in cell.states]
    states, L = [], z.shape[-2]
    for t in range(L):
        z_t = mx.squeeze(mx.split(z, L, axis=-2)[t], -2)
        seen = q[0]
        q = [mx.zeros((1,), z.dtype) if state is None else state for state in q]
        q = cell.step(activation, arrays, z_t, seen, q)
        states.append(q)
    return [mx.stack(each, -2) for each in zip(*states, strict=True)]


def flat(result):
    """All arrays of a result: one, or tuples of them."""
    if isinstance(result, tuple | list):
        return [a for part in result for a in flat(part)]
    return [result]


def wanted(states, return_state):
    """Which of all outputs and all last states a call returns, as numbers.

    Args:
        states (int): How many states there are.
        return_state (bool or str): As of the call.
    """
    last = list(range(states, 2 * states))
    return {False: list(range(states)), True: [0, *last], "only": last}[return_state]


def kept_masks(cell, key, zoneout, rows, L, H):
    """Where zoneout keeps the units of each state."""
    return [
        reference.hits(key, reference.zoneout_of(k), p, rows, L, H) if p else None
        for k, p in enumerate(of_states(cell, zoneout))
    ]


def of_states(cell, value):
    """An option of one number, or of one for each state, as a tuple."""
    each = value if isinstance(value, tuple) else (value,) * len(cell.states)
    return tuple(float(v) for v in each)
