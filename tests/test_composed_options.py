"""Options of the recurrence on the composed path."""

import functools

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import optional
from conftest import array, draw, upstream_layer
from tolerances import close, equal, wide

BIASES = {"steps": (6, 5), "one_row": (1, 5), "one_number": (1,), "scalar": ()}


@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize(
    "options",
    [
        {"input_dropout": 0.4},
        {"lengths": [6, 2, 0]},
        {"lengths": [6, 2, 0], "reverse": True, "input_dropout": 0.4},
        {"leak": 0.3},
        {"zoneout": 0.3, "recurrent_dropout": 0.3},
    ],
    ids="-".join,
)
def test_a_bias_that_broadcasts_beside_terms(rng, path, options, shape):
    """It is added after the dropout, and nothing of the padding passes by it."""
    p = optional.problem(rng, **options)
    p.arrays["bias"] = draw(rng, shape, mx.float32)
    p.arrays["x"] = p.in_padding(p.arrays["x"])
    # Not around zero: where a sum over all steps cancels, luck decides its error.
    d = [draw(rng, shape, p.dtype) + 2 for shape in ((3, 6, 5), (3, 5))]
    values = list(p.arrays.values())
    expected = mx.vjp(p.plain, [p.in_padding(values[0], 0), *values[1:]], d)
    got = mx.vjp(lambda *v: p(path, *v), values, [p.in_padding(d[0]), d[1]])
    truth = p.truth(), p.gradients(*d)
    for three in zip(got, expected, truth, strict=True):
        for a, b, c in zip(*three, strict=True):
            close(a, b, np.asarray(c))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_of_a_norm_beside_lengths(rng, reverse, lead, bias):
    """Also of rows that do not begin, where nothing is added to zeros."""
    norm = lambda a: a / mx.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
    lengths = np.array(4 if lead == () else [6, 4, 0])
    p = optional.problem(rng, lead, bias=bias, hidden=False)
    values, c = list(p.arrays.values()), draw(rng, (*lead, 6, 5), mx.float32)

    def ours(*v):
        arrays = dict(zip(p.names, v, strict=True))
        return mlx_recurrent.rnn(
            **arrays, nonlinearity=norm, lengths=lengths, reverse=reverse
        )

    def theirs(*v):
        """Each row alone, by upstream's layer, the right way around."""
        x, *weights = v
        turn = slice(None, None, -1 if reverse else None)
        made = []
        for row, n in zip(x.reshape(-1, 6, 3), lengths.flat, strict=True):
            y = mx.zeros((0, 5), x.dtype)
            if n:
                layer = upstream_layer(row, *weights, nonlinearity=norm)
                y = layer(row[: int(n)][turn])[turn]
            made.append(mx.pad(y, [(0, 6 - int(n)), (0, 0)]))
        return mx.stack(made).reshape(c.shape)

    def gradients(run, values, c):
        return mx.vjp(run, values, [c])[1]

    got = gradients(ours, [p.in_padding(values[0]), *values[1:]], p.in_padding(c))
    expected = gradients(theirs, values, c)
    *doubles, c = (a.astype(mx.float64) for a in (*values, c))
    truth = gradients(theirs, doubles, c)
    for name, *three in zip(p.names, got, expected, map(wide, truth), strict=True):
        close(*three, name)


NARROW = {
    "x": ["x"],
    "x and Wxh": ["x", "Wxh"],
    "Whh": ["Whh"],
    "bias": ["bias"],
    "hidden": ["hidden"],
    "hidden0": ["hidden0"],
    "leak": ["leak"],
    "all but hidden0": ["x", "Wxh", "Whh", "bias", "hidden", "leak"],
    "all but leak": ["x", "Wxh", "Whh", "bias", "hidden", "hidden0"],
}


@pytest.mark.parametrize("narrow", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"input_dropout": 0.4, "recurrent_dropout": 0.4},
        {"lengths": [6, 2, 0], "reset": np.eye(3, 6, 1, bool), "reverse": True},
        {"reset": np.eye(3, 6, 1, bool), "zoneout": 0.3},
        {"training": False, "zoneout": 0.3},
    ],
    ids="-".join,
)
def test_narrower_dtypes_beside_terms(rng, path, options, dtype, narrow):
    """The result has the widest, and the numbers are rounded to no other."""
    p = optional.problem(rng, leak="array", hidden0=True, **options)
    for name in narrow:
        p.arrays[name] = p.arrays[name].astype(dtype)
    d = draw(rng, (3, 6, 5), mx.float32), draw(rng, (3, 5), mx.float32)
    got, slopes = mx.vjp(lambda *v: p(path, *v), list(p.arrays.values()), list(d))
    # A state to begin with has no say where there is another, and no reset.
    unsaid = narrow == NARROW["all but hidden0"] and "reset" not in options
    expected = dtype if unsaid else mx.float32
    assert got[0].dtype == got[1].dtype == expected
    assert [a.dtype for a in slopes] == [a.dtype for a in p.arrays.values()]
    if len(narrow) > 2:
        return  # the projection is narrow, but on the native path
    single = [a.astype(mx.float32) for a in p.arrays.values()]
    values, gradients = mx.vjp(p.plain, single, list(d))
    truth = [*p.truth(), *p.gradients(*d)]
    for a, b, c in zip([*got, *slopes], [*values, *gradients], truth, strict=True):
        close(a, b.astype(a.dtype), c)


