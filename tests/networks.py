"""Networks of several layers made of single ones, each row alone.

Of the reference they are the truth, of MLX's layers what upstream would give. The names
and shapes of a layer's weights tell its cell.
"""

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import reference
from cells import CELLS
from conftest import UPSTREAM, array, draw, neighbour
from mlx_recurrent import GRU, LSTM, RNN
from tolerances import close, wide

# The layers that a network may be made of.
each_layer = pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
MERGES = {
    "concat": lambda xp, f, b: xp.concatenate([f, b], axis=-1),
    "sum": lambda xp, f, b: f + b,
    "mul": lambda xp, f, b: f * b,
    "mean": lambda xp, f, b: (f + b) * 0.5,
    None: lambda xp, f, b: (f, b),
}


def episodes(length, reset, reverse):
    """The pieces of a row's steps that run apart, and whether each starts anew."""
    borders = [] if reset is None else [t for t in range(1, length) if reset[t]]
    ends = [0, *borders, length]
    pieces = list(pairwise(ends))
    # Forward the first step may start an episode; backward none starts before it.
    anew = [reset is not None and not reverse and bool(reset[0])]
    anew += [True] * (len(pieces) - 1)
    return list(zip(pieces[::-1] if reverse else pieces, anew, strict=True))


def cell_of(weights):
    """The cell of a layer with these weights."""
    if "Wxh" in weights:
        return CELLS["rnn"]
    rows, H = weights["Wh"].shape
    if rows == 4 * H:
        return CELLS["lstm"]
    before = "b" in weights and "bhn" not in weights
    return CELLS["gru, reset before" if before else "gru"]


def of_reference(activation, weights, x, states):
    """The states of a row after each step, by the reference."""
    cell = cell_of(weights).truth(activation)
    given = {"x": x, **weights, **dict(zip(cell.states, states, strict=True))}
    primals = [given.get(name) for name in cell.arguments]
    return reference.recurrence(cell, primals)[0]


def of_upstream(activation, weights, x, states):
    """The same by MLX's layer, made without drawing random numbers."""
    cell = cell_of(weights)
    layer = cell.upstream.__new__(cell.upstream)
    nn.Module.__init__(layer)
    layer.nonlinearity = UPSTREAM[activation]
    layer.hidden_size = cell_width(weights)
    for name in cell.weights:
        setattr(layer, name, weights.get(name))
    result = layer(x, *states)
    return list(result) if isinstance(result, tuple) else [result]


RUN = {np: of_reference, mx: of_upstream}


def cell_width(weights):
    return weights["Whh" if "Whh" in weights else "Wh"].shape[1]


def row_of(states, n, count):
    """The states of row n, each ``None`` where there is none."""
    if states is None:
        return [None] * count
    return [None if s is None else s[n] for s in by_state(states)]


def by_state(states):
    """The states of one layer as a sequence: an LSTM's are a pair."""
    return states if isinstance(states, (tuple, list)) else (states,)


def run_taken(xp, activation, weights, steps, taken, states):
    """The states at all steps, where those that are not taken keep the ones before.

    Args:
        xp (module): NumPy or MLX.
        activation (str): The activation.
        weights (dict): The layer's.
        steps (array): The steps in the order in which they run, ``(L, D)``.
        taken (array): Which of them are taken, booleans.
        states (list(array)): The states before, each ``None`` where there is none.
    """
    zeros = xp.zeros(cell_width(weights), steps.dtype)
    every = [(zeros if state is None else state)[None] for state in states]
    if taken.any():
        steps = steps[xp.array(np.flatnonzero(taken))]
        new = RUN[xp](activation, weights, steps, states)
        every = [xp.concatenate(both) for both in zip(every, new, strict=True)]
    return [y[xp.array(np.cumsum(taken))] for y in every]


def layer(
    xp,
    weights,
    x,
    hidden=None,
    *,
    lengths=None,
    reset=None,
    mask=None,
    reverse=False,
    activation="tanh",
):
    """Outputs and states of one layer for x (N, L, D)."""
    L, H, count = x.shape[1], cell_width(weights), len(cell_of(weights).states)
    outputs, states = [], []
    for n, row in enumerate(x):
        length = L if lengths is None else int(lengths[n])
        before = row_of(hidden, n, count)
        last = [xp.zeros(H, x.dtype) if s is None else s for s in before]
        done = []
        resets = None if reset is None else reset[n]
        for (start, end), anew in episodes(length, resets, reverse) if length else []:
            turn = slice(None, None, -1 if reverse else None)
            steps, first = row[start:end][turn], [None] * count if anew else before
            if mask is None:
                every = RUN[xp](activation, weights, steps, first)
            else:
                taken = np.asarray(mask[n], bool)[start:end][turn]
                every = run_taken(xp, activation, weights, steps, taken, first)
            last = [y[-1] for y in every]
            done.append(every[0][turn])
        done = done[::-1] if reverse else done
        outputs.append(xp.concatenate([*done, xp.zeros((L - length, H), x.dtype)]))
        states.append(last)
    states = tuple(xp.stack(of_rows) for of_rows in zip(*states, strict=True))
    return xp.stack(outputs), states if count > 1 else states[0]


