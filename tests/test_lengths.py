"""Rows of several lengths: nothing of the padding reaches anything."""

import itertools
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
from conftest import DTYPES, draw, upstream_layer
from mlx_recurrent import RNN
from optional import grads, problem
from tolerances import close, equal, wide

LENGTHS = [4, 0, 6, 1]
both_ways = pytest.mark.parametrize("reverse", [False, True])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [True, False])
@both_ways
def test_a_padded_batch_is_each_row_alone(rng, way, reverse, hidden, dtype):
    p = way.problem(
        rng, (4,), lengths=LENGTHS, reverse=reverse, hidden=hidden, dtype=dtype
    )
    p.arrays["x"] = p.in_padding(p.arrays["x"])
    outputs, *last = p(way)
    p.check([outputs, *last])
    for n, length in enumerate(LENGTHS):
        equal(outputs[n, length:], mx.zeros((6 - length, 5), dtype))


@both_ways
def test_gradients_are_those_of_the_rows(rng, way, reverse):
    p = way.problem(rng, (4,), lengths=LENGTHS, reverse=reverse)
    p.arrays["x"] = p.in_padding(p.arrays["x"])
    outputs, *last = p.cotangents()
    p.check_gradients(partial(p, way), [p.in_padding(outputs), *last])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@both_ways
def test_the_padding_changes_no_bit(rng, way, reverse, value):
    p = way.problem(rng, (4,), lengths=LENGTHS, reverse=reverse)
    d = p.cotangents()
    results = []
    for inside in (0, value):
        p.arrays["x"] = p.in_padding(p.arrays["x"], inside)
        cotangents = p.in_padding(d[0], inside), *d[1:]
        tangents = [mx.ones_like(a) for a in p.arrays.values()]
        tangents[0] = p.in_padding(tangents[0], inside)
        f = lambda *v: p(way, *v)  # noqa: E731
        results.append(
            f()
            + grads(f, p.arrays.values(), cotangents)
            + mx.jvp(f, list(p.arrays.values()), tangents)[1]
        )
        p.check(results[-1][: len(d)])
    for a, b in zip(*results, strict=True):
        equal(a, b)


@pytest.mark.parametrize("given", ["hidden", "hidden0", "none"])
@both_ways
def test_the_state_of_a_row_without_steps(rng, way, reverse, given):
    p = way.problem(
        rng,
        (2,),
        lengths=[0, 3],
        reverse=reverse,
        hidden=given == "hidden",
        hidden0=given == "hidden0",
    )
    _, last, *_ = p(way)
    expected = {
        "hidden": lambda: p.arrays["hidden"][0],
        "hidden0": lambda: p.arrays["hidden0"],
        "none": lambda: mx.zeros((5,)),
    }[given]()
    equal(last[0], expected)
    # Its gradient is the state's cotangent.
    outputs, *others = p.cotangents()
    d = mx.zeros_like(outputs), *others
    by_name = dict(
        zip(
            p.names,
            grads(lambda *v: p(way, *v), p.arrays.values(), d),
            strict=True,
        )
    )
    if given == "hidden":
        equal(by_name["hidden"][0], d[1][0])


