"""Cells that users declare: those of their page, and what a layer of any has."""

import copy
import math
import pickle
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import reference
from cells import declared_gru, declared_lstm, flat, kept_masks
from conftest import DTYPES, draw
from mlx_recurrent import Bidirectional, Recurrent, Stack, cell, check_cell
from mlx_recurrent.functional import DeclaredFunction
from optional import draw_key
from tolerances import close, equal, wide

PAGE = Path(__file__).parents[1] / "docs" / "api" / "cells.md"
each_cell = pytest.mark.parametrize("name", reference.DECLARED)
# The derivative of the other one is not that of its values.
SMOOTH = [name for name in reference.DECLARED if name != "lif"]


@pytest.fixture(scope="module")
def page():
    """The cells of the page, by name."""
    if not PAGE.exists():
        pytest.skip("the pages are not beside the tests")
    names = {"check_cell": lambda made: None}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M):
        if "@cell" in block:
            code = block.replace(", check_cell", "").partition("\n\nlayer =")[0]
            exec(compile(code, str(PAGE), "exec"), names)
    return names


class Problem:
    """A call of a cell with everything at once, and what is right."""

    def __init__(self, rng, made, name, dtype, **options):
        self.truth_of, self.dtype = reference.DECLARED[name], dtype
        N, L, D, H = 3, 7, 4, 9
        shapes = {"x": (N, L, D), **self.truth_of.shapes(D, H)}
        shapes |= dict.fromkeys(self.truth_of.states, (N, H))
        shapes |= dict.fromkeys(self.truth_of.starts, (H,))
        self.arrays = {n: draw(rng, s, dtype, 0.5) for n, s in shapes.items()}
        self.options = {
            "lengths": [7, 0, 5],
            "reset": rng.random((N, L)) < 0.2,
            "mask": rng.random((N, L)) < 0.8,
            "reverse": bool(rng.integers(2)),
            "zoneout": tuple(0.1 * (i + 1) for i in range(len(made.states))),
            "input_dropout": 0.2,
            "recurrent_dropout": 0.3 if made.hidden_rows else 0.0,
            **options,
        }
        if len(made.states) == 1:
            self.options["zoneout"] = 0.2
        self.function = DeclaredFunction(made)
        self.seed = int(rng.integers(2**32))

    def __call__(self, *values):
        arrays = dict(zip(self.arrays, values, strict=True)) if values else self.arrays
        mx.random.seed(self.seed)
        return flat(self.function(**arrays, **self.options, return_state=True))

    def terms(self):
        N, L, D = self.arrays["x"].shape
        H = self.arrays[self.truth_of.states[0]].shape[-1]
        mx.random.seed(self.seed)
        key, options = draw_key(), self.options

        def factors(what, name, size):
            p = options[name]
            if not p:
                return None
            return reference.factors(
                reference.hits(key, what, p, N, 1, size), p
            ).reshape(N, size)

        return reference.Terms(
            **{n: options[n] for n in ("lengths", "reset", "mask", "reverse")},
            kept=kept_masks(self.truth_of, key, options["zoneout"], N, L, H),
            m_x=factors(reference.INPUT_DROPOUT, "input_dropout", D),
            m_h=factors(reference.RECURRENT_DROPOUT, "recurrent_dropout", H),
        )

    def primals(self, arrays):
        values = [arrays.get(n) for n in self.truth_of.arguments]
        return [None if a is None else wide(a) for a in values]

    def truth(self):
        outputs, last = reference.recurrence(
            self.truth_of, self.primals(self.arrays), self.terms()
        )
        return [outputs[0], *last]

    def tangents(self, direction):
        at = self.primals(self.arrays)
        moving = self.primals(dict(zip(self.arrays, direction, strict=True)))
        outputs, last = reference.recurrence_tangent(
            self.truth_of, at, moving, self.terms()
        )
        return [outputs[0], *last]


def loop(problem, *values):
    """The layer in MLX's operations."""
    with mlx_recurrent.exporting():
        return problem(*values)


