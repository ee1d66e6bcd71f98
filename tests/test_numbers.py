"""Numbers at the ends of the range, on every path and instruction set.

Where upstream gives NaN, an infinity, a zero of either sign or a finite number, so do
we. Numbers below the least normal one may be zero instead. What a finite sum makes of
infinities of both signs, and of an overflow on the way, is upstream's too; where its
own order of summation decides that, it is not compared.
"""

import math
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import reference
from conftest import (
    ACTIVATIONS,
    DTYPES,
    array,
    call,
    case,
    composed,
    draw,
    gradients,
    ours,
    traced,
    upstream,
    upstream_layer,
)
from mlx_recurrent import RNN, _native
from tolerances import (
    EPS,
    FORMAT,
    OF_UPSTREAM,
    ULPS,
    close,
    equal,
    reference_close,
    same_places,
    wide,
)

ORDINARY = [mx.float32, mx.float64]
ISAS = _native.available_isas().split(", ")


def same_zeros(got, expected, terms=1, label="result"):
    """Zeros of the same sign, and none but where upstream's is zero or subnormal.

    Of a sum each of so many terms may be subnormal.
    """
    a, b = wide(got), wide(expected)
    least = terms * 2.0 ** FORMAT[got.dtype][1]
    wrong = np.argwhere((a == 0) & (np.abs(b) >= least))
    assert not len(wrong), f"{label}: zero at {wrong[0]}, where upstream is not"
    wrong = np.argwhere((a == 0) & (b == 0) & (np.signbit(a) != np.signbit(b)))
    assert not len(wrong), f"{label}: the sign of zero differs at {wrong[0]}"


def check(path, problem):
    expected = call(upstream, problem)
    got = call(path, problem)
    with np.errstate(over="ignore", invalid="ignore"):
        truth = problem.states()
    close(got, expected, truth)
    same_zeros(got, expected)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zeros_of_both_signs(path, activation, dtype):
    """A step that adds nothing but zeros of each sign."""
    z = np.array([[0.0, -0.0, 0.0, -0.0]] * 17).T
    problem = case(np.random.default_rng(0), (4, 1, 1, 17), dtype, activation, False)
    problem = problem.of(
        x=array(np.array([0.0, -0.0, 0.0, -0.0])[:, None, None], dtype),
        Wxh=array(np.ones((17, 1)), dtype),
        hidden=None,
    )
    same_zeros(call(path, problem), call(upstream, problem))
    # And with products, of zeros too.
    problem = problem.of(hidden=array(z, dtype), Whh=array(np.eye(17), dtype))
    same_zeros(call(path, problem), call(upstream, problem))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("D, H", [(1, 2), (2, 1), (1, 17), (3, 5), (16, 33)])
def test_a_bias_of_zeros_of_both_signs(rng, path, D, H, activation, dtype):
    """For any sizes but one feature of one unit, where MLX makes -0 of zeros alone."""
    zeros = {"x": (2, 2, D), "bias": (H,), "hidden": (2, H)}
    problem = case(rng, (2, 2, D, H), dtype, activation).of(
        **{n: array(rng.choice([0.0, -0.0], s), dtype) for n, s in zeros.items()}
    )
    same_zeros(call(path, problem), call(upstream, problem))


def number(value):
    """A constant of a program, of the dtype of an array."""
    return lambda a: mx.array(value, a.dtype)


def of_a_constant(operation, value):
    """An operation on a number and a constant, either way around."""
    constant = number(value)
    return [
        lambda a: operation(a, constant(a)),
        lambda a: operation(constant(a), a),
        lambda a: operation(constant(a), constant(a) * a),
    ]


