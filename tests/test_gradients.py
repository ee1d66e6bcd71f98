"""First derivatives of every input, against hand-written back-propagation."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_recurrent
import reference
from conftest import (
    ACTIVATIONS,
    ARGUMENTS,
    DTYPES,
    LAYOUTS,
    NATIVE,
    SHAPES,
    UPSTREAM,
    array,
    call,
    draw,
    gradients,
    laid_out,
    ours,
    poison,
    smooth,
    upstream,
    upstream_layer,
)
from tolerances import all_close, close, equal, mean_close, wide


def cotangent_of(rng, problem, std=1.0):
    """Not around zero: where a sum over all steps cancels, luck decides its error."""
    shape = (*problem.x.shape[:-1], problem.Whh.shape[0])
    return array(std * (1 + rng.standard_normal(shape)), problem.x.dtype)


def check(problem, cotangent, names=None):
    """Ours, into memory that holds NaN, for the inputs of these names or for all."""
    expected = gradients(upstream, problem, cotangent, names)
    truth = problem.gradients(cotangent)
    truth = {name: truth[name] for name in expected}
    poison(cotangent, *expected.values())
    got = gradients(ours, problem, cotangent, names)
    all_close(got, expected, truth)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "index", range(len(SHAPES)), ids=["-".join(map(str, s)) for s in SHAPES]
)
def test_shapes(rng, index, dtype):
    activation = ACTIVATIONS[(index + DTYPES.index(dtype)) % 4]
    bias, hidden = index % 2 == 1, index % 3 != 1
    problem = smooth(rng, SHAPES[index], dtype, activation, bias, hidden, gain=0.7)
    check(problem, cotangent_of(rng, problem))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_activations(rng, hidden, bias, activation, dtype):
    problem = smooth(rng, (5, 9, 6, 20), dtype, activation, bias, hidden, gain=0.8)
    check(problem, cotangent_of(rng, problem))


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 3), (2, 1, 2, 2)])
@pytest.mark.parametrize("hidden", [False, True])
def test_leading_axes(rng, lead, hidden):
    problem = smooth(rng, (*lead, 7, 5, 9), hidden=hidden)
    check(problem, cotangent_of(rng, problem))


@pytest.mark.parametrize("shape", [(64, 6, 32, 256), (1, 12, 32, 600)])
def test_large(rng, shape):
    problem = smooth(rng, shape, gain=0.7)
    check(problem, cotangent_of(rng, problem))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_layouts(rng, name, layout, dtype):
    problem = smooth(rng, (5, 9, 7, 18), dtype)
    problem = problem.of(**{name: laid_out(layout, getattr(problem, name))})
    check(problem, cotangent_of(rng, problem))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_cotangent(rng, layout, dtype):
    problem = smooth(rng, (5, 9, 7, 18), dtype)
    check(problem, laid_out(layout, cotangent_of(rng, problem)))


@pytest.mark.parametrize(
    "names",
    [["x"], ["Wxh"], ["Whh"], ["bias"], ["hidden"], ["Whh", "x"], ["hidden", "bias"]],
    ids="-".join,
)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_some_arguments(rng, activation, names):
    problem = smooth(rng, (4, 9, 6, 17), activation=activation)
    cotangent = cotangent_of(rng, problem)
    got = check(problem, cotangent, names)
    assert list(got) == names


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum(rng, dtype):
    """The cotangent of a sum is one number, broadcast."""
    problem = smooth(rng, (4, 9, 6, 17), dtype)
    shape = (4, 9, 17)
    check(problem, mx.broadcast_to(mx.array(1.0, dtype), shape))


def test_grad_of_sum(rng):
    problem = smooth(rng, (4, 9, 6, 17))
    expected = gradients(upstream, problem, mx.ones((4, 9, 17)))
    truth = problem.gradients(mx.ones((4, 9, 17)))
    values = list(problem.arrays.values())
    grads = mx.grad(lambda *a: ours("tanh", *a).sum(), argnums=tuple(range(5)))(*values)
    all_close(dict(zip(ARGUMENTS, grads, strict=True)), expected, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0, 4, -1])
def test_sparse_cotangent(rng, step, dtype):
    """Only one step is used: its slice's gradient is zero elsewhere."""
    problem = smooth(rng, (4, 9, 6, 17), dtype)
    values = np.zeros((4, 9, 17))
    values[:, step] = rng.standard_normal((4, 17))
    got = check(problem, array(values, dtype))
    after = wide(got["x"])[:, range(9)[step] + 1 :]
    assert not after.any(), "a gradient went forward in time"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [False, True])