@each_cell
@pytest.mark.parametrize("dtype", DTYPES)
def test_cells_of_the_page(rng, page, name, dtype):
    """With every option, beside its loop."""
    problem = Problem(rng, page[name], name, dtype)
    if name == "lif":  # which spikes, not on which side of the threshold a rounding is
        problem.arrays["Wx"] = 0.0 * problem.arrays["Wx"]
        problem.arrays["Wh"] = 0.0 * problem.arrays["Wh"]
        problem.arrays["v"] = mx.round(problem.arrays["v"]) + 0.4
    results = zip(problem(), loop(problem), problem.truth(), strict=True)
    for i, each in enumerate(results):
        close(*each, f"result {i}")


@pytest.mark.parametrize("name", SMOOTH)
def test_their_derivatives(rng, page, name):
    """Forward against complex steps; backward against forward."""
    problem = Problem(rng, page[name], name, mx.float64)
    values = list(problem.arrays.values())
    direction = [draw(rng, a.shape, mx.float64) for a in values]
    found = mx.jvp(problem, values, direction)[1]
    plain = mx.jvp(lambda *v: loop(problem, *v), values, direction)[1]
    for each in zip(found, plain, problem.tangents(direction), strict=True):
        close(*each)
    c = [draw(rng, a.shape, mx.float64) for a in found]
    gradients = mx.vjp(problem, values, c)[1]
    forward = sum((wide(a) * wide(b)).sum() for a, b in zip(c, found, strict=True))
    backward = sum(
        (wide(a) * wide(b)).sum() for a, b in zip(gradients, direction, strict=True)
    )
    assert math.isclose(forward, backward, rel_tol=1e-6)


def test_a_surrogate_gradient(rng, page):
    """Of one step from rest: the slope of the sigmoid, not that of the threshold."""
    layer, x = Recurrent(page["lif"], 3, 5), draw(rng, (1, 3), mx.float32)
    d = mx.grad(lambda b: layer.update({"b": b})(x).sum())(layer.b)
    a = wide(x) @ wide(layer.Wx).T + wide(layer.b)
    s = 1 / (1 + np.exp(-4 * (a - 1)))
    np.testing.assert_allclose(wide(d), (4 * s * (1 - s))[0], rtol=1e-5)


# Of a layer.


def test_weights_and_their_order(page):
    mx.random.seed(3)
    layer = Recurrent(page["mgu"], 3, 4, learn_hidden=True)
    shapes = {n: a.shape for n, a in layer.parameters().items()}
    assert shapes == {"Wx": (8, 3), "Wh": (8, 4), "b": (8,), "bh": (4,), "h0": (4,)}
    mx.random.seed(3)
    for name in ("Wx", "Wh", "b", "bh"):
        equal(layer[name], mx.random.uniform(-0.5, 0.5, shapes[name]))
    bare = Recurrent(page["min_gru"], 3, 4, bias=False)
    assert bare.parameters().keys() == {"Wx"} and bare.b is None and bare.Wh is None
    assert (layer.h0 == 0).all().item() and bare.h0 is None


def test_parameters_start_from():
    shapes = []

    def ones(shape):
        shapes.append(shape)
        return mx.ones(shape)

    def made(start):
        declared = cell(gates="a", states="h", parameters={"k": 2, "w": start})
        return Recurrent(declared(lambda a, h, k, w: k * a + w * h), 3, 4)

    layer = made(ones)
    assert shapes == [(4,)]
    assert layer.k.tolist() == [2] * 4 and layer.w.tolist() == [1] * 4
    with pytest.raises(ValueError, match=r"parameters..w.. must return"):
        made(lambda shape: mx.ones(3))