def network(
    xp,
    weights,
    x,
    hidden=None,
    *,
    lengths=None,
    reset=None,
    mask=None,
    reverse=False,
    merge="concat",
    residual=False,
    activation="tanh",
):
    """Outputs (of every layer of a stack) and states, for a tree of weights."""

    def single(inner, hidden, reverse):
        return layer(
            xp,
            inner,
            x,
            hidden,
            lengths=lengths,
            reset=reset,
            mask=mask,
            reverse=reverse,
            activation=activation,
        )

    if "forward" in weights:
        before, after = (None, None) if hidden is None else hidden
        f, f_state = single(weights["forward"], before, False)
        b, b_state = single(weights["backward"], after, True)
        return MERGES[merge](xp, f, b), (f_state, b_state)
    if "backward" in weights:
        return single(weights["backward"], hidden, not reverse)
    if "layers" not in weights:
        return single(weights, hidden, reverse)
    outputs, states = [], []
    for i, inner in enumerate(weights["layers"]):
        y, state = network(
            xp,
            inner,
            x,
            None if hidden is None else hidden[i],
            lengths=lengths,
            reset=reset,
            mask=mask,
            reverse=reverse,
            merge=merge,
            activation=activation,
        )
        if residual and not isinstance(y, tuple) and x.shape[-1] == y.shape[-1]:
            if i == 0:
                unseen = np.zeros(x.shape[:2], bool)
                if lengths is not None:
                    unseen |= np.arange(x.shape[1]) >= np.array(lengths)[:, None]
                if mask is not None:
                    unseen |= ~np.asarray(mask, bool)
                x = xp.where(xp.array(unseen)[..., None], xp.zeros_like(x), x)
            y = y + x
        outputs.append(y)
        states.append(state)
        x = y
    return outputs, states


def states_for(rng, model, N, dtype=mx.float32):
    """A state for every layer: of an LSTM a pair."""
    if "forward" in model:
        return tuple(
            states_for(rng, model[n], N, dtype) for n in ("forward", "backward")
        )
    if "layers" in model:
        return [states_for(rng, inner, N, dtype) for inner in model.layers]
    states = tuple(
        draw(rng, (N, model.hidden_size), dtype, 0.5)
        for _ in cell_of(model.parameters()).states
    )
    return states if len(states) > 1 else states[0]


def leaves(tree):
    """The arrays of a tree by name, without what is None."""
    return {name: a for name, a in tree_flatten(tree) if a is not None}


def check(
    rng, model, x, hidden=None, merge="concat", residual=False, neighbours=0, **keywords
):
    """Outputs, states and all gradients of a model agree with the reference.

    The model returns lists where it is a stack: every layer's outputs and states. The
    rule of the gradients may look at so many neighbours of the inputs.
    """
    inputs = {"model": model.parameters(), "x": x}
    if hidden is not None:
        inputs["hidden"] = hidden
    inputs = leaves(inputs)

    def ours(tree):
        model.update(tree["model"])
        every = {"return_all": True} if "layers" in model else {}
        return model(
            tree["x"], tree.get("hidden"), return_state=True, **every, **keywords
        )

    def other(xp):
        return lambda tree: network(
            xp,
            tree["model"],
            tree["x"],
            tree.get("hidden"),
            merge=merge,
            residual=residual,
            **keywords,
        )

    def of(run):
        """The run as a function of arrays, and a list of them."""

        def function(*values):
            tree = tree_unflatten(list(zip(inputs, values, strict=True)))
            return [a for _, a in tree_flatten(run(tree))]

        return function

    given, true = list(inputs.values()), [wide(a) for a in inputs.values()]
    truths = of(other(np))(*true)
    cotangents = [array(rng.standard_normal(a.shape), x.dtype) for a in truths]
    mine, my_gradients = mx.vjp(of(ours), given, cotangents)
    theirs, their_gradients = mx.vjp(of(other(mx)), given, cotangents)
    mx.eval(mine, my_gradients, theirs, their_gradients)
    assert len(mine) == len(truths)
    for i, (a, b, truth) in enumerate(zip(mine, theirs, truths, strict=True)):
        close(a, b, truth, f"result {i}")

    def all_in_one(*values):
        return np.concatenate([a.ravel() for a in of(other(np))(*values)])

    weights = np.concatenate([wide(c).ravel() for c in cotangents])
    gradients = reference.gradient(all_in_one, true, weights)

    def nearby(i):
        for _ in range(neighbours):
            values = [neighbour(rng, a) for a in given]
            theirs = mx.vjp(of(other(mx)), values, cotangents)[1]
            truths = reference.gradient(all_in_one, [wide(a) for a in values], weights)
            yield theirs[i], truths[i]

    for i, (name, truth) in enumerate(zip(inputs, gradients, strict=True)):
        close(
            my_gradients[i],
            their_gradients[i],
            truth,
            f"gradient of {name}",
            neighbours=(lambda i=i: nearby(i)) if neighbours else None,
        )
    model.update(tree_unflatten(list(zip(inputs, given, strict=True)))["model"])


def check_outputs(got, model, x, hidden=None, **keywords):
    """What a run of a model gave agrees with the reference: of a stack its last layer.

    Args:
        got (array or tuple): The outputs, a pair where a model has ``merge=None``.
        keywords: Those of ``network``.
    """

    def outputs(xp, of):
        arrays = (model.parameters(), x, hidden)
        tree, *inputs = tree_map(lambda a: None if a is None else of(a), arrays)
        y, _ = network(xp, tree, *inputs, **keywords)
        return leaves({"y": y[-1] if isinstance(y, list) else y}).values()

    given = leaves({"y": got}).values()
    for each in zip(given, outputs(mx, lambda a: a), outputs(np, wide), strict=True):
        close(*each)


def in_dtype(model, dtype):
    """The model with its weights in a dtype."""
    model.update(tree_map(lambda a: a.astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model
