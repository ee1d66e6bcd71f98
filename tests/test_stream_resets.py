"""Streams whose rows start anew at some steps."""

import mlx.core as mx
import numpy as np
import pytest

from conftest import ACTIVATIONS, DTYPES, array, draw
from mlx_recurrent import RNN
from optional import problem as problem_with
from streams import PATHS, numpy, same
from tolerances import close


def with_resets(rng, shape, dtype, path, **options):
    """A problem whose rows start episodes, and its layer."""
    *lead, L, D, H = shape
    reset = rng.random((*lead, L)) < 0.25
    given = {"hidden": bool(lead), "dtype": dtype, "reset": reset, "training": False}
    problem = problem_with(rng, tuple(lead), L, D, H, **{**given, **options})
    layer = RNN(
        D,
        H,
        nonlinearity=PATHS[path][problem.activation],
        learn_hidden="hidden0" in problem.arrays,
        zoneout=problem.get("zoneout", 0.0),
    )
    for name in ("Wxh", "Whh", "bias", "hidden0", "leak"):
        if name in problem.arrays:
            setattr(layer, name, problem.arrays[name])
    return problem, layer


RESET_SHAPES = [
    (40, 3, 8),
    (3, 9, 5, 20),
    (2, 37, 3, 17),
    (2, 2, 7, 4, 9),
    (33, 4, 1, 1),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", RESET_SHAPES)
@pytest.mark.parametrize("learned", [False, True])
def test_resets(rng, shape, dtype, path, learned):
    """Rows start episodes of their own: the values, and the bits of any cut."""
    if path == "composed":
        shape = (*shape[:-3], min(shape[-3], 9), *shape[-2:])
    options = {}
    if learned:
        options = {"hidden0": True, "leak": "array", "zoneout": 0.2}
    problem, layer = with_resets(rng, shape, dtype, path, **options)
    x, reset = numpy(problem.arrays["x"]), problem.keywords["reset"]
    hidden, L = problem.arrays.get("hidden"), shape[-3]
    stream = layer.stream(hidden)
    assert stream.plan.path == path
    expected = stream(x, reset=reset)
    close(array(expected, dtype), problem.plain()[0], problem.truth()[0])
    same(stream.state, np.ascontiguousarray(expected[..., -1, :]))
    for places in (range(1, L), np.sort(rng.integers(0, L + 1, 4))):
        stream.reset(hidden)
        pieces = np.split(x, places, axis=-2), np.split(reset, places, axis=-1)
        states = [stream(a, reset=r) for a, r in zip(*pieces, strict=True)]
        same(np.concatenate(states, -2), expected)
    stream.reset(hidden)
    steps = [stream(x[..., t, :], reset=reset[..., t]) for t in range(L)]
    same(np.stack(steps, -2), expected)
    # The rows set by hand: without a product where there is no state.
    stream.reset(hidden)
    start = numpy(layer.hidden0) if learned else np.zeros(shape[-1], "f4")
    for t in range(L):
        stream.reset(np.where(reset[..., t, None], start, stream.state))
        same(stream(x[..., t, :]), np.ascontiguousarray(expected[..., t, :]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_resets_of_activations(rng, path, activation):
    shape = (3, 9, 5, 20)
    problem, layer = with_resets(rng, shape, mx.float32, path, activation=activation)
    stream = layer.stream(problem.arrays["hidden"])
    states = stream(problem.arrays["x"], reset=problem.keywords["reset"])
    close(array(states, mx.float32), problem.plain()[0], problem.truth()[0])


@pytest.mark.parametrize("path", PATHS)
def test_resets_and_streams_of_their_own(rng, path):
    """Environments side by side, each against a stream that is made anew."""
    layer = RNN(3, 8, nonlinearity=PATHS[path]["tanh"])
    x, reset = rng.standard_normal((4, 12, 3), np.float32), rng.random((4, 12)) < 0.3
    states = layer.stream(np.zeros((4, 8)))(x, reset=reset)
    for row, starts, got in zip(x, reset, states, strict=True):
        for t in range(12):
            if t == 0 or starts[t]:
                alone = layer.stream()
            np.testing.assert_allclose(alone(row[t]), got[t], 1e-5, 1e-6)


def test_resets_in_a_long_chunk(rng):
    """During which other threads may run."""
    layer, x = RNN(64, 128), rng.standard_normal((2, 300, 64), np.float32)
    reset = rng.random((2, 300)) < 0.1
    stream = layer.stream(np.ones((2, 128)))
    expected = stream(x, reset=reset)
    stream.reset(np.ones((2, 128)))
    for t in range(300):
        got = stream(x[:, t], reset=reset[:, t])
        same(got, np.ascontiguousarray(expected[:, t]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("learned", [False, True])
def test_nothing_passes_a_reset(path, learned):
    """Neither NaN of the state, nor of a weight that meets no state."""
    layer = RNN(2, 4, nonlinearity=PATHS[path]["tanh"], learn_hidden=learned, leak=0.5)
    x, rows = np.ones((3, 2), np.float32), np.array([False, True, False])
    bad = np.full((3, 4), np.nan, np.float32)
    stream = layer.stream(bad)
    states = stream(x, reset=rows)
    np.testing.assert_array_equal(np.isfinite(states).all(-1), rows)
    one = layer.stream(bad[0])
    assert np.isfinite(one(x, reset=[1, 0, 0])).all()
    if not learned:
        layer.Whh = mx.full((4, 4), mx.nan)
        states = layer.stream(np.ones((3, 4)))(x, reset=rows)
        np.testing.assert_array_equal(np.isfinite(states).all(-1), rows)


@pytest.mark.parametrize("path", PATHS)
def test_forms_of_resets(rng, path):
    """Whatever holds the same booleans gives the same bits, and is left alone."""
    layer = RNN(4, 8, nonlinearity=PATHS[path]["tanh"], learn_hidden=True)
    layer.hidden0 = draw(rng, (8,), mx.float32)
    x, rows = rng.standard_normal((3, 6, 4), np.float32), rng.random((3, 6)) < 0.4
    stream = layer.stream(np.zeros((3, 8)))
    expected = stream(x, reset=rows)
    wide = np.zeros((6, 13), bool)
    wide[::2, 12:0:-2] = rows
    read_only = rows.copy()
    read_only.flags.writeable = False
    before = rows.copy()
    for other in (
        rows.tolist(),
        rows.astype(int).tolist(),
        rows.astype(np.uint8),
        rows.astype(">i8"),
        wide[::2, 12:0:-2],
        np.asfortranarray(rows),
        read_only,
        np.ma.masked_array(rows),
        mx.array(rows),
        mx.array(rows).astype(mx.int8),
        mx.array(rows.T).T,
    ):
        stream.reset(np.zeros((3, 8)))
        same(stream(x, reset=other), expected)
        stream.reset(np.zeros((3, 8)))
        same(stream(mx.array(x), reset=other), expected)
    same(rows, before)
    one = layer.stream()
    for starts in (True, np.True_, 1, np.ones((), bool), mx.array(True), mx.array(1)):
        one.reset(np.ones(8))
        same(one(x[0, 0], reset=starts), layer.stream()(x[0, 0]))
    for starts in (False, 0, np.False_):
        one.reset(np.ones(8))
        same(one(x[0, 0], reset=starts), layer.stream(np.ones(8))(x[0, 0]))


def test_resets_that_lie_in_the_result(rng):
    """They are read before anything is written."""
    stream, x = RNN(1, 2).stream(np.ones((8, 2))), rng.standard_normal((8, 1), "f4")
    rows = rng.random(8) < 0.5
    expected = stream(x, reset=rows)
    stream.reset(np.ones((8, 2)))
    out = np.empty((8, 2), np.float32)
    inside = out.view(bool).reshape(-1)[:8]
    inside[:] = rows
    same(stream(x, reset=inside, out=out), expected)


@pytest.mark.parametrize("path", PATHS)
def test_errors_of_resets(path):
    layer = RNN(4, 8, nonlinearity=PATHS[path]["tanh"])
    stream = layer.stream(np.ones((3, 8)))
    x, out = np.ones((3, 2, 4), np.float32), np.zeros((3, 2, 8), np.float32)
    right = np.zeros((3, 2), bool)
    for message, error, reset in (
        (
            r"reset must have shape \(3, 2\), .* has shape \(3,\)",
            ValueError,
            right[:, 0],
        ),
        (r"has shape \(\)", ValueError, True),
        (r"has shape \(2, 3\)", ValueError, right.T),
        (r"has shape \(3, 2, 1\)", ValueError, right[..., None]),
        (
            r"reset must be 0 or 1, but reset\[2, 1\] is 2",
            ValueError,
            [[0, 1]] * 2 + [[0, 2]],
        ),
        ("reset must be booleans, .* float64", ValueError, right * 1.0),
        ("the same number in each row", ValueError, [[0], [1, 0]]),
        ("reset must be booleans, or integers 0 and 1", TypeError, "rows"),
    ):
        with pytest.raises(error, match=message):
            stream(x, reset=reset, out=out)
    with pytest.raises(
        ValueError, match=r"must have shape \(3,\), the leading axes of"
    ):
        stream(x[:, 0], reset=right)
    with pytest.raises(
        ValueError, match=r"must have shape \(\), the leading axes of x"
    ):
        layer.stream()(x[0, 0], reset=[True])
    assert (stream.state == 1).all() and not out.any()
    for L in (0, 2):
        empty = layer.stream(np.ones((0, 8)))
        assert empty(np.ones((0, L, 4)), reset=np.ones((0, L), bool)).shape == (0, L, 8)
    stream(x[:, :0], reset=right[:, :0])
    assert (stream.state == 1).all()
