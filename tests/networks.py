"""Networks of several layers made of single ones, each row alone.

Of the reference they are the truth, of MLX's layers what upstream would give. Cells are
those of ``CELLS``, by name; where no names are given, the weights tell them.
"""

from functools import partial
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import reference
from cells import CELLS, flat, plain
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
    """The name of the cell of a layer with these weights."""
    if "Wxh" in weights:
        return "rnn"
    rows, H = weights["Wh"].shape
    if rows == 4 * H:
        return "lstm"
    before = "b" in weights and "bhn" not in weights
    return "gru, reset before" if before else "gru"


def cells_of(model):
    """The names of a model's cells, in the form of its states."""
    if "forward" in model:
        return tuple(cells_of(model[name]) for name in ("forward", "backward"))
    if "backward" in model:
        return cells_of(model.backward)
    if "layers" in model:
        return [cells_of(inner) for inner in model.layers]
    names = [
        name
        for name, cell in CELLS.items()
        if isinstance(model, cell.layer)
        and all(getattr(model, of) == value for of, value in cell.arguments.items())
    ]
    # Of a cell with arguments of its own, the name without them fits as well.
    return max(names, key=lambda name: len(CELLS[name].arguments))


def of_reference(cell, activation, weights, x, states):
    """The states of a row after each step, by the reference."""
    truth = CELLS[cell].truth(activation)
    given = {"x": x, **weights, **dict(zip(truth.states, states, strict=True))}
    return reference.recurrence(truth, [given.get(name) for name in truth.arguments])[0]


def of_upstream(cell, activation, weights, x, states):
    """The same by MLX's layer, made without drawing random numbers."""
    name, cell = cell, CELLS[cell]
    # Where upstream has no such cell, or it has no more than float32's precision.
    if cell.upstream is None or (cell.upstream is not nn.RNN and x.dtype == mx.float64):
        given = dict(zip(cell.states, states, strict=True))
        given = {of: state for of, state in given.items() if state is not None}
        return plain(name, {"x": x, **weights, **given}, activation)
    layer = cell.upstream.__new__(cell.upstream)
    nn.Module.__init__(layer)
    layer.nonlinearity = UPSTREAM[activation]
    layer.hidden_size = weights[cell.weights[1]].shape[1]
    for name in cell.weights:
        setattr(layer, name, weights.get(name))
    result = layer(x, *states)
    return list(result) if isinstance(result, tuple) else [result]


RUN = {np: of_reference, mx: of_upstream}


def row_of(states, n, count):
    """The states of row n, each ``None`` where there is none."""
    if states is None:
        return [None] * count
    return [None if s is None else s[n] for s in by_state(states)]


def by_state(states):
    """The states of one layer as a sequence: an LSTM's are a pair."""
    return states if isinstance(states, (tuple, list)) else (states,)


def run_taken(xp, run, H, steps, taken, states):
    """The states at all steps, where those that are not taken keep the ones before.

    Args:
        xp (module): NumPy or MLX.
        run (callable): Gives the states at all steps that are taken.
        H (int): The hidden features.
        steps (array): The steps in the order in which they run, ``(L, D)``.
        taken (array): Which of them are taken, booleans.
        states (list(array)): The states before, each ``None`` where there is none.
    """
    zeros = xp.zeros(H, steps.dtype)
    every = [(zeros if state is None else state)[None] for state in states]
    if taken.any():
        new = run(steps[xp.array(np.flatnonzero(taken))], states)
        every = [xp.concatenate(both) for both in zip(every, new, strict=True)]
    return [y[xp.array(np.cumsum(taken))] for y in every]


def layer(
    xp,
    weights,
    x,
    hidden=None,
    *,
    cell=None,
    lengths=None,
    reset=None,
    mask=None,
    reverse=False,
    activation="tanh",
):
    """Outputs and states of one layer for x (N, L, D)."""
    cell = cell_of(weights) if cell is None else cell
    L, H = x.shape[1], weights[CELLS[cell].weights[1]].shape[1]
    count = len(CELLS[cell].states)
    run = partial(RUN[xp], cell, activation, weights)
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
                every = run(steps, first)
            else:
                taken = np.asarray(mask[n], bool)[start:end][turn]
                every = run_taken(xp, run, H, steps, taken, first)
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
    cells=None,
    reverse=False,
    merge="concat",
    residual=False,
    **keywords,
):
    """Outputs (of every layer of a stack) and states, for a tree of weights.

    Args:
        cells (list or tuple or str): As ``cells_of`` gives them.
        keywords: Those of ``layer``.
    """
    if "forward" in weights:
        both = [
            layer(xp, weights[name], x, state, cell=cell, reverse=back, **keywords)
            for name, state, cell, back in zip(
                ("forward", "backward"),
                (None, None) if hidden is None else hidden,
                (None, None) if cells is None else cells,
                (False, True),
                strict=True,
            )
        ]
        (f, f_state), (b, b_state) = both
        return MERGES[merge](xp, f, b), (f_state, b_state)
    if "backward" in weights:
        weights, reverse = weights["backward"], not reverse
    if "layers" not in weights:
        return layer(xp, weights, x, hidden, cell=cells, reverse=reverse, **keywords)
    outputs, states = [], []
    for i, inner in enumerate(weights["layers"]):
        y, state = network(
            xp,
            inner,
            x,
            None if hidden is None else hidden[i],
            cells=None if cells is None else cells[i],
            reverse=reverse,
            merge=merge,
            **keywords,
        )
        if residual and not isinstance(y, tuple) and x.shape[-1] == y.shape[-1]:
            y = y + (x if i else seen(xp, x, **keywords))
        outputs.append(y)
        states.append(state)
        x = y
    return outputs, states


