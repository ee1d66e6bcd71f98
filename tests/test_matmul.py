"""The matrix product as a function, and the Linear layer on top of it."""

import copy
import io
import pickle
import re
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_recurrent
import reference
from conftest import DTYPES, LAYOUTS, array, draw, laid_out, poison
from mlx_recurrent import Linear
from tolerances import EPS, MEAN_ULPS, OF_UPSTREAM, close, equal, wide

# rows, K, M: every column has every size around the vector widths.
SHAPES = [
    (1, 257, 100),
    (7, 100, 15),
    (8, 1, 64),
    (15, 64, 33),
    (16, 7, 8),
    (17, 33, 257),
    (31, 15, 1),
    (33, 31, 16),
    (64, 16, 17),
    (100, 17, 7),
    (257, 8, 31),
    (1, 1, 1),
    (2, 300, 2),
    (130, 129, 131),
]


def plain(x, w, bias=None):
    """The product in MLX's own operations, as upstream's layers have it."""
    return x @ w.T if bias is None else mx.addmm(bias, x, w.T)


def operands(rng, shape, dtype=mx.float32, bias=True):
    *lead, K, M = shape
    values = [draw(rng, (*lead, K), dtype), draw(rng, (M, K), dtype)]
    return values + ([draw(rng, (M,), dtype)] if bias else [])


def check(values):
    expected = plain(*values)
    mx.eval(expected)
    poison(expected)
    got = mlx_recurrent.matmul(*values)
    close(got, expected, reference.matmul(*map(wide, values)))
    return got