def test_state(rng, hidden, activation, dtype):
    """return_state=True: cotangents of the outputs and of the state add up."""
    problem = smooth(rng, (4, 9, 6, 17), dtype, activation, hidden=hidden, gain=0.8)
    c, last = cotangent_of(rng, problem), draw(rng, (4, 17), dtype)
    expected = gradients(upstream, problem, c, last=last)
    names = list(problem.arrays)
    poison(c, *expected.values())

    def function(*values):
        return list(
            ours(activation, **dict(zip(names, values, strict=True)), return_state=True)
        )

    _, grads = mx.vjp(function, list(problem.arrays.values()), [c, last])
    all_close(
        dict(zip(names, grads, strict=True)), expected, problem.gradients(c, last)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("L, hidden", [(1, False), (1, True), (2, False), (23, True)])
def test_state_only(rng, L, hidden, activation, dtype):
    problem = smooth(rng, (4, L, 6, 17), dtype, activation, hidden=hidden, gain=0.8)
    last = draw(rng, (4, 17), dtype)
    zero = mx.zeros((4, L, 17), dtype)
    expected = gradients(upstream, problem, zero, last=last)
    poison(zero, *expected.values())
    got = gradients(ours, problem, last, return_state="only")
    all_close(got, expected, problem.gradients(None, last))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [False, True])
def test_scan(rng, hidden, activation, dtype):
    z, c = draw(rng, (4, 9, 19), dtype), draw(rng, (4, 9, 19), dtype)
    Whh = draw(rng, (19, 19), dtype, 0.8 / np.sqrt(19))
    inputs = [z, Whh] + ([draw(rng, (4, 19), dtype)] if hidden else [])
    eye = mx.eye(19, dtype=dtype)

    def expected(z, Whh, h=None):
        return upstream_layer(z, eye, Whh, None, UPSTREAM[activation])(z, h)

    def got(*inputs):
        return mlx_recurrent.scan(*inputs, nonlinearity=NATIVE[activation])

    truth = reference.scan_grad(
        *[wide(a) for a in inputs], *[None] * (3 - len(inputs)), activation, wide(c)
    )
    _, theirs = mx.vjp(expected, inputs, [c])
    mx.eval(theirs)
    poison(c, *theirs)
    _, grads = mx.vjp(got, inputs, [c])
    names = ["z", "Whh", "hidden"][: len(inputs)]
    for name, *results in zip(names, grads, theirs, truth[: len(inputs)], strict=True):
        close(*results, name)


@pytest.mark.parametrize(
    "hidden_lead, x_lead", [((3,), ()), ((3,), (1,)), ((5, 2), (2,))]
)
def test_hidden_broadcasts_the_input(rng, hidden_lead, x_lead):
    problem = smooth(rng, (*x_lead, 6, 5, 9))
    problem = problem.of(hidden=draw(rng, (*hidden_lead, 9), mx.float32))
    c = draw(rng, (*hidden_lead, 6, 9), mx.float32)
    got = check(problem, c)
    assert {n: a.shape for n, a in got.items()} == {
        n: a.shape for n, a in problem.arrays.items()
    }


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_saturating(rng, activation, dtype):
    problem = smooth(rng, (5, 12, 8, 16), dtype, activation, std=10.0)
    check(problem, cotangent_of(rng, problem))


def test_growing(rng):
    problem = smooth(rng, (4, 20, 8, 16), activation="identity")
    problem = problem.of(Whh=mx.abs(problem.Whh))
    got = check(problem, mx.abs(cotangent_of(rng, problem)))
    assert 1e8 < mx.abs(got["Wxh"]).max().item() < 1e30


def test_relu_has_no_slope_at_zero(rng):
    problem = smooth(rng, (3, 5, 4, 9), activation="relu", bias=False)
    problem = problem.of(x=mx.zeros((3, 5, 4)), hidden=mx.zeros((3, 9)))
    c = cotangent_of(rng, problem)
    expected = gradients(upstream, problem, c)
    got = gradients(ours, problem, c)
    for name in got:
        equal(got[name], expected[name], name)


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_long(rng, activation):
    """2000 steps with a memory of about a hundred."""
    problem = smooth(rng, (2, 2000, 4, 24), activation=activation, std=0.3)
    q, _ = np.linalg.qr(rng.standard_normal((24, 24)))
    problem = problem.of(Whh=array(0.99 * q, mx.float32))
    check(problem, cotangent_of(rng, problem))