FORMS = {
    "list": list,
    "tuple": tuple,
    "int64": np.array,
    "uint8": lambda v: np.array(v, np.uint8),
    "mlx": mx.array,
    "mlx uint64": lambda v: mx.array(v, mx.uint64),
    "mlx int8": lambda v: mx.array(v, mx.int8),
    "not computed": lambda v: mx.array(v) + 0,
    "strided": lambda v: mx.array(np.repeat(v, 2))[::2],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_lengths(rng, path, form):
    p = problem(rng, (4,), lengths=LENGTHS)
    p.check(p(path, lengths=form(LENGTHS)))


def test_leading_axes(rng, way):
    p = way.problem(rng, (2, 2), lengths=[[4, 0], [6, 1]])
    p.check(p(way))


@pytest.mark.parametrize("length", [3, np.int32(3), mx.array(3)])
def test_one_sequence(rng, way, length):
    p = way.problem(rng, (), lengths=length)
    outputs, *last = p(way)
    p.check([outputs, *last])
    equal(outputs[3:], mx.zeros((3, 5)))
    equal(last[0], outputs[2])


def test_leading_axes_of_hidden(rng, way):
    """The batch is that of hidden, which x broadcasts to."""
    p = way.problem(rng, (3,), lengths=[2, 6, 0])
    p.arrays["x"] = p.arrays["x"][0]
    p.check(p(way))
    p.check_gradients(partial(p, way), p.cotangents())


@pytest.mark.parametrize("lead, L", [((0,), 4), ((2,), 0), ((0, 2), 0)])
def test_nothing_to_run(rng, way, lead, L):
    p = way.problem(rng, lead, L, lengths=np.zeros(lead, int))
    outputs, *last = p(way)
    equal(outputs, mx.zeros((*lead, L, 5)))
    equal(last[0], p.arrays["hidden"])


# Each runs f(x) and lets it see its values.
READABLE = {
    "call": lambda f, x: f(x),
    "grad": lambda f, x: mx.grad(lambda x: f(x).sum())(x),
    "value_and_grad": lambda f, x: mx.value_and_grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: mx.jvp(f, [x], [x]),
    "checkpoint": lambda f, x: mx.checkpoint(f)(x),
    "grad of checkpoint": lambda f, x: mx.grad(
        lambda x: mx.checkpoint(lambda x: f(x).sum())(x)
    )(x),
    "compile": lambda f, x: mx.compile(f)(x),
}


@pytest.mark.parametrize("form", [list, np.array, mx.array, lambda v: mx.array(v) + 0])
@pytest.mark.parametrize("run", READABLE.values(), ids=READABLE)
@pytest.mark.parametrize("bad", [7, -1])
def test_values_out_of_range(rng, path, run, form, bad):
    p = problem(rng, (2,))
    f = lambda x: p(path, x, *list(p.arrays.values())[1:], lengths=form([3, bad]))[0]  # noqa: E731
    with pytest.raises(
        ValueError, match=rf"lengths .*0 to L = 6.*lengths\[1\] is {bad}"
    ):
        run(f, p.arrays["x"])


def test_values_that_depend_on_a_transforms_argument(rng, path):
    p = problem(rng, (2,))

    def f(x, lengths):
        return p(path, x, *list(p.arrays.values())[1:], lengths=lengths + 1)[0].sum()

    with pytest.raises(ValueError, match="lengths"):
        mx.grad(f)(p.arrays["x"], mx.array([6, 2]))
    with pytest.raises(ValueError, match="lengths"):
        mx.checkpoint(f)(p.arrays["x"], mx.array([6, 2]))


@both_ways
def test_values_that_cannot_be_read_are_clamped(rng, way, reverse):
    given = {"hidden": False, "cell": False, "lengths": [0, 6, 2]}
    p = way.problem(rng, (3,), reverse=reverse, **given)

    def f(x, lengths):
        return p(way, x, *list(p.arrays.values())[1:], lengths=lengths)

    for transform in (mx.compile, mx.vmap):
        p.check(transform(f)(p.arrays["x"], mx.array([-3, 9, 2])))


def test_the_callable_runs_once_a_step_for_all_rows(rng):
    calls = itertools.count()
    seen = []

    def f(a):
        seen.append(a.shape)
        return mx.squeeze(mx.expand_dims(0 * a + next(calls), 0), 0)

    p = problem(rng, (3,), hidden=False)
    for reverse in (False, True):
        calls, seen = itertools.count(), []
        outputs = mlx_recurrent.rnn(
            *list(p.arrays.values())[:3],
            nonlinearity=f,
            lengths=[6, 1, 0],
            reverse=reverse,
        )
        # Once before, where it is read.
        assert seen == [(3, 5)] * 7
        places = mx.arange(6)[::-1] if reverse else mx.arange(6)
        equal(outputs[0, :, 0], places.astype(mx.float32) + 1)


def _norm(scale):
    return lambda a: a * scale / mx.linalg.norm(a, axis=-1, keepdims=True)


SINGULAR = {
    "norm": _norm,
    "root": lambda scale: lambda a: mx.sqrt(mx.abs(a)) * scale,
    "standard": lambda scale: lambda a: a * scale / mx.std(a, axis=-1, keepdims=True),
    "softmax": lambda scale: lambda a: mx.softmax(scale * a, axis=-1),
}


@pytest.mark.parametrize("make", SINGULAR.values(), ids=SINGULAR)
@both_ways
def test_callables_that_are_singular_at_zero(rng, reverse, make):
    """What a callable captures gets the gradient of the rows that run."""
    p = problem(rng, (3,), hidden=False)
    x, *weights = p.arrays.values()
    scale, c = draw(rng, (5,), mx.float32) + 2, draw(rng, (3, 4, 5), mx.float32)

    def ours(x, scale, *weights):
        x = mx.concatenate([x, mx.full((3, 2, 3), mx.nan)], 1)
        y = mlx_recurrent.rnn(
            x, *weights, nonlinearity=make(scale), reverse=reverse, lengths=[4, 4, 4]
        )
        return y[:, :4]

    def theirs(x, scale, *weights):
        step = slice(None, None, -1) if reverse else slice(None)
        return upstream_layer(x, *weights, make(scale))(x[:, step])[:, step]

    def gradients(run, dtype=mx.float32):
        values = [a.astype(dtype) for a in (x[:, :4], scale, *weights)]
        return mx.vjp(run, values, [c.astype(dtype)])[1]

    results = gradients(ours), gradients(theirs), gradients(theirs, mx.float64)
    for got, expected, truth in zip(*results, strict=True):
        close(got, expected, wide(truth))


def test_modules_with_parameters(rng):
    layer = RNN(3, 5, nonlinearity=nn.LayerNorm(5))
    p = problem(rng, (3,))
    x = p.arrays["x"]

    def loss(layer, x):
        return layer(x, lengths=[6, 0, 2]).square().sum()

    got = nn.value_and_grad(layer, loss)
    p.keywords["lengths"] = [6, 0, 2]
    (value, tree), (again, same) = got(layer, x), got(layer, p.in_padding(x))
    equal(value, again)
    equal(tree["nonlinearity"]["weight"], same["nonlinearity"]["weight"])
    equal(tree["Wxh"], same["Wxh"])


def test_scan(rng):
    p = problem(rng, D=5, lengths=[3, 6, 0], reverse=True, bias=False, hidden=False)
    p.arrays["Wxh"] = mx.eye(5)
    z, _, Whh = p.arrays.values()
    p.check(mlx_recurrent.scan(z, Whh, **p.keywords, return_state=True))


def test_exporting(rng, tmp_path):
    """The graph holds the lengths that it was made with, or takes them."""
    layer, x = RNN(3, 5, leak=0.5), draw(rng, (3, 6, 3), mx.float32)
    file = str(tmp_path / "layer.mlxfn")
    lengths = mx.array([3, 6, 0])
    f = lambda x, lengths: layer(x, lengths=lengths, reverse=True)  # noqa: E731
    with mlx_recurrent.exporting():
        mx.export_function(file, f, x, mx.array([1, 2, 3]))
        expected = f(x, lengths)
    (got,) = mx.import_function(file)(x, lengths)
    equal(got, expected)
