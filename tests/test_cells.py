"""What every cell's function and layer must do, over shapes, layouts, types and modes.

Optional terms are in ``test_option_combinations.py``.
"""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
import reference
from cells import CELLS, GATED, flat, plain
from conftest import DTYPES, LAYOUTS, SHAPES, array, draw, laid_out, poison
from optional import grads, problem
from tolerances import close, equal, wide

OF_UPSTREAM = [name for name in GATED if CELLS[name].upstream is not None]
each_gated = pytest.mark.parametrize("name", GATED)
each_of_upstream = pytest.mark.parametrize("name", OF_UPSTREAM)
# Of every size around the vector widths, and types in turn: a cell has a few of each.
SPARSE = [(shape, DTYPES[i % 4]) for i, shape in enumerate(SHAPES)]


class Batch:
    """A batch of one cell: the inputs, what upstream makes of them and the truth."""

    def __init__(self, rng, name, shape, dtype, std=1.0, gain=0.7, left_out=()):
        *lead, L, D, H = shape
        self.name, self.cell, self.truth_of = name, CELLS[name], CELLS[name].truth("")
        shapes = {"x": (*lead, L, D), **self.truth_of.shapes(D, H)}
        shapes |= dict.fromkeys(self.cell.states, (*lead, H))
        if name == "gru, reset before":
            left_out = (*left_out, "bhn")
        sizes = {"x": std, self.cell.weights[0]: gain / np.sqrt(max(D, 1))}
        sizes |= {self.cell.weights[1]: gain / np.sqrt(H)}
        self.arrays = {
            n: draw(rng, s, dtype, sizes.get(n, 0.5))
            for n, s in shapes.items()
            if n not in left_out
        }
        self.rng, self.dtype = rng, dtype

    def primals(self):
        values = (self.arrays.get(n) for n in self.truth_of.arguments)
        return [None if a is None else wide(a) for a in values]

    def truth(self):
        return reference.recurrence(self.truth_of, self.primals())[0]

    def run(self, *values, **keywords):
        """All states, by the first path that the cell has."""
        arrays = self.arrays
        if values:
            arrays = dict(zip(arrays, values, strict=True))
        path = next(iter(self.cell.paths.values()))
        return flat(path("", **arrays, **keywords))

    def plain(self, *values):
        arrays = dict(zip(self.arrays, values, strict=True)) if values else self.arrays
        return plain(self.name, arrays)

    def check(self):
        expected = self.plain()
        mx.eval(expected)
        poison(*expected)
        got = self.run()
        for i, each in enumerate(zip(got, expected, self.truth(), strict=True)):
            close(*each, f"state {i}")

    def check_gradients(self):
        truths = self.truth()
        c = [draw(self.rng, a.shape, self.dtype) for a in truths]
        values = list(self.arrays.values())
        expected = grads(self.plain, values, c)
        mx.eval(expected)
        poison(*expected)
        got = grads(self.run, values, c)
        truth = reference.recurrence_grad(
            self.truth_of, self.primals(), None, [wide(a) for a in c]
        )
        truth = dict(zip(self.truth_of.arguments, truth, strict=True))
        for name, *each in zip(self.arrays, got, expected, strict=True):
            close(*each, truth[name], f"gradient of {name}")


@each_gated
@pytest.mark.parametrize("shape, dtype", SPARSE)
def test_shapes(rng, name, shape, dtype):
    """With and without biases and first states."""
    batch = Batch(rng, name, shape, dtype, left_out=_left_out(rng, name))
    batch.check()


@each_gated
@pytest.mark.parametrize("shape, dtype", SPARSE[1::3])
def test_gradients(rng, name, shape, dtype):
    batch = Batch(rng, name, shape, dtype, left_out=_left_out(rng, name))
    batch.check_gradients()


def _left_out(rng, name):
    cell = CELLS[name]
    names = [*cell.weights[2:], *cell.states]
    return [n for n in names if rng.random() < 0.3]


@each_gated
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturating(rng, name, dtype):
    Batch(rng, name, (5, 20, 8, 16), dtype, std=10.0).check()


@each_gated
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2)])
def test_leading_axes(rng, name, lead):
    batch = Batch(rng, name, (*lead, 7, 5, 9), mx.float32)
    batch.check()
    batch.check_gradients()


@each_gated
def test_states_broadcast_the_input(rng, name):
    batch = Batch(rng, name, (4, 6, 5, 9), mx.float32)
    batch.arrays["x"] = batch.arrays["x"][0]
    got, expected = batch.run(), batch.plain()
    for each in zip(got, expected, batch.truth(), strict=True):
        close(*each)