def test_long_chaotic(rng):
    """Past a step or two hundred nobody's states are right; nothing may overflow."""
    problem = smooth(rng, (2, 300, 4, 16), gain=1.5)
    got = gradients(ours, problem, cotangent_of(rng, problem, std=1e-3))
    assert all(mx.isfinite(g).all() for g in got.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, L", [(0, 0), (0, 1), (0, 7), (3, 0)])
def test_empty(rng, N, L, dtype):
    problem = smooth(rng, (N, L, 4, 9), dtype)
    got = gradients(ours, problem, mx.zeros((N, L, 9), dtype))
    for name, a in problem.arrays.items():
        equal(got[name], mx.zeros(a.shape, dtype), name)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("return_state", [True, "only"])
def test_empty_sequence_passes_the_state(rng, return_state, hidden):
    problem = smooth(rng, (3, 0, 4, 9), hidden=hidden)

    def state(*values):
        out = ours(
            "tanh",
            **dict(zip(problem.arrays, values, strict=True)),
            return_state=return_state,
        )
        return out if return_state == "only" else out[1]

    values, c = list(problem.arrays.values()), draw(rng, (3, 9), mx.float32)
    (got,), grads = mx.vjp(state, values, [c])
    equal(got, problem.hidden if hidden else mx.zeros((3, 9)))
    for (name, a), grad in zip(problem.arrays.items(), grads, strict=True):
        equal(grad, c if name == "hidden" else mx.zeros(a.shape), name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_product_has_a_zero_gradient(rng, dtype):
    """One step without hidden: Whh, NaN here, is read by nothing."""
    problem = smooth(rng, (3, 1, 4, 9), dtype, hidden=False)
    problem = problem.of(Whh=mx.full((9, 9), float("nan"), dtype))
    got = check(problem, cotangent_of(rng, problem))
    equal(got["Whh"], mx.zeros((9, 9), dtype))


@pytest.mark.parametrize("shape", [(64, 6, 32, 256), (1, 12, 32, 600), (5, 9, 7, 18)])
def test_repeated_gradients_are_equal(rng, shape):
    problem = smooth(rng, shape)
    c = cotangent_of(rng, problem)
    first = gradients(ours, problem, c)
    for _ in range(3):
        poison(c, *first.values())
        again = gradients(ours, problem, c)
        for name in first:
            equal(again[name], first[name], name)


def test_gradients_are_equal_while_the_pool_is_busy(rng):
    """Two streams at once: one takes the threads, the other must give the same bits."""
    problems = [smooth(rng, s) for s in ((64, 20, 32, 256), (1, 60, 32, 600))]
    cotangents = [cotangent_of(rng, p) for p in problems]
    alone = [gradients(ours, p, c) for p, c in zip(problems, cotangents, strict=True)]
    streams = [mx.new_stream(mx.cpu) for _ in problems]
    for _ in range(3):
        poison(*cotangents)
        together = []
        for p, c, stream in zip(problems, cotangents, streams, strict=True):
            values = list(p.arrays.values())
            _, grads = mx.vjp(
                lambda *v, s=stream: ours("tanh", *v, stream=s), values, [c]
            )
            mx.async_eval(grads)
            together.append(dict(zip(p.arrays, grads, strict=True)))
        for got, expected in zip(together, alone, strict=True):
            for name in got:
                equal(got[name], expected[name], name)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(64, 6, 32, 256), (1, 12, 32, 600), (5, 9, 7, 18)])
def test_threads(rng, shape, threads):
    mlx_recurrent.set_num_threads(threads)
    problem = smooth(rng, shape)
    check(problem, cotangent_of(rng, problem))


def test_value_is_the_forward(rng):
    """Taking a gradient changes no bit of the outputs."""
    problem = smooth(rng, (17, 12, 9, 70))
    values = list(problem.arrays.values())
    c = cotangent_of(rng, problem)
    (got,), _ = mx.vjp(lambda *a: ours("tanh", *a), values, [c])
    equal(got, call(ours, problem))


def mean_error(run, problems, cotangents):
    """By name of the input, the root mean square of relative errors."""
    squares = {name: [] for name in ARGUMENTS}
    for p, c in zip(problems, cotangents, strict=True):
        truth = p.gradients(c)
        for name, grad in gradients(run, p, c).items():
            error = (wide(grad) - truth[name]) / np.abs(truth[name]).max()
            squares[name].append(error.astype(np.float64).ravel() ** 2)
    return {name: np.sqrt(np.mean(np.concatenate(s))) for name, s in squares.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_less_accurate_on_average(rng, activation, dtype):
    """Sharper than any single call, whose errors are a matter of luck."""
    shapes = [(4, 20, 16, 33), (2, 40, 100, 16), (8, 8, 7, 64)]
    problems = [smooth(rng, s, dtype, activation, gain=0.8) for s in shapes * 3]
    cotangents = [cotangent_of(rng, p) for p in problems]
    error, base = (mean_error(run, problems, cotangents) for run in (ours, upstream))
    for name in ARGUMENTS:
        mean_close(error[name], base[name], dtype, name)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shape_layout_and_dtype(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    size = st.integers(1, 20)
    lead = data.draw(st.lists(st.integers(1, 4), max_size=3), "lead")
    shape = (*lead, *data.draw(st.tuples(size, size, size), "L, D, H"))
    problem = smooth(
        rng,
        shape,
        data.draw(st.sampled_from(DTYPES), "dtype"),
        data.draw(st.sampled_from(ACTIVATIONS), "activation"),
        data.draw(st.booleans(), "bias"),
        data.draw(st.booleans(), "hidden"),
        gain=0.6,
    )
    for name, a in problem.arrays.items():
        layout = data.draw(st.sampled_from(["as is", *LAYOUTS]), f"layout of {name}")
        if layout != "as is":
            problem = problem.of(**{name: laid_out(layout, a)})
    c = cotangent_of(rng, problem)
    layout = data.draw(st.sampled_from(["as is", *LAYOUTS]), "layout of the cotangent")
    check(problem, c if layout == "as is" else laid_out(layout, c))