@pytest.mark.parametrize("own", ["leak", "hidden0"])
@pytest.mark.parametrize("L", [0, 1, 2])
def test_own_arrays_have_a_say_in_the_dtype(path, own, L):
    """Also in that of one step, which makes no product, and of none."""
    x, W = mx.ones((2, L, 4), mx.float16), mx.ones((4, 4), mx.float16)
    given = {own: mx.full((4,), 0.5)}
    for hidden in (None, mx.ones((2, 4), mx.float16)):
        outputs, last = path(
            "tanh",
            x,
            W,
            W,
            None,
            hidden,
            return_state=True,
            **given,
            reset=mx.ones((2, L), mx.bool_),
        )
        assert outputs.dtype == last.dtype == mx.float32


@pytest.mark.parametrize("start", [None, "hidden", "hidden0"])
def test_dtype_of_one_step_has_that_of_its_product(path, start):
    x, W = mx.ones((2, 1, 4), mx.float16), mx.ones((4, 4), mx.float16)
    shape = (2, 4) if start == "hidden" else (4,)
    given = {} if start is None else {start: mx.ones(shape, mx.float16)}
    for options in ({}, {"leak": 0.5}):
        got = path("tanh", x, W, mx.ones((4, 4)), **given, **options)
        assert got.dtype == (mx.float16 if start is None else mx.float32)


def test_dtype_of_a_state_without_steps(path):
    x, W = mx.ones((2, 0, 4), mx.float16), mx.ones((4, 4))
    hidden = mx.ones((2, 4), mx.float16)
    outputs, last = path("tanh", x, W, W, None, hidden, return_state=True)
    assert outputs.dtype == last.dtype == mx.float32
    equal(last, hidden.astype(mx.float32))


@pytest.mark.parametrize("name", ["zoneout", "input_dropout", "recurrent_dropout"])
def test_masks_where_x_broadcasts_to_hidden(rng, path, name):
    """Each row of hidden has its own, though all have one input."""
    p = optional.problem(rng, H=20, **{name: 0.4})
    whole = p.arrays["x"]
    p.arrays["x"] = mx.broadcast_to(whole[0], whole.shape)
    expected, truth = p.plain(), p.truth()
    p.arrays["x"] = whole[0]
    for a, b, c in zip(p(path), expected, truth, strict=True):
        close(a, b, c)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_leaky_state_is_rounded_once(rng, path, dtype):
    """Not its parts: it is the nearest number of the dtype."""
    x, q = (draw(rng, (3, 5), dtype) for _ in range(2))
    leak = array(rng.uniform(0, 1, 5), dtype)
    eye, none = mx.eye(5, dtype=dtype), mx.zeros((5, 5), dtype)
    got = path("identity", x[:, None], eye, none, None, q, leak=leak)[:, 0]
    k = wide(leak)
    equal(got, array((1 - k) * wide(q) + k * wide(x), dtype))


def widening(_, x, Wxh, Whh, **keywords):
    """The product with a tanh that returns float32, whatever it is given."""
    f = lambda a: mx.tanh(a.astype(mx.float32))  # noqa: E731
    return mlx_recurrent.rnn(x, Wxh, Whh, nonlinearity=f, **keywords)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("leak", [None, 0.3, "array"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zoneout": 0.3},
        {"recurrent_dropout": 0.3},
        {"lengths": [6, 2, 0], "reset": np.eye(3, 6, 1, bool), "reverse": True},
    ],
    ids="-".join,
)
def test_a_callable_that_widens(rng, options, leak, dtype):
    """Its states are rounded to no narrower dtype, beside any option."""
    given = {"bias": False, "hidden": False, "leak": leak, "dtype": dtype, **options}
    p = optional.problem(rng, D=5, **given)
    p.arrays["Wxh"] = mx.eye(5, dtype=dtype)  # what is projected is not rounded
    if leak == 0.3:
        p.keywords["leak"] = float(mx.array(leak, dtype))
    got = p(widening)
    single = p.plain(*(a.astype(mx.float32) for a in p.arrays.values()))
    for each in zip(got, single, p.truth(), strict=True):
        assert each[0].dtype == mx.float32
        close(*each)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", ["input_dropout", "recurrent_dropout"])