def seen(xp, x, *, lengths=None, mask=None, **_):
    """A sequence with zeros at the steps that no row takes."""
    unseen = np.zeros(x.shape[:2], bool)
    if lengths is not None:
        unseen |= np.arange(x.shape[1]) >= np.array(lengths)[:, None]
    if mask is not None:
        unseen |= ~np.asarray(mask, bool)
    return xp.where(xp.array(unseen)[..., None], xp.zeros_like(x), x)


def states_for(rng, model, N, dtype=mx.float32):
    """A state for every layer: of an LSTM a pair."""
    if "forward" in model:
        return tuple(
            states_for(rng, model[n], N, dtype) for n in ("forward", "backward")
        )
    if "backward" in model:
        return states_for(rng, model.backward, N, dtype)
    if "layers" in model:
        return [states_for(rng, inner, N, dtype) for inner in model.layers]
    states = tuple(
        draw(rng, (N, model.hidden_size), dtype, 0.5)
        for _ in CELLS[cells_of(model)].states
    )
    return states if len(states) > 1 else states[0]


def leaves(tree):
    """The arrays of a tree by name, without what is None."""
    return {name: a for name, a in tree_flatten(tree) if a is not None}


def filled(tree, values):
    """A tree with other arrays in the places of its own, in the order of ``leaves``."""
    values = iter(values)
    return tree_map(lambda a: None if a is None else next(values), tree)


def results_of(xp, tree, wanted=flat, **keywords):
    """What is wanted of the results of ``network``, as a function of a tree's arrays.

    Args:
        xp (module): NumPy or MLX.
        tree (dict): The ``model``'s parameters, ``x`` and ``hidden``.
        wanted (callable): Makes a list of outputs and states.
        keywords: Of ``network``.
    """

    def function(*values):
        new = filled(tree, values)
        return wanted(network(xp, new["model"], new["x"], new["hidden"], **keywords))

    return function


def check(
    rng,
    model,
    x,
    hidden=None,
    merge="concat",
    residual=False,
    cells=None,
    neighbours=0,
    **keywords,
):
    """Outputs, states and all gradients of a model agree with the reference.

    The model returns lists where it is a stack: every layer's outputs and states. Where
    its cells are not given they are what it says they are. The rule of the gradients
    may look at so many neighbours of the inputs.
    """
    tree = {"model": model.parameters(), "x": x, "hidden": hidden}
    inputs = leaves(tree)

    def ours(*values):
        new = filled(tree, values)
        model.update(new["model"])
        every = {"return_all": True} if "layers" in model else {}
        return flat(
            model(new["x"], new["hidden"], return_state=True, **every, **keywords)
        )

    options = {"merge": merge, "residual": residual, **keywords}
    options["cells"] = cells_of(model) if cells is None else cells
    exact, upstream = (results_of(xp, tree, **options) for xp in (np, mx))
    given, true = list(inputs.values()), [wide(a) for a in inputs.values()]
    truths = exact(*true)
    cotangents = [array(rng.standard_normal(a.shape), x.dtype) for a in truths]
    mine, my_gradients = mx.vjp(ours, given, cotangents)
    theirs, their_gradients = mx.vjp(upstream, given, cotangents)
    mx.eval(mine, my_gradients, theirs, their_gradients)
    assert len(mine) == len(truths)
    for i, (a, b, truth) in enumerate(zip(mine, theirs, truths, strict=True)):
        close(a, b, truth, f"result {i}")

    def all_in_one(*values):
        return np.concatenate([a.ravel() for a in exact(*values)])

    weights = np.concatenate([wide(c).ravel() for c in cotangents])
    gradients = reference.gradient(all_in_one, true, weights)

    def nearby(i):
        for _ in range(neighbours):
            values = [neighbour(rng, a) for a in given]
            theirs = mx.vjp(upstream, values, cotangents)[1]
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
    model.update(tree["model"])


def check_outputs(got, model, x, hidden=None, **keywords):
    """What a run of a model gave agrees with the reference: of a stack its last layer.

    Args:
        got (array or tuple): The outputs, a pair where a model has ``merge=None``.
        keywords: Those of ``network``.
    """

    def outputs(xp, of):
        arrays = (model.parameters(), x, hidden)
        tree, *inputs = tree_map(lambda a: None if a is None else of(a), arrays)
        y, _ = network(xp, tree, *inputs, cells=cells_of(model), **keywords)
        return leaves({"y": y[-1] if isinstance(y, list) else y}).values()

    given = leaves({"y": got}).values()
    for each in zip(given, outputs(mx, lambda a: a), outputs(np, wide), strict=True):
        close(*each)


def in_dtype(model, dtype):
    """The model with its weights in a dtype."""
    model.update(tree_map(lambda a: a.astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model