# In MLX the erf of a zero is -0, and the sine +0, whatever the zero's sign.
ONE = """negative abs square sqrt rsqrt exp expm1 log log2 log10 log1p sigmoid tanh cos
tan sinh cosh arcsin arccos arctan arcsinh arccosh arctanh floor ceil round sign"""
TWO = """add subtract multiply divide maximum minimum power arctan2 logaddexp
remainder"""
PROGRAMS = {
    **{name: [getattr(mx, name)] for name in ONE.split()},
    **{
        f"{name} {value}": of_a_constant(getattr(mx, name), value)
        for name in TWO.split()
        for value in (0.0, -0.0, 1.0, -2.0)
    },
    "where": [
        lambda a: mx.where(a > 0, number(1)(a), number(-0.0)(a)),
        lambda a: mx.where(a > 0, number(0.0)(a), number(-0.0)(a)),
        lambda a: mx.where(a > 0, a, mx.full(a.shape, -0.0, a.dtype)),
        lambda a: mx.where(a != 0, a, -a),
    ],
    "of constants alone": [
        lambda a: mx.where(a > 0, a, -number(0.0)(a)),
        lambda a: mx.where(a > 0, a, number(0.0)(a) * number(-3)(a)),
        lambda a: a + mx.minimum(number(0.0)(a), number(-0.0)(a)),
        lambda a: number(1)(a) / number(-0.0)(a) + 0 * a,
    ],
    "casts": [
        lambda a: mx.where(a > 0, a, mx.array(-0.0).astype(a.dtype)),
        lambda a: mx.where(a > 0, a, mx.array(-0.0, mx.bfloat16).astype(a.dtype)),
        lambda a: -(a > 0).astype(a.dtype),
    ],
    "powers": [lambda a, k=k: a**k for k in (1, 2, 3, 4, 5, 0.5, -1)],
    "result": [lambda a: mx.full(a.shape, -0.0, a.dtype)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_zeros_of_both_signs_in_programs(name, dtype):
    """What a callable is read to be, in the kernels and as it is run again in MLX."""
    values = [0.0, 1e-30, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 100.0, np.inf]
    a = array([*values, *(-v for v in values)], dtype)
    for k, f in enumerate(PROGRAMS[name]):
        b = a * 1  # not evaluated, as an argument is
        traced = _native.read(f(b), b).trace(dtype)
        expected = f(a)
        for run in (_native.pointwise(a, traced, None), _native.replay(a, traced)):
            same_zeros(run, expected, label=f"{name} {k}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_of_a_callable(rng, dtype):
    """A constant of -0 in a layer's nonlinearity, which gives it on as a state."""
    problem = case(rng, (3, 4, 5, 17), dtype)
    f = lambda a: mx.where(a > 0.5, a, number(-0.0)(a))  # noqa: E731
    given = [problem.x, problem.Wxh, problem.Whh, problem.bias]
    got = mlx_recurrent.rnn(*given, problem.hidden, nonlinearity=f)
    assert RNN(5, 17, nonlinearity=f).plan(mx.zeros((3, 4, 5), dtype)).path == "traced"
    expected = upstream_layer(*given, f)(problem.x, problem.hidden)
    assert np.signbit(wide(got)).any()
    same_zeros(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_exploding(rng, path, activation, dtype):
    """Positive numbers that grow until all are infinite."""
    problem = case(rng, (2, 40, 3, 5), dtype, activation)
    growth = 2.0 ** {mx.float16: 2, mx.float64: 40}.get(dtype, 6)
    problem = problem.of(**{name: mx.abs(a) for name, a in problem.arrays.items()}).of(
        Whh=mx.abs(problem.Whh) * growth
    )
    got = check(path, problem)
    assert mx.isinf(got[:, -1]).all() and mx.isfinite(got[:, 0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_vanishing(rng, path, activation, dtype):
    """Positive numbers that shrink below the least normal one, to zero at last."""
    problem = case(rng, (2, 40, 3, 5), dtype, activation, bias=False)
    problem = problem.of(
        x=mx.zeros_like(problem.x),
        hidden=mx.abs(problem.hidden),
        Whh=mx.abs(problem.Whh) * (2.0 ** (-40 if dtype == mx.float64 else -8)),
    )
    expected = call(upstream, problem)
    got = call(path, problem)
    # Subnormal numbers have few places, or none here.
    least = 2.0 ** FORMAT[dtype][1]
    close(got, expected, problem.states())
    same_zeros(got, expected, terms=5)
    assert np.abs(wide(got)[:, -1]).max() < least


@pytest.mark.parametrize("dtype", ORDINARY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["x", "bias", "hidden", "Wxh", "Whh"])
def test_places_of_what_is_not_finite(rng, path, name, activation, value, dtype):
    """In an input or a weight: the rows and units that it reaches, and no others."""
    problem = case(rng, (3, 6, 4, 17), dtype, activation)
    values = wide(getattr(problem, name))
    values[tuple(n // 2 for n in values.shape)] = value
    check(path, problem.of(**{name: array(values, dtype)}))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "identity"])
@pytest.mark.parametrize("name", ["x", "bias", "hidden", "Wxh", "Whh", "cotangent"])
def test_places_of_nan_in_gradients(rng, path, name, activation):
    """Those of upstream, whose sums over rows and steps are the same."""
    problem = case(rng, (3, 5, 4, 9), activation=activation)
    cotangent = draw(rng, (3, 5, 9), mx.float32)
    values = wide(cotangent if name == "cotangent" else getattr(problem, name))
    values[tuple(n // 2 for n in values.shape)] = np.nan
    spoiled = array(values, mx.float32)
    if name == "cotangent":
        cotangent = spoiled
    else:
        problem = problem.of(**{name: spoiled})
    got = gradients(path, problem, cotangent)
    expected = gradients(upstream, problem, cotangent)
    for of in expected:
        same_places(got[of], expected[of], f"gradient of {of}")


def test_large_numbers_saturate(rng, path):
    """Numbers near the end of the range in, bounded numbers and no NaN out."""
    for dtype in DTYPES:
        big = 1e4 if dtype == mx.float16 else 1e30
        for activation in ("tanh", "sigmoid"):
            problem = case(rng, (2, 5, 1, 7), dtype, activation)
            x = mx.sign(problem.x) * big
            got = check(path, problem.of(x=x.astype(dtype)))
            assert mx.abs(got).max() <= 1


# Parts of the names of what has no kernel of its own, or takes long.
ONCE = ["instruction", "million", "promises"]


@pytest.mark.skipif(
    len(ISAS) < 2 or "MLX_RECURRENT_ISA" in os.environ,
    reason="one instruction set here, or this is a run of one",
)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """The kernels' tests above, in a process with that set."""
    if isa == _native.isa():
        pytest.skip("the other tests ran with it")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *(__file__, "-k", f"not composed and not {' and not '.join(ONCE)}"),
        ],
        env={**os.environ, "MLX_RECURRENT_ISA": isa},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout


def two_units(z, Whh, hidden, cotangent):
    """The reference's scan and scan_grad for two units, in Python's own numbers.

    In a tenth of the time: NumPy takes its time to begin with two numbers.
    """
    (u, v), (w, x) = Whh.tolist()
    p, q = hidden.tolist()
    states = []
    for a, b in z.tolist():
        p, q = math.tanh(a + u * p + v * q), math.tanh(b + w * p + x * q)
        states.append((p, q))
    before = [tuple(hidden.tolist()), *states[:-1]]
    dz, dp, dq = [], 0.0, 0.0
    for (p, q), (c, d) in zip(
        reversed(states), reversed(cotangent.tolist()), strict=True
    ):
        a, b = (dp + c) * (1 - p * p), (dq + d) * (1 - q * q)
        dz.append((a, b))
        dp, dq = u * a + w * b, v * a + x * b
    states, before, dz = np.array(states), np.array(before), np.array(dz[::-1])
    return states, before, dz, dz.T @ before, np.array([dp, dq])


def test_two_units_are_the_reference(rng):
    arrays = [rng.standard_normal(s) for s in ((50, 2), (2, 2), (2,), (50, 2))]
    states, _, *grads = two_units(*arrays)
    *given, cotangent = arrays
    reference_close(states, reference.scan(*given))
    expected = reference.scan_grad(*given, "tanh", cotangent)
    for a, b in zip(grads, expected, strict=True):
        reference_close(a, b)


def test_a_million_steps(rng):
    """Values and gradients of a recurrence that remembers about a hundred steps.

    Upstream's gradient grows with the square of the length. In its place stands the sum
    over steps that it makes: one float32 addition after another.
    """
    L, H = 1_000_000, 2
    q, _ = np.linalg.qr(rng.standard_normal((H, H)))
    z, hidden = draw(rng, (L, H), mx.float32, 0.5), draw(rng, (H,), mx.float32)
    Whh, cotangent = array(0.99 * q, mx.float32), draw(rng, (L, H), mx.float32)
    given = [z, Whh, hidden]
    (got,), grads = mx.vjp(lambda *v: [mlx_recurrent.scan(*v)], given, [cotangent])
    mx.eval(got, grads)
    states, before, *truths = two_units(*map(wide, given), wide(cotangent))
    terms = np.float32(truths[0][:, :, None]) * np.float32(before[:, None, :])
    one_by_one = np.cumsum(terms, axis=0, dtype=np.float32)[-1]
    base = {"Whh": np.abs(one_by_one - truths[1]).max()}
    for name, a, truth in zip(
        ("states", "z", "Whh", "hidden"), (got, *grads), (states, *truths), strict=True
    ):
        error = np.abs(wide(a) - truth).max()
        last_places = ULPS[mx.float32] * EPS[mx.float32] * np.abs(truth).max()
        assert error <= OF_UPSTREAM * base.get(name, 0) + last_places, name


# What api.md promises of bits.


@pytest.mark.parametrize("run", [ours, traced], ids=["native", "traced"])
def test_promises_bits_do_not_depend_on_contents(rng, run):
    """A row is the same beside rows of zeros, of NaN or of infinities."""
    problem = case(rng, (16, 12, 5, 33))
    expected = call(run, problem)
    for other in (0.0, np.nan, np.inf, 1e30):
        x, hidden = wide(problem.x), wide(problem.hidden)
        x[1::2], hidden[1::2] = other, other
        spoiled = problem.of(x=array(x, mx.float32), hidden=array(hidden, mx.float32))
        equal(call(run, spoiled)[::2], expected[::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [7, 33, 100])
def test_promises_rows_agree_whatever_the_batch(rng, dtype, H):
    """Alone or among others, where other kernels may run: each is within the rule."""
    problem = case(rng, (17, 12, 5, H), dtype)
    for rows in (1, 2, 3, 5, 8, 16):
        some = problem.of(x=problem.x[:rows], hidden=problem.hidden[:rows])
        close(call(ours, some), call(upstream, some), some.states())
        alone = mx.concatenate(
            [
                call(
                    ours, problem.of(x=some.x[i : i + 1], hidden=some.hidden[i : i + 1])
                )
                for i in range(rows)
            ]
        )
        close(alone, call(upstream, some), some.states())


@pytest.mark.parametrize("run", [ours, traced], ids=["native", "traced"])
def test_promises_bits_do_not_depend_on_lengths(rng, run):
    """A row is the same however many of the others have ended, and up to its end."""
    problem = case(rng, (16, 12, 5, 33))
    whole = call(run, problem)
    for _ in range(4):
        lengths = rng.integers(0, 13, 16)
        got = call(run, problem, lengths=lengths)
        runs = mx.array(np.arange(12) < lengths[:, None])[..., None]
        equal(got, mx.where(runs, whole, 0))


@pytest.mark.parametrize("run", [ours, traced], ids=["native", "traced"])
@pytest.mark.parametrize("shape", [(64, 6, 32, 256), (1, 12, 32, 600)])
def test_promises_bits_do_not_depend_on_threads(rng, run, shape):
    """Also with lengths, and of the state alone."""
    problem, lengths = case(rng, shape), rng.integers(0, shape[1] + 1, shape[0])
    results = []
    for threads in (1, 2, 3, 7):
        mlx_recurrent.set_num_threads(threads)
        results.append(
            [
                call(run, problem),
                call(run, problem, lengths=lengths),
                call(run, problem, return_state="only"),
            ]
        )
        mx.eval(results)
    for others in results[1:]:
        for a, b in zip(others, results[0], strict=True):
            equal(a, b)


@pytest.mark.parametrize("run", [ours, traced, composed], ids=lambda run: run.__name__)
def test_promises_gradients_repeat(rng, run):
    """For equal shapes and threads, on every path and with lengths."""
    problem = case(rng, (8, 9, 5, 40))
    cotangent, lengths = draw(rng, (8, 9, 40), mx.float32), rng.integers(0, 10, 8)
    first = gradients(run, problem, cotangent, lengths=lengths)
    for _ in range(3):
        again = gradients(run, problem, cotangent, lengths=lengths)
        for name, a in again.items():
            equal(a, first[name], name)


def test_promises_masks_do_not_depend_on_threads(rng):
    layer = RNN(32, 256, zoneout=0.2, input_dropout=0.3, recurrent_dropout=0.3)
    x, results = draw(rng, (64, 6, 32), mx.float32), []
    for threads in (1, 3):
        mlx_recurrent.set_num_threads(threads)
        mx.random.seed(1)
        results.append(layer(x))
        mx.eval(results)
    equal(*results)
