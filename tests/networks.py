"""Networks of several layers made of single ones, each row alone.

Of the reference they are the truth, of ``mlx.nn.RNN`` what upstream would give.
"""

from itertools import pairwise

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import reference
from conftest import array, neighbour, upstream
from tolerances import close, wide

RUN = {
    np: lambda activation, x, hidden, weights: reference.rnn(
        x, hidden=hidden, activation=activation, **weights
    ),
    mx: lambda activation, x, hidden, weights: upstream(
        activation, x, hidden=hidden, **weights
    ),
}
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


def layer(
    xp,
    weights,
    x,
    hidden=None,
    *,
    lengths=None,
    reset=None,
    reverse=False,
    activation="tanh",
):
    """Outputs and states of one layer for x (N, L, D)."""
    L, H = x.shape[1], weights["Whh"].shape[0]
    outputs, states = [], []
    for n, row in enumerate(x):
        length = L if lengths is None else int(lengths[n])
        before = None if hidden is None else hidden[n]
        state = xp.zeros(H, weights["Whh"].dtype) if before is None else before
        done = []
        resets = None if reset is None else reset[n]
        for (start, end), anew in episodes(length, resets, reverse) if length else []:
            steps = row[start:end]
            y = RUN[xp](
                activation,
                steps[::-1] if reverse else steps,
                None if anew else before,
                weights,
            )
            state = y[-1]
            done.append(y[::-1] if reverse else y)
        done = done[::-1] if reverse else done
        outputs.append(xp.concatenate([*done, xp.zeros((L - length, H), state.dtype)]))
        states.append(state)
    return xp.stack(outputs), xp.stack(states)


def network(
    xp,
    weights,
    x,
    hidden=None,
    *,
    lengths=None,
    reset=None,
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
            reverse=reverse,
            merge=merge,
            activation=activation,
        )
        if residual and not isinstance(y, tuple) and x.shape[-1] == y.shape[-1]:
            if i == 0 and lengths is not None:
                ended = np.arange(x.shape[1]) >= np.array(lengths)[:, None]
                x = xp.where(xp.array(ended)[..., None], xp.zeros_like(x), x)
            y = y + x
        outputs.append(y)
        states.append(state)
        x = y
    return outputs, states


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
