"""Values of the forward pass, against the reference by the tolerance rule."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_recurrent
import reference
from conftest import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    NATIVE,
    SHAPES,
    UPSTREAM,
    array,
    call,
    case,
    draw,
    laid_out,
    ours,
    poison,
    upstream,
    upstream_layer,
)
from tolerances import (
    EPS,
    FORMAT,
    TANH_ULPS,
    ULPS,
    close,
    equal,
    mean_close,
    same_places,
    ulps,
    wide,
)


def check(problem):
    """One call of ours, into memory that holds NaN."""
    expected = call(upstream, problem)
    truth = problem.states()
    mx.eval(expected)
    poison(expected)
    got = call(ours, problem)
    close(got, expected, truth)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "index", range(len(SHAPES)), ids=["-".join(map(str, s)) for s in SHAPES]
)
def test_shapes(rng, index, dtype):
    activation = ACTIVATIONS[(index + DTYPES.index(dtype)) % 4]
    bias, hidden = index % 2 == 0, index % 3 != 0
    check(case(rng, SHAPES[index], dtype, activation, bias, hidden, gain=0.7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("shape", [(3, 9, 5, 20), (17, 1, 16, 33)])
def test_activations(rng, shape, hidden, bias, activation, dtype):
    check(case(rng, shape, dtype, activation, bias, hidden))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (2, 1, 3), (2, 1, 2, 2)])
@pytest.mark.parametrize("hidden", [False, True])
def test_leading_axes(rng, lead, hidden, dtype):
    check(case(rng, (*lead, 7, 5, 9), dtype, hidden=hidden))


# Large enough to be divided among threads, by rows and by units.
@pytest.mark.parametrize(
    "shape", [(64, 16, 64, 256), (3, 24, 64, 515), (1, 24, 64, 768)]
)
def test_large(rng, shape):
    check(case(rng, shape, gain=0.7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 9, 16, 17), (9, 33, 8)])
def test_layouts_of_x(rng, shape, layout, dtype):
    problem = case(rng, shape, dtype)
    check(problem.of(x=laid_out(layout, problem.x)))


@pytest.mark.parametrize("name", ["Wxh", "Whh", "bias", "hidden"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_layouts_of_the_others(rng, layout, name, dtype):
    problem = case(rng, (5, 6, 7, 18), dtype)
    check(problem.of(**{name: laid_out(layout, getattr(problem, name))}))


def test_layouts_of_leading_axes(rng):
    """Three leading axes in an order that no single stride describes."""
    problem = case(rng, (2, 3, 4, 5, 6, 7))
    x = array(wide(problem.x).transpose(1, 3, 0, 4, 2), mx.float32)
    hidden = array(wide(problem.hidden).transpose(3, 1, 0, 2), mx.float32)
    x, hidden = x.transpose(2, 0, 4, 1, 3), hidden.transpose(2, 1, 3, 0)
    mx.eval(x, hidden)
    got = check(problem.of(x=x, hidden=hidden))
    equal(got, call(ours, problem))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_saturating(rng, activation, dtype):
    check(case(rng, (5, 20, 8, 16), dtype, activation, std=10.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tiny(rng, activation, dtype):
    std = 1e-3 if dtype == mx.float16 else 1e-6
    problem = case(
        rng, (5, 12, 8, 16), dtype, activation, bias=False, std=std, gain=0.5
    )
    check(problem.of(hidden=problem.hidden * std))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_growing(rng, activation):
    """Values over many orders of magnitude, all finite."""
    problem = case(rng, (4, 40, 8, 16), activation=activation)
    got = check(problem.of(Whh=mx.abs(problem.Whh)))
    assert 1e10 < mx.abs(got).max().item() < 1e35


def overflowing(rng, dtype, activation):
    growth = {mx.float16: 2.0**4, mx.float64: 2.0**80}.get(dtype, 2.0**20)
    problem = case(rng, (4, 24, 8, 16), dtype, activation)
    return problem.of(Whh=problem.Whh * growth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_overflow(rng, activation, dtype):
    """Sums of one sign beyond the dtype's range are infinite, and stay so."""
    problem = overflowing(rng, dtype, activation)
    problem = problem.of(**{n: mx.abs(a) for n, a in problem.arrays.items()})
    expected = call(upstream, problem)
    assert mx.isinf(expected).any()
    same_places(call(ours, problem), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_of_both_signs(rng, dtype):
    """Where products overflow either way it is NaN or, with fused products, inf."""
    problem = overflowing(rng, dtype, "identity")
    expected = mx.isfinite(call(upstream, problem))
    assert not expected.all() and expected.any()
    equal(mx.isfinite(call(ours, problem)), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["x", "bias", "hidden", "Wxh", "Whh"])
def test_nonfinite_places(rng, name, activation, value):
    problem = case(rng, (4, 9, 6, 33), activation=activation)
    values = wide(getattr(problem, name))
    values[tuple(n // 2 for n in values.shape)] = value
    clean = call(upstream, problem)
    problem = problem.of(**{name: array(values, mx.float32)})
    expected = call(upstream, problem)
    assert not mx.array_equal(expected, clean), "the value does not reach the output"
    with np.errstate(invalid="ignore"):
        truth = problem.states()
    close(call(ours, problem), expected, truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(rng, dtype):
    problem = case(rng, (16, 6, 5, 17), dtype)
    values = wide(problem.x)
    values[3, 2, 1] = np.nan
    got = wide(call(ours, problem.of(x=array(values, dtype))))
    bad = np.zeros(got.shape, bool)
    bad[3, 2:] = True
    np.testing.assert_array_equal(np.isnan(got), bad)
    clean = wide(call(ours, problem))
    np.testing.assert_array_equal(got[~bad], clean[~bad])


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_step_without_hidden_has_no_product(rng, dtype):
    problem = case(rng, (5, 1, 4, 16), dtype, hidden=False)
    check(problem.of(Whh=mx.full((16, 16), float("nan"), dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_hidden_is_a_product(rng, dtype):
    """0 * NaN is NaN: a hidden of zeros is not an absent one."""
    problem = case(rng, (5, 1, 4, 16), dtype)
    problem = problem.of(
        Whh=mx.full((16, 16), float("nan"), dtype), hidden=mx.zeros((5, 16), dtype)
    )
    assert mx.isnan(call(upstream, problem)).all()
    assert mx.isnan(call(ours, problem)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 8, 32, 256), (1, 12, 32, 768), (5, 30, 8, 40)])
def test_threads_do_not_change_a_bit(rng, shape, dtype):
    problem = case(rng, shape, dtype)
    results = []
    for threads in (1, 2, 3):
        mlx_recurrent.set_num_threads(threads)
        assert mlx_recurrent.get_num_threads() == threads
        got = call(ours, problem)
        mx.eval(got)
        results.append(got)
    equal(results[1], results[0], "2 threads")
    equal(results[2], results[0], "3 threads")


@pytest.mark.parametrize("n", [0, -1])
def test_threads_are_at_least_one(n):
    with pytest.raises(ValueError, match=str(n)):
        mlx_recurrent.set_num_threads(n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_calls_are_equal(rng, dtype):
    problem = case(rng, (17, 12, 9, 70), dtype)
    first = call(ours, problem)
    for _ in range(3):
        poison(first)
        equal(call(ours, problem), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("L", [1, 2, 17])
def test_return_state(rng, L, hidden, lead, dtype):
    problem = case(rng, (*lead, L, 5, 9), dtype, hidden=hidden)
    expected = call(upstream, problem)
    outputs, state = call(ours, problem, return_state=True)
    equal(outputs, call(ours, problem), "outputs")
    equal(state, outputs[..., -1, :], "state")
    only = call(ours, problem, return_state="only")
    close(only, expected[..., -1, :], problem.states()[..., -1, :], "only")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [False, True])
def test_scan(rng, hidden, activation, dtype):
    problem = case(rng, (4, 9, 1, 19), dtype, activation, bias=False, hidden=hidden)
    z = draw(rng, (4, 9, 19), dtype)
    # A product with the identity is exact, so upstream's layer is upstream's scan.
    layer = upstream_layer(
        z, mx.eye(19, dtype=dtype), problem.Whh, None, UPSTREAM[activation]
    )
    truth = reference.scan(
        wide(z), wide(problem.Whh), wide(problem.hidden) if hidden else None, activation
    )
    expected = layer(z, problem.hidden)
    mx.eval(expected)
    poison(expected)
    got = mlx_recurrent.scan(
        z, problem.Whh, problem.hidden, nonlinearity=NATIVE[activation]
    )
    close(got, expected, truth)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_scan(rng, layout):
    problem = case(rng, (5, 9, 1, 17))
    z = laid_out(layout, draw(rng, (5, 9, 17), mx.float32))
    layer = upstream_layer(z, mx.eye(17), problem.Whh)
    truth = reference.scan(wide(z), wide(problem.Whh), wide(problem.hidden))
    got = mlx_recurrent.scan(z, problem.Whh, problem.hidden)
    close(got, layer(z, problem.hidden), truth)


def activated(name, z):
    """f(z) of any vector: one step of a scan that has no hidden."""
    H = 32
    padded = np.resize(z, -(-len(z) // H) * H)
    one_step = (
        mx.array(padded, mx.float64) if z.dtype == np.float64 else mx.array(padded)
    )
    Whh = mx.full((H, H), float("nan"), one_step.dtype)
    got = mlx_recurrent.scan(one_step.reshape(-1, 1, H), Whh, nonlinearity=NATIVE[name])
    return got.reshape(-1)[: len(z)]


def every_binade(dtype, rng):
    """Values of both signs in every binade, subnormal ones too, ends included."""
    bits, least = FORMAT[dtype]
    exponents = np.arange(least - bits, 1 - least + 1)
    mantissa = 1 + rng.random((len(exponents), 60))
    mantissa[:, 0], mantissa[:, 1] = 1.0, 2 - 2.0**-bits
    positive = np.ldexp(mantissa, exponents[:, None]).ravel()
    # tanh bends between 2^-6 and 2^5: more values there.
    positive = np.concatenate([positive, 2.0 ** rng.uniform(-6, 5, 40_000)])
    kind = np.float64 if dtype == mx.float64 else np.float32
    return np.concatenate([positive, -positive]).astype(kind)


def every_half(dtype):
    """All finite numbers of a half type, as an array of that type."""
    bits, _ = FORMAT[dtype]
    exponent = 2**15 - 2**bits
    numbers = np.arange(2**16, dtype=np.uint16)
    return mx.array(numbers[numbers & exponent != exponent]).view(dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_tanh_ulps(rng, dtype):
    z = every_binade(dtype, rng)
    truth = np.tanh(z.astype(np.longdouble))
    got = activated("tanh", z)
    assert got.dtype == dtype
    error = ulps(got, truth)
    worst = int(np.argmax(error))
    assert error[worst] <= TANH_ULPS, f"tanh({z[worst]!r}): {error[worst]:.2f} ulp"
    assert mx.abs(got).max().item() <= 1


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_tanh_ulps_of_every_half(dtype):
    z = every_half(dtype)
    got = mlx_recurrent.scan(z.reshape(-1, 1, 16), mx.zeros((16, 16), dtype))
    error = ulps(got.reshape(-1), np.tanh(wide(z)))
    worst = int(np.argmax(error))
    assert error[worst] <= TANH_ULPS, f"tanh({z[worst].item()}): {error[worst]:.2f} ulp"
    assert mx.abs(got).max().item() <= 1


def test_the_caller_keeps_its_denormals(rng):
    """Kernels flush denormal numbers; the threads they run on go back to before."""
    x, Wxh, Whh = (
        draw(rng, shape, mx.float32) for shape in [(1, 2, 1), (1, 1), (1, 1)]
    )
    tiny = mx.array([2.0**-140])
    mx.eval(mlx_recurrent.rnn(x, Wxh, Whh))
    assert (tiny * 2).item() == 2.0**-139


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_binade(rng, activation, dtype):
    z = every_half(dtype) if dtype.size == 2 else array(every_binade(dtype, rng), dtype)
    z = z[: z.size // 16 * 16].reshape(-1, 1, 16)
    got = mlx_recurrent.scan(
        z, mx.zeros((16, 16), dtype), nonlinearity=NATIVE[activation]
    )
    with np.errstate(over="ignore"):
        truth = reference.activate(activation, wide(z))
    close(got, UPSTREAM[activation](z), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "activation, ends",
    [
        ("tanh", [-1.0, -1.0, 1.0, 1.0]),
        ("sigmoid", [0.0, 0.0, 1.0, 1.0]),
        ("relu", [0.0, 0.0, 1e4, np.inf]),
        ("identity", [-np.inf, -1e4, 1e4, np.inf]),
    ],
)
@pytest.mark.parametrize("H", [1, 7, 16, 37])
def test_ends(H, activation, ends, dtype):
    """Infinities, large numbers and NaN, in the vectors and in their tails."""
    z = array([-np.inf, -1e4, 1e4, np.inf, np.nan], dtype)
    columns = mx.broadcast_to(z[:, None, None], (5, 1, H))
    got = mlx_recurrent.scan(
        columns, mx.zeros((H, H), dtype), nonlinearity=NATIVE[activation]
    )
    expected = array([*ends, np.nan], dtype)
    equal(got, mx.broadcast_to(expected[:, None, None], got.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_signed_zeros(activation, dtype):
    z = mx.broadcast_to(array([0.0, -0.0], dtype)[:, None, None], (2, 1, 19))
    got = mlx_recurrent.scan(
        z, mx.zeros((19, 19), dtype), nonlinearity=NATIVE[activation]
    )
    signs = np.signbit(wide(got))
    assert not signs[0].any() and signs[1].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_is_monotone_and_bounded(dtype):
    z = array(np.linspace(-120, 120, 4096), dtype).reshape(-1, 1, 1)
    got = wide(
        mlx_recurrent.scan(z, mx.zeros((1, 1), dtype), nonlinearity=mx.sigmoid)
    ).ravel()
    assert got[0] >= 0 and got[-1] <= 1
    # Up to the rounding of neighbours.
    assert (np.diff(got) >= -ULPS[dtype] * EPS[dtype]).all()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape_layout_and_dtype(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    size = st.integers(1, 20)
    lead = data.draw(st.lists(st.integers(1, 4), max_size=3), "lead")
    shape = (*lead, *data.draw(st.tuples(size, size, size), "L, D, H"))
    problem = case(
        rng,
        shape,
        data.draw(st.sampled_from(DTYPES), "dtype"),
        data.draw(st.sampled_from(ACTIVATIONS), "activation"),
        data.draw(st.booleans(), "bias"),
        data.draw(st.booleans(), "hidden"),
        gain=0.8,
    )
    for name, a in problem.arrays.items():
        layout = data.draw(st.sampled_from(["as is", *LAYOUTS]), f"layout of {name}")
        if layout != "as is":
            problem = problem.of(**{name: laid_out(layout, a)})
    check(problem)


def mean_error(run, problems):
    squares = []
    for p in problems:
        truth = p.states()
        error = (wide(call(run, p)) - truth) / np.abs(truth).max()
        squares.append(error.astype(np.float64).ravel() ** 2)
    return np.sqrt(np.mean(np.concatenate(squares)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_less_accurate_on_average(rng, activation, dtype):
    """Sharper than any single call, whose errors are a matter of luck."""
    shapes = [(4, 20, 16, 33), (2, 40, 100, 16), (8, 8, 7, 64)]
    problems = [case(rng, s, dtype, activation, gain=0.8) for s in shapes * 3]
    mean_close(mean_error(ours, problems), mean_error(upstream, problems), dtype)