@each_gated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, name, layout):
    """Of one argument each, in turn."""
    batch = Batch(rng, name, (5, 6, 7, 18), mx.float32)
    for of in batch.arrays:
        other = Batch(rng, name, (5, 6, 7, 18), mx.float32)
        other.arrays[of] = laid_out(layout, other.arrays[of])
        other.check()


# Large enough to be divided among threads, by rows and by units.
@each_of_upstream
@pytest.mark.parametrize("shape", [(64, 8, 32, 128), (1, 12, 32, 515)])
def test_large(rng, name, shape):
    batch = Batch(rng, name, shape, mx.float32)
    batch.check()
    batch.check_gradients()
    expected = batch.run()
    for threads in (1, 2, 3):
        mlx_recurrent.set_num_threads(threads)
        for a, b in zip(batch.run(), expected, strict=True):
            equal(a, b)


@each_gated
@pytest.mark.parametrize("lead, L", [((0,), 4), ((2,), 0), ((0, 2), 0), ((), 0)])
def test_empty(rng, name, lead, L):
    """And its gradients: the last state is the first."""
    p = problem(rng, lead, L, of=name)
    for path in p.cell.paths.values():
        outputs, *last = p(path)
        equal(outputs, mx.zeros((*lead, L, 5)))
        for state, a in zip(p.cell.states, last, strict=True):
            equal(a, p.arrays[state])
        c = p.cotangents()
        got = grads(partial(p, path), p.arrays.values(), c)
        by_name = dict(zip(p.names, got, strict=True))
        for state, d in zip(p.cell.states, c[1:], strict=True):
            equal(by_name[state], d)
        for weight in p.cell.weights[:2]:
            equal(by_name[weight], mx.zeros_like(p.arrays[weight]))


def layer_of(name, D, H, **arguments):
    cell = CELLS[name]
    return cell.layer(D, H, **cell.arguments, **arguments)


# The layer in place of MLX's.


@each_of_upstream
@pytest.mark.parametrize("dtypes", [(0, 0, 2), (2, 0, 0), (0, 2, 3), (3, 3, 3)])
def test_promotion(rng, name, dtypes):
    """Of the input, the weights and the states, of which each may be given alone."""
    x, weights, states = (DTYPES[i] for i in dtypes)
    ours, theirs = CELLS[name].layer(3, 5), CELLS[name].upstream(3, 5)
    theirs.set_dtype(weights)
    ours.update(theirs.parameters())
    sequence = draw(rng, (2, 4, 3), x)
    for given in range(2 ** len(CELLS[name].states)):
        state = {
            n: draw(rng, (2, 5), states)
            for i, n in enumerate(CELLS[name].states)
            if given >> i & 1
        }
        for a, b in zip(
            flat(ours(sequence, **state)), flat(theirs(sequence, **state)), strict=True
        ):
            assert a.dtype == b.dtype and a.shape == b.shape


@each_gated
def test_what_a_call_returns(rng, name):
    layer, x = layer_of(name, 3, 5), draw(rng, (2, 4, 3), mx.float32)
    S = len(CELLS[name].states)
    outputs, state = layer(x, return_state=True)
    every, last = flat(layer(x)), flat(layer(x, return_state="only"))
    assert len(every) == S and len(flat(state)) == S
    assert isinstance(state, tuple) == (S > 1)
    equal(outputs, every[0])
    for a, b, c in zip(every, last, flat(state), strict=True):
        equal(b, a[:, -1])
        equal(b, c)


# Steps and streams.


def of_problem(p, name):
    """A layer with the arrays of a problem, and its first states."""
    starts = p.reference.starts
    learned = any(n in p.arrays for n in starts)
    options = {n: p.get(n) for n in ("zoneout",) if p.get(n)}
    layer = layer_of(name, p.D, p.H, learn_hidden=learned, **options)
    for n in p.names:
        if n not in ("x", *p.cell.states):
            setattr(layer, n, p.arrays[n])
    return layer.train(p.get("training", True))