@pytest.mark.parametrize("states", ["h", "h c"])
def test_what_a_call_returns(rng, page, states):
    layer = Recurrent(page["ugrnn" if states == "h" else "lstm"], 3, 5)
    x, S = draw(rng, (2, 4, 3), mx.float32), len(states.split())
    outputs, state = layer(x, return_state=True)
    assert isinstance(state, tuple) == (S > 1) and len(flat(state)) == S
    equal(layer(x), outputs)
    equal(outputs[:, -1], flat(state)[0])
    for a, b in zip(flat(layer(x, return_state="only")), flat(state), strict=True):
        equal(a, b)
    h = draw(rng, (2, 5), mx.float32)
    equal(layer(x, h), layer(x, h=h))
    stepped = layer.step(x[:, 0], h)
    for a, b in zip(flat(stepped), flat(layer.step(x[:, 0], h=h)), strict=True):
        equal(a, b)


@each_cell
def test_steps_and_streams_are_the_sequence(rng, page, name):
    layer = Recurrent(page[name], 3, 5, learn_hidden=True, zoneout=0.1).eval()
    for n in layer.cell.starts:
        layer[n] = draw(rng, (5,), mx.float32)
    x = draw(rng, (2, 4, 3), mx.float32)
    first = [draw(rng, (2, 5), mx.float32) for _ in layer.cell.states]
    outputs, last = layer(x, *first, return_state=True)
    states, stepped = first, []
    for t in range(4):
        states = flat(layer.step(x[:, t], *states))
        stepped.append(states[0])
    np.testing.assert_allclose(mx.stack(stepped, 1), outputs, atol=1e-5)
    stream = layer.stream(*first)
    found = np.concatenate([stream(x[:, :1]), stream(x[:, 1:])], 1)
    np.testing.assert_allclose(found, outputs, atol=1e-5)
    for a, b in zip(flat(stream.state), flat(last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    fresh = stream(x[:, :1], reset=[[True], [False]])
    np.testing.assert_allclose(fresh[0], layer(x[0, :1]), atol=1e-5)
    stream.reset(**dict(zip(layer.cell.states, first, strict=True)))
    np.testing.assert_array_equal(stream(x[:, :1]), found[:, :1])


def test_stacks_and_directions(rng, page):
    x = draw(rng, (2, 4, 3), mx.float32)
    lstm = Recurrent(page["lstm"], 3, 5)
    stack = Stack([lstm, mlx_recurrent.GRU(5, 4), Recurrent(page["rate"], 4, 4)])
    outputs, states = stack(x, return_state=True)
    assert outputs.shape == (2, 4, 4) and len(states[0]) == len(states[2]) == 2
    more = stack(x, states)
    equal(more, stack(x, states, return_state=True)[0])
    y, _ = stack.step(x[:, 0])
    np.testing.assert_allclose(y, outputs[:, 0], atol=1e-5)
    stream = stack.stream([(None, None), None, None])
    np.testing.assert_allclose(stream(x[0]), outputs[0], atol=1e-5)
    stream.reset()
    with pytest.raises(ValueError, match=r"hidden.0. must be a tuple of 2 states"):
        stack(x, [(None,), None, None])
    both = Bidirectional(Recurrent(page["peephole"], 3, 5))
    outputs, (one, other) = both(x, return_state=True)
    assert outputs.shape == (2, 4, 10) and len(one) == len(other) == 2
    assert not (both.forward.Wx == both.backward.Wx).any().item()
    equal(both.backward.pi, both.forward.pi)
    built = Stack.build(
        3, 5, 2, layer=lambda D, H, **a: Recurrent(page["coupled"], D, H, **a)
    )
    assert built(x).shape == (2, 4, 5)


def test_copies_and_files(rng, tmp_path, page):
    layer = Recurrent(declared_gru, 3, 5, zoneout=0.2, learn_hidden=True).eval()
    x = draw(rng, (2, 4, 3), mx.float32)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.cell is declared_gru and repr(other) == repr(layer)
        equal(other(x), layer(x))
    layer.save_weights(str(tmp_path / "weights.safetensors"))
    fresh = Recurrent(declared_gru, 3, 5, zoneout=0.2, learn_hidden=True).eval()
    fresh.load_weights(str(tmp_path / "weights.safetensors"))
    equal(fresh(x), layer(x))
    with pytest.raises(pickle.PicklingError, match="cell cannot be pickled"):
        pickle.dumps(Recurrent(page["rate"], 3, 5))


def test_options_of_a_layer(page):
    layer = Recurrent(page["lstm"], 3, 5, zoneout=(0.1, 0.2), input_dropout=0.3)
    assert repr(layer) == (
        "Recurrent(lstm, input_dims=3, hidden_size=5, bias=True, zoneout=(0.1, 0.2), "
        "input_dropout=0.3)"
    )
    with pytest.raises(
        ValueError, match="recurrent_dropout must be 0 for the cell min_gru"
    ):
        Recurrent(page["min_gru"], 3, 5, recurrent_dropout=0.1)
    with pytest.raises(ValueError, match="one for each of the 4 states"):
        Recurrent(page["slstm"], 3, 5, zoneout=(0.1, 0.2))
    with pytest.raises(TypeError, match="there is no keyword argument 'leak'"):
        Recurrent(page["lstm"], 3, 5, leak=0.3)


# What is wrong with a cell, said when it is declared.

DECLARATIONS = {
    "gates names 'b', which is a weight": dict(gates="a b", states="h"),
    "gates names 'q', which the cell made does not take": dict(gates="a q", states="h"),
    "takes 'h', which is none of": dict(gates="a", states="a2"),
    "states names 'a', which gates has already": dict(gates="a", states="h a"),
    "states names 'train', which is an attribute": dict(gates="a", states="train"),
    "states names 'mask', which is an argument": dict(gates="a", states="mask"),
    "parameters names 'cell', which is an attribute": dict(
        gates="a", states="h", parameters={"cell": 1}
    ),
    "states makes 'h0' of 'h', which parameters has already": dict(
        gates="a", states="h", parameters={"h0": 1}
    ),
    "states must name at least one": dict(gates="a", states=""),
    "gates or input_gates must name": dict(hidden_gates="a", states="h"),
    "states must hold names of arguments": dict(gates="a", states="1h"),
}


@pytest.mark.parametrize("words", DECLARATIONS)
def test_wrong_declarations(words):
    def made(a, h):
        return a

    with pytest.raises(ValueError, match=re.escape(words)):
        cell(**DECLARATIONS[words])(made)


def test_wrong_types_of_declarations():
    with pytest.raises(TypeError, match="gates must be names"):
        cell(gates=3, states="h")(lambda a, h: a)
    with pytest.raises(TypeError, match="parameters must be a dictionary"):
        cell(gates="a", states="h", parameters=["k"])(lambda a, h, k: a)
    with pytest.raises(TypeError, match=r"parameters..k.. must be what it starts from"):
        cell(gates="a", states="h", parameters={"k": "1"})(lambda a, h, k: a)
    with pytest.raises(TypeError, match="must decorate a function"):
        cell(gates="a", states="h")(3)
    with pytest.raises(ValueError, match="must take its arguments by name"):
        cell(gates="a", states="h")(lambda *a: a)
    with pytest.raises(TypeError, match=r"that mlx_recurrent\.cell"):
        Recurrent(lambda a, h: a, 3, 4)
    with pytest.raises(TypeError, match=r"that mlx_recurrent\.cell"):
        check_cell(lambda a, h: a)


# What is wrong with its function, said at the first call.

VECTOR, NUMBER = mx.arange(4.0), mx.array(0.5)
FUNCTIONS = {
    "must return 1 state (h), but returned 2": lambda a, h: (a, h),
    "must return its state h as an mx.array": lambda a, h: 1.0,
    "in the shape that it is given, (2, 4), but returned shape (2,)": (
        lambda a, h: a.sum(-1)
    ),
    "in the dtype that it is given, float32, but returned bool": lambda a, h: a > 0,
    "uses an array of shape (4,), float32, that was there": lambda a, h: a * VECTOR,
    "uses an array of shape (), float32, that was there": lambda a, h: a * NUMBER,
    "draws random numbers": lambda a, h: a + mx.random.normal(a.shape),
    "evaluates its arguments": lambda a, h: a if (h > 0).any() else h,
}


@pytest.mark.parametrize("words", FUNCTIONS)
def test_wrong_functions(words):
    layer = Recurrent(cell(gates="a", states="h")(FUNCTIONS[words]), 3, 4)
    x = mx.zeros((2, 5, 3))
    for call in (layer, layer.plan, layer.stream, mx.compile(layer)):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            call() if call == layer.stream else call(x)


def test_wrong_calls(page):
    layer, x, h = Recurrent(page["lstm"], 3, 4), mx.zeros((2, 5, 3)), mx.zeros((2, 4))
    for error, words, call in (
        (TypeError, "the state h is given twice", lambda: layer(x, h, h=h)),
        (TypeError, "there are 2 states (h, c), but 3", lambda: layer(x, h, h, h)),
        (TypeError, "no keyword argument 'hidden'", lambda: layer(x, hidden=h)),
        (TypeError, "there is no state 'q'", lambda: layer.stream(q=h)),
        (TypeError, "there is no state 'q'", lambda: layer.step(x[:, 0], q=h)),
        (ValueError, "c must have shape (..., 4)", lambda: layer(x, c=mx.zeros((3,)))),
        (TypeError, "h must be an mlx.core.array", lambda: layer(x, [1.0])),
        (ValueError, "return_state must be", lambda: layer(x, return_state=2)),
    ):
        with pytest.raises(error, match=re.escape(words)):
            call()


def test_check_cell_finds_a_wrong_derivative():
    @mx.custom_function
    def wrong(a):
        return mx.tanh(a)

    @wrong.vjp
    def wrong_vjp(a, c, _):
        return c * 0.9

    @cell(gates="a", states="h")
    def made(a, h):
        return wrong(a)

    with pytest.raises(AssertionError, match="of the cell made"):
        check_cell(made)


def test_a_declared_function_is_still_one(rng):
    a = [draw(rng, (2, 3), mx.float32) for _ in range(6)]
    h, c = declared_lstm(*a)
    assert h.shape == c.shape == (2, 3) and declared_lstm.__name__ == "declared_lstm"
    assert copy.deepcopy(declared_lstm) is declared_lstm


# What the kernels run.


@each_cell
def test_the_kernels_run_it(page, name):
    layer = Recurrent(page[name], 3, 5)
    plan = layer.plan(mx.zeros((2, 4, 3)))
    assert plan.path == "traced" and f"the cell {name} is made of" in plan.reason
    assert str(plan) and layer.stream().plan.path == "traced"
    with mlx_recurrent.exporting():
        assert layer.plan(mx.zeros((2, 4, 3))).path == "composed"


def many(**kinds):
    """A cell with so many states, or others, that are added up."""
    named = {kind: [f"{kind[0]}{i}" for i in range(n)] for kind, n in kinds.items()}
    states = named.get("states", ["q"])
    parameters = dict.fromkeys(named.get("parameters", []), 0.1)
    gates = named.get("gates", ["a"])
    arguments = ", ".join([*gates, *states, *parameters])
    total = " + ".join([*gates, *states, *parameters])
    results = ", ".join(f"0.5 * ({total}) + {s}" for s in states)
    code = f"def made({arguments}):\n    return {results}\n"
    scope = {}
    exec(code, scope)
    return cell(gates=gates, states=states, parameters=parameters)(scope["made"])


def softmax(a, h):
    return mx.softmax(a, axis=-1)


def rows(a, h):
    return a / a.shape[0]


# What the kernels cannot run, and what plan() says of it.
COMPOSED = {
    "has the operation Softmax": cell(gates="a", states="h")(softmax),
    "depends on how many rows": cell(gates="a", states="h")(rows),
    "has 5 states": many(states=5),
    "has 9 pre-activations": many(gates=9),
    "has 9 parameters": many(parameters=9),
}


@pytest.mark.parametrize("words", COMPOSED)
def test_what_the_kernels_cannot_run(rng, words):
    layer, x = Recurrent(COMPOSED[words], 3, 5), draw(rng, (2, 4, 3), mx.float32)
    plan = layer.plan(x)
    assert plan.path == "composed" and words in plan.reason
    with mlx_recurrent.exporting():
        expected = layer(x)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_as_many_as_the_kernels_have(rng):
    """Some of a dense cell are more than its derivative has ways for."""
    x = draw(rng, (2, 4, 3), mx.float32)
    for made in (many(states=4), many(gates=8), many(parameters=8)):
        layer = Recurrent(made, 3, 5)
        assert layer.plan(x).path == "traced"
        with mlx_recurrent.exporting():
            expected = layer(x)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    plan = Recurrent(many(states=4, gates=8), 3, 5).plan(x)
    assert plan.path == "composed" and "more than 24 ways" in plan.reason


def test_a_number_of_the_units_is_read_for_each_size(rng):
    made = cell(gates="a", states="h")(lambda a, h: a / a.shape[-1])
    for H in (5, 9):
        layer, x = Recurrent(made, 3, H), draw(rng, (2, 1, 3), mx.float32)
        a = wide(x[:, 0]) @ wide(layer.Wx).T + wide(layer.b)
        assert layer.plan(x).path == "traced"
        np.testing.assert_allclose(wide(layer(x))[:, 0], a / H, rtol=1e-5)


# Large enough to be divided among threads, by rows and by units.
@pytest.mark.parametrize("shape", [(64, 8, 32, 128), (1, 12, 32, 515)])
@pytest.mark.parametrize("name", ["slstm", "mgu", "peephole"])
def test_threads_change_nothing(rng, page, name, shape):
    N, L, D, H = shape
    layer, x = Recurrent(page[name], D, H), draw(rng, (N, L, D), mx.float32)

    def results():
        gradients = mx.grad(lambda p: layer.update(p)(x).sum())(layer.parameters())
        return [layer(x), *gradients.values()]

    mlx_recurrent.set_num_threads(1)
    expected = results()
    mx.eval(expected)
    with mlx_recurrent.exporting():
        truth = results()
    for a, b in zip(expected, truth, strict=True):
        size = np.abs(wide(b)).max()
        np.testing.assert_allclose(a, b, atol=2e-5 * size, rtol=1e-4)
    for threads in (2, 3):
        mlx_recurrent.set_num_threads(threads)
        equal(layer(x), expected[0])
        for a, b in zip(results(), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(wide(b)).max())


@each_cell
def test_transforms(rng, page, name):
    """Of weights and inputs: mapped, compiled for any length, checkpointed."""
    layer, x = Recurrent(page[name], 3, 5), draw(rng, (2, 4, 3), mx.float32)
    p = layer.parameters()

    def run(p, x):
        return layer.update(p)(x)

    expected = layer(x)
    several = {n: mx.stack([a, 0.5 * a]) for n, a in p.items()}
    mapped = mx.vmap(run)(several, mx.stack([x, x]))
    layer.update(p)
    np.testing.assert_allclose(mapped[0], expected, atol=1e-5)
    shapeless = mx.compile(lambda x: layer(x), shapeless=True)
    for more in (x, mx.concatenate([x, x], 1)):
        np.testing.assert_allclose(shapeless(more), layer(more), atol=1e-5)

    def gradient(run):
        return mx.grad(lambda x: run(p, x).square().sum())(x)

    once = gradient(run)
    np.testing.assert_allclose(gradient(mx.checkpoint(run)), once, atol=1e-5)
    layer.update(p)
    kept = mx.grad(lambda x: layer(x, checkpoint_every=2).square().sum())(x)
    np.testing.assert_allclose(kept, once, atol=1e-5)
    only = mx.grad(lambda x: flat(layer(x, return_state="only"))[0].sum())(x)
    whole = mx.grad(lambda x: layer(x)[:, -1].sum())(x)
    np.testing.assert_allclose(only, whole, atol=1e-5)