def check_gradients(values, c):
    truth = reference.matmul_grad(
        *map(wide, values), *[None] * (3 - len(values)), wide(c)
    )
    _, expected = mx.vjp(plain, values, [c])
    mx.eval(expected)
    poison(c, *expected)
    _, got = mx.vjp(mlx_recurrent.matmul, values, [c])
    names, truth = ["x", "w", "bias"][: len(values)], truth[: len(values)]
    for name, *results in zip(names, got, expected, truth, strict=True):
        close(*results, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(rng, shape, bias, dtype):
    check(operands(rng, shape, dtype, bias))


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 1, 3), (2, 3, 1, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_leading_axes(rng, bias, lead):
    values = operands(rng, (*lead, 9, 20), bias=bias)
    check(values)
    check_gradients(values, draw(rng, (*lead, 20), mx.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "w", "bias"])
def test_layouts(rng, place, layout, dtype):
    values = operands(rng, (4, 5, 18, 33), dtype)
    values[place] = laid_out(layout, values[place])
    check(values)
    check_gradients(values, draw(rng, (4, 5, 33), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_cotangent(rng, layout):
    values = operands(rng, (4, 5, 18, 33))
    check_gradients(values, laid_out(layout, draw(rng, (4, 5, 33), mx.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(rng, shape, bias, dtype):
    values = operands(rng, shape, dtype, bias)
    check_gradients(values, draw(rng, (shape[0], shape[2]), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_shape, M", [((0, 4), 3), ((2, 0, 4), 3), ((2, 4), 0)])
def test_empty(x_shape, M, dtype):
    x, w, bias = mx.zeros(x_shape, dtype), mx.ones((M, 4), dtype), mx.ones(M, dtype)
    expected = mx.zeros((*x_shape[:-1], M), dtype)
    got, grads = mx.vjp(mlx_recurrent.matmul, [x, w, bias], [expected])
    equal(got[0], expected)
    for grad, a in zip(grads, (x, w, bias), strict=True):
        equal(grad, mx.zeros(a.shape, dtype))


@pytest.mark.parametrize("shape", [(), (1,), (1, 4), (5, 4), (0, 1, 4)])
def test_empty_with_a_bias_that_broadcasts(shape):
    """Its gradient is no sum of MLX's, which does not always end where nothing is."""
    x, w, bias = mx.zeros((0, 5, 3)), mx.ones((4, 3)), mx.ones(shape)
    grads = mx.grad(lambda b: mlx_recurrent.matmul(x, w, b).sum())(bias)
    graph = io.StringIO()
    mx.export_to_dot(graph, grads)
    assert "Sum" not in graph.getvalue()
    equal(grads, mx.zeros(shape))


def test_no_features():
    """K = 0: the sum over nothing is zero."""
    x, w = mx.zeros((2, 0)), mx.zeros((3, 0))
    equal(mlx_recurrent.matmul(x, w), mx.zeros((2, 3)))
    equal(mlx_recurrent.matmul(x, w, mx.ones(3)), mx.ones((2, 3)))


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("K", [1000, 4097])
def test_long_sums_keep_their_places(rng, rows, K):
    """Thousands of terms: the rule beside NumPy's product, which sums in blocks."""
    x, w = draw(rng, (rows, K), mx.float32), draw(rng, (257, K), mx.float32)
    truth = wide(x) @ wide(w).T

    def error(got):
        return np.sqrt(np.mean((got - truth) ** 2)) / np.abs(truth).max()

    base = error(np.array(x) @ np.array(w).T)
    bound = OF_UPSTREAM * base + MEAN_ULPS * EPS[mx.float32]
    assert error(wide(mlx_recurrent.matmul(x, w))) <= bound


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "w", "bias"])
def test_nonfinite_places(rng, place, value):
    values = operands(rng, (5, 18, 33))
    v = wide(values[place])
    v[tuple(n // 2 for n in v.shape)] = value
    values[place] = array(v, mx.float32)
    got = check(values)
    assert not mx.isfinite(got).all() and mx.isfinite(got).any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_bit(rng, threads):
    values = operands(rng, (130, 129, 131))
    first = check(values)
    mlx_recurrent.set_num_threads(threads)
    equal(check(values), first)


@pytest.mark.parametrize(
    "kinds",
    [
        (mx.float16, mx.float32, mx.float16),
        (mx.float16, mx.bfloat16, mx.float16),
        (mx.int32, mx.float32, mx.float32),
        (mx.bool_, mx.float16, mx.float16),
        (mx.float32, mx.float64, mx.int8),
        (mx.float32, mx.float32, mx.float64),
        (mx.int8, mx.int8, mx.float16),
    ],
    ids=str,
)
def test_promotion(rng, kinds):
    shapes = [(4, 6), (5, 6), (5,)]
    values = [array(np.round(rng.standard_normal(s)), mx.float64) for s in shapes]
    check([v.astype(kind) for v, kind in zip(values, kinds, strict=True)])


@pytest.mark.parametrize(
    "argument, shapes",
    [
        ("x", [(), (5, 6), (5,)]),
        ("x", [(4, 7), (5, 6), (5,)]),
        ("w", [(4, 6), (6,), (5,)]),
        ("w", [(4, 6), (2, 5, 6), (5,)]),
        ("bias", [(4, 6), (5, 6), (4,)]),
    ],
)
def test_shapes_that_raise(argument, shapes):
    arrays = dict(zip(["x", "w", "bias"], map(mx.zeros, shapes), strict=True))
    shape = re.escape(str(arrays[argument].shape))
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*{shape}"):
        mlx_recurrent.matmul(**arrays)


@pytest.mark.parametrize("argument", ["x", "w", "bias"])
def test_complex_raises(argument):
    arrays = {"x": mx.zeros((4, 6)), "w": mx.zeros((5, 6)), "bias": mx.zeros((5,))}
    arrays[argument] = arrays[argument].astype(mx.complex64)
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        mlx_recurrent.matmul(**arrays)


@pytest.mark.parametrize("argument", ["x", "w", "bias"])
def test_other_types_raise(argument):
    arrays = {"x": mx.zeros((4, 6)), "w": mx.zeros((5, 6)), "bias": mx.zeros((5,))}
    arrays[argument] = np.array(arrays[argument])
    with pytest.raises(TypeError, match=rf"\b{argument}\b"):
        mlx_recurrent.matmul(**arrays)


def test_jvp(rng):
    values, tangents = operands(rng, (4, 5, 6)), operands(rng, (4, 5, 6))
    _, (got,) = mx.jvp(mlx_recurrent.matmul, values, tangents)
    _, (expected,) = mx.jvp(plain, values, tangents)
    truth = reference.complex_step(
        reference.matmul, list(map(wide, values)), list(map(wide, tangents))
    )
    close(got, expected, truth)


@pytest.mark.parametrize("argnum", [0, 1, 2])
def test_second_derivatives(rng, argnum):
    """The gradient of the gradient along a direction: products of pairs."""
    values, v = operands(rng, (4, 5, 6)), operands(rng, (4, 5, 6))
    c = draw(rng, (4, 6), mx.float32)

    def second(matmul):
        def along(*a):
            grads = mx.grad(lambda *b: (matmul(*b) * c).sum(), (0, 1, 2))(*a)
            return sum((g * d).sum() for g, d in zip(grads, v, strict=True))

        return mx.grad(along, argnum)(*values)

    truth = reference.complex_step(
        lambda *a: reference.matmul_grad(*a, wide(c)),
        list(map(wide, values)),
        list(map(wide, v)),
    )[argnum]
    close(second(mlx_recurrent.matmul), second(plain), truth)


@pytest.mark.parametrize(
    "in_axes",
    [(0, None, None), (1, None, None), (None, 0, None), (0, 1, 0), (None, None, 0)],
    ids=str,
)
@pytest.mark.parametrize("out_axis", [0, -1])
def test_vmap(rng, out_axis, in_axes):
    shapes = [(4, 6), (5, 6), (5,)]
    values = [
        draw(rng, s if a is None else (*s[:a], 3, *s[a:]), mx.float32)
        for s, a in zip(shapes, in_axes, strict=True)
    ]
    got = mx.vmap(mlx_recurrent.matmul, in_axes, out_axis)(*values)
    # Not plain: MLX's addmm takes no batch of biases for one x.
    expected = mx.vmap(lambda x, w, b: x @ w.T + b, in_axes, out_axis)(*values)
    truth = np.stack(
        [
            reference.matmul(
                *[
                    wide(v) if a is None else np.take(wide(v), i, a)
                    for v, a in zip(values, in_axes, strict=True)
                ]
            )
            for i in range(3)
        ],
        out_axis,
    )
    close(got, expected, truth)


def test_compile(rng):
    compiled = mx.compile(mlx_recurrent.matmul)
    for rows in (3, 8):
        values = operands(rng, (rows, 5, 6))
        equal(compiled(*values), mlx_recurrent.matmul(*values))


def test_compile_shapeless(rng):
    compiled = mx.compile(mlx_recurrent.matmul, shapeless=True)
    for rows in (3, 8, 40):
        values = operands(rng, (rows, 5, 6))
        truth = reference.matmul(*map(wide, values))
        close(compiled(*values), plain(*values), truth)


def test_stream(rng):
    values = operands(rng, (40, 5, 6))
    stream = mx.new_stream(mx.cpu)
    equal(mlx_recurrent.matmul(*values, stream=stream), mlx_recurrent.matmul(*values))


def linear_pair(*args, **kwargs):
    mx.random.seed(5)
    layer = Linear(*args, **kwargs)
    mx.random.seed(5)
    return layer, nn.Linear(*args, **kwargs)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_upstreams(rng, bias):
    layer, theirs = linear_pair(9, 20, bias=bias)
    assert isinstance(layer, nn.Linear)
    assert repr(layer) == repr(theirs)
    for (name, a), (other, b) in zip(
        tree_flatten(layer.parameters()), tree_flatten(theirs.parameters()), strict=True
    ):
        assert name == other
        equal(a, b, name)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.float64, mx.int32])
def test_linear_values(rng, dtype, lead, bias):
    layer, theirs = linear_pair(9, 20, bias=bias)
    x = array(3 * rng.standard_normal((*lead, 9)), mx.float64).astype(dtype)
    truth = reference.matmul(*map(wide, (x, *layer.parameters().values())))
    close(layer(x), theirs(x), truth)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradients(rng, bias):
    layer, theirs = linear_pair(9, 20, bias=bias)
    x, c = draw(rng, (2, 3, 9), mx.float32), draw(rng, (2, 3, 20), mx.float32)
    grads, expected = (
        nn.value_and_grad(m, lambda m: (m(x) * c).sum())(m)[1] for m in (layer, theirs)
    )
    truth = reference.matmul_grad(
        wide(x), wide(layer.weight), wide(layer.bias) if bias else None, wide(c)
    )
    for name, t in zip(["weight", "bias"], truth[1:], strict=True):
        if name in grads:
            close(grads[name], expected[name], t, name)


@pytest.mark.parametrize("shape", [(), (8,), (2, 10)])
def test_linear_refuses_other_shapes(shape):
    x = mx.zeros(shape)
    with pytest.raises(ValueError):
        nn.Linear(9, 20)(x)
    with pytest.raises(ValueError, match=r"\bx\b.*" + re.escape(str(shape))):
        Linear(9, 20)(x)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_linear_weights_load_both_ways(tmp_path, suffix):
    path = str(tmp_path / f"weights.{suffix}")
    for one, other in ((Linear, nn.Linear), (nn.Linear, Linear)):
        source, target = one(9, 20), other(9, 20)
        source.save_weights(path)
        target.load_weights(path, strict=True)
        equal(target.weight, source.weight)
        equal(target.bias, source.bias)


def test_linear_quantizes_as_upstreams(rng):
    layer, theirs = linear_pair(64, 32)
    models = [nn.Sequential(layer), nn.Sequential(theirs)]
    for model in models:
        nn.quantize(model, group_size=32, bits=8)
        assert type(model.layers[0]) is nn.QuantizedLinear
    x = draw(rng, (3, 64), mx.float32)
    equal(models[0](x), models[1](x))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_linear_clones(rng, clone):
    layer = Linear(9, 20)
    layer.freeze()
    other = clone(layer)
    x = draw(rng, (3, 9), mx.float32)
    assert type(other) is Linear and not tree_flatten(other.trainable_parameters())
    equal(other(x), layer(x))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_takes_arrays(bias):
    # Elsewhere the product is MLX's, and so are its words.
    ours = r"^x must be" if sys.platform == "linux" else None
    with pytest.raises(TypeError, match=ours):
        mlx_recurrent.Linear(2, 3, bias=bias)(np.zeros((4, 2)))


@pytest.mark.parametrize("operand", ["x", "weight", "bias"])
def test_linear_of_complex_numbers(operand):
    """Only the recurrent layer refuses them."""
    layer, x = mlx_recurrent.Linear(2, 3), mx.ones((4, 2))
    theirs = nn.Linear(2, 3)
    theirs.update(layer.parameters())
    turned = mx.array(1j)
    if operand == "x":
        x = x * turned
    else:
        layer[operand] = theirs[operand] = layer[operand] * turned
    got, expected = layer(x), theirs(x)
    assert got.dtype == expected.dtype == mx.complex64
    assert mx.array_equal(got, expected)