def test_what_a_dropout_leaves_is_rounded_once(rng, path, name, dtype):
    p = optional.problem(rng, (3,), 1, 5, dtype=dtype, bias=False, **{name: 0.3})
    p.activation = "identity"
    here, other = ("Wxh", "Whh") if name == "input_dropout" else ("Whh", "Wxh")
    p.arrays[here], p.arrays[other] = mx.eye(5, dtype=dtype), mx.zeros((5, 5), dtype)
    _, m_x, m_h = p.masks()
    x, hidden = p.arrays["x"][:, 0], p.arrays["hidden"]
    kept, values = (m_x, x) if name == "input_dropout" else (m_h, hidden)
    equal(p(path)[1], array(kept * wide(values), dtype))


def test_absent_products(path):
    """Where rows begin without a state, in any way, a Whh of NaN is not seen."""
    x, W = mx.ones((4, 3, 5)), mx.ones((5, 5))
    lengths, reset = np.array([1, 0, 1, 1]), np.zeros((4, 3), bool)
    reset[2:] = True
    for options in (
        {"lengths": lengths},
        {"lengths": lengths, "reset": reset},
        {"lengths": lengths, "reset": np.zeros_like(reset)},
        {"lengths": np.array([3, 1, 3, 0]), "reset": np.ones_like(reset)},
    ):
        for reverse in (False, True):
            given = {"reverse": reverse, "return_state": True, **options}
            outputs, last = path("tanh", x, W, mx.full((5, 5), mx.nan), **given)
            assert mx.isfinite(outputs).all() and mx.isfinite(last).all()


@pytest.mark.parametrize("where", ["hidden", "cotangent", "both"])
@pytest.mark.parametrize("reverse", [False, True])
def test_nan_of_a_row_without_steps_stays_there(rng, path, reverse, where):
    """In its state, or what comes back to it: no weight's gradient has it."""
    p = optional.problem(rng, lengths=[6, 0, 3], reverse=reverse, leak="array")
    nan = mx.array([0, mx.nan, 0])[:, None]
    d = p.cotangents()
    if where != "cotangent":
        p.arrays["hidden"] += nan
    if where != "hidden":
        d[1] += nan
    found = optional.grads(functools.partial(p, path), p.arrays.values(), d)
    for name, a in zip(p.names, found, strict=True):
        rows = np.isnan(wide(a)).any(-1)
        if name == "hidden":
            assert list(rows) == [False, where != "hidden", False]
        else:
            assert not rows.any()


@pytest.mark.parametrize("name", ["input_dropout", "recurrent_dropout"])
def test_tangents_of_what_is_dropped_are_absent(rng, path, name):
    p = optional.problem(rng, L=1, **{name: 0.5})
    _, m_x, m_h = p.masks()
    of, dropped = ("x", m_x[:, None]) if m_h is None else ("hidden", m_h)
    tangents = dict(zip(p.names, p.directions(), strict=True))
    nan = mx.where(mx.array(dropped) == 0, mx.nan, tangents[of])
    assert mx.isnan(nan).any()
    values, expected = list(p.arrays.values()), dict(tangents)
    tangents[of] = nan
    expected[of] = optional.without_nan(nan)
    got = mx.jvp(lambda *v: p(path, *v), values, list(tangents.values()))[1]
    plain = mx.jvp(p.plain, values, list(expected.values()))[1]
    truth = p.tangents(list(expected.values()))
    for each in zip(got, plain, truth, strict=True):
        close(*each)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_beyond_the_steps(rng, path, reverse, every):
    """Along a mapped axis they cannot be judged: they end at L."""
    p = optional.problem(rng, (), reverse=reverse, truncate_every=every, hidden=False)
    d, x = p.cotangents(), draw(rng, (3, 6, 3), mx.float32)
    weights = list(p.arrays.values())[1:]

    def gradients(n, row):
        p.keywords["lengths"] = n
        return optional.grads(lambda *v: p(path, *v), [row, *weights], d)

    got = mx.vmap(gradients)(mx.array([7, 2, 100]), x)
    for i, n in enumerate([6, 2, 6]):
        p.arrays["x"], p.keywords["lengths"] = x[i], np.array(n)
        expected = optional.grads(p.plain, p.arrays.values(), d)
        for a, b, c in zip(got, expected, p.gradients(*d), strict=True):
            close(a[i], b, c)