@each_gated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [{}, {"hidden": False}, {"cell": False}])
def test_steps_are_the_sequence(rng, name, dtype, given):
    learned = {"hidden0": True, "cell0": True, "reset": True}
    for options in ({}, learned):
        p = problem(rng, (3,), of=name, dtype=dtype, **given, **options)
        layer = of_problem(p, name)
        states = {n: p.arrays.get(n) for n in p.cell.states}
        outputs, reset = [], p.get("reset")
        for t in range(p.L):
            now = None if reset is None else reset[:, t]
            state = flat(layer.step(p.arrays["x"][:, t], **states, reset=now))
            states = dict(zip(states, state, strict=True))
            outputs.append(state[0])
        p.check([mx.stack(outputs, 1), *states.values()])


@each_gated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,)])
def test_streams_are_the_sequence(rng, name, dtype, lead):
    """However they are cut, with the same bits."""
    given = dict.fromkeys(("hidden", "cell"), bool(lead))
    options = {"reset": True, "hidden0": True, "cell0": True, "training": False}
    options |= {"zoneout": 0.2}
    p = problem(rng, lead, 7, of=name, dtype=dtype, **given, **options)
    layer, reset = of_problem(p, name), p.get("reset")
    first = {n: p.arrays.get(n) for n in p.cell.states}
    stream = layer.stream(**first)
    x = p.arrays["x"]

    def in_pieces(cuts):
        stream.reset(**first)
        outputs = [
            stream(x[..., a:b, :], reset=reset[..., a:b])
            for a, b in zip([0, *cuts], [*cuts, 7], strict=True)
        ]
        return [np.concatenate(outputs, -2), *flat(stream.state)]

    whole = in_pieces([])
    p.check([array(a, dtype) for a in whole])
    for cuts in ([3], [1, 2, 6], range(1, 7)):
        for a, b in zip(in_pieces(cuts), whole, strict=True):
            np.testing.assert_array_equal(a, b)


# Transformations of all that a call returns.

TRANSFORMS = {
    "compile": lambda f, v: mx.compile(f)(*v),
    "checkpoint": lambda f, v: mx.checkpoint(f)(*v),
    "compile of checkpoint": lambda f, v: mx.compile(mx.checkpoint(f))(*v),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("options", [{}, {"lengths": True, "reset": True}])
def test_transforms(rng, way, transform, options):
    p = way.problem(rng, **options)
    values, c = list(p.arrays.values()), p.cotangents()

    def gradients(*v):
        return grads(lambda *v: transform(partial(p, way), v), v, c)

    p.check(transform(partial(p, way), values))
    p.check_gradients(lambda *v: transform(partial(p, way), v), c)
    close_gradients(p, mx.compile(gradients)(*values), c)


def close_gradients(p, got, c):
    """Gradients of a problem, however they were come by, are right."""
    expected = grads(p.plain, p.arrays.values(), c)
    for each in zip(got, expected, p.gradients(*c), p.names, strict=True):
        close(*each)


def test_vmap_over_everything(rng, way):
    """Members of an ensemble: weights, sequences and states of their own."""
    members = [way.problem(rng, (2,), 3, 2, 4) for _ in range(3)]
    each = [p.arrays.values() for p in members]
    stacked = [mx.stack(arrays) for arrays in zip(*each, strict=True)]
    run = partial(members[0], way)
    found, c = mx.vmap(run)(*stacked), members[0].cotangents()
    derived = mx.vmap(lambda *v: grads(run, v, c))(*stacked)
    for i, p in enumerate(members):
        p.check([a[i] for a in found])
        close_gradients(p, [a[i] for a in derived], c)


def test_a_layer_is_trained(rng, way):
    """value_and_grad of a module, with frozen and with learned parameters."""
    if way.name == "rnn":
        layer = mlx_recurrent.RNN(3, 5)
    else:
        layer = layer_of(way.name, 3, 5, learn_hidden=True)
    x = draw(rng, (2, 4, 3), mx.float32)
    layer.freeze(keys=[CELLS[way.name].weights[1]])

    def loss(layer):
        return sum((a * a).sum() for a in flat(layer(x)))

    value, gradients = nn.value_and_grad(layer, loss)(layer)
    assert value.item() > 0
    assert gradients.keys() == layer.trainable_parameters().keys()
    assert all((a != 0).any().item() for a in gradients.values())


@each_gated
def test_long_sequences_are_right(rng, name):
    Batch(rng, name, (2, 300, 4, 9), mx.float64, gain=0.9).check()


@each_of_upstream
def test_the_kernels_run_it(rng, name):
    layer, x = layer_of(name, 3, 5), draw(rng, (2, 4, 3), mx.float32)
    plan = layer.plan(x)
    assert plan.path == "native" and plan.reason and str(plan)
    with mlx_recurrent.exporting():
        assert layer.plan(x).path == "composed"
