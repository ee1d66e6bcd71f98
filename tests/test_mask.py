"""Skipped steps: states stay as they are, and nothing of the input there counts."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
import optional
from conftest import COMPOSED, DTYPES, NATIVE, TRACED, draw, upstream_layer
from optional import grads
from tolerances import close, equal, wide

both_ways = pytest.mark.parametrize("reverse", [False, True])
TAKEN = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1], [0] * 6, [1] * 6], bool)
STARTS = np.array([[0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0] * 6])


def skipping(rng, way, lead=(4,), **options):
    """A problem with NaN where its inputs do not count."""
    p = way.problem(rng, lead, **{"mask": TAKEN, **options})
    p.arrays["x"] = p.in_unseen(p.arrays["x"])
    return p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [True, False])
@both_ways
def test_values(rng, way, reverse, given, dtype):
    states = {"hidden": given, "cell": given}
    p = skipping(rng, way, reverse=reverse, dtype=dtype, **states)
    outputs, *last = p(way)
    p.check([outputs, *last])
    for n, t in np.argwhere(~TAKEN):
        before = t + 1 if reverse else t - 1
        held = outputs[n, before] if 0 <= before < 6 else p.arrays.get("hidden")
        if held is None:
            held = mx.zeros((5,), dtype)
        equal(outputs[n, t], held if held.ndim == 1 else held[n])


@both_ways
def test_a_row_is_its_taken_steps_alone(rng, way, reverse):
    p = skipping(rng, way, reverse=reverse)
    outputs, *last = p(way)
    for n, taken in enumerate(TAKEN):
        steps = mx.array(np.flatnonzero(taken))
        alone = way.problem(rng, (), int(taken.sum()), reverse=reverse)
        for name, a in p.arrays.items():
            of_row = name == "x" or name in p.reference.states
            alone.arrays[name] = a[n] if of_row else a
        alone.arrays["x"] = alone.arrays["x"][steps]
        alone.check([outputs[n][steps], *(state[n] for state in last)])


@both_ways
def test_gradients(rng, way, reverse):
    p = skipping(rng, way, reverse=reverse)
    p.check_gradients(partial(p, way), p.cotangents())


@both_ways
def test_gradients_of_the_last_state(rng, way, reverse):
    p = skipping(rng, way, reverse=reverse)
    p.return_state = "only"
    p.check(p(way))
    p.check_gradients(partial(p, way), p.cotangents())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@both_ways
def test_the_input_changes_no_bit(rng, way, reverse, value):
    p = way.problem(rng, (4,), mask=TAKEN, lengths=[6, 4, 5, 2], reverse=reverse)
    d, results = p.cotangents(), []
    for inside in (0, value):
        p.arrays["x"] = p.in_unseen(p.arrays["x"], inside)
        tangents = [mx.ones_like(a) for a in p.arrays.values()]
        tangents[0] = p.in_unseen(tangents[0], inside)
        f = lambda *v: p(way, *v)  # noqa: E731
        results.append(
            f()
            + grads(f, p.arrays.values(), d)
            + mx.jvp(f, list(p.arrays.values()), tangents)[1]
        )
        p.check(results[-1][: len(d)])
    for a, b in zip(*results, strict=True):
        equal(a, b)


@pytest.mark.parametrize("learned", [False, True])
@both_ways
def test_episodes_start_at_skipped_steps(rng, way, reverse, learned):
    """The output there is what they start from."""
    starts = {"hidden0": learned, "cell0": learned}
    p = skipping(rng, way, reset=STARTS, reverse=reverse, **starts)
    outputs, *last = p(way)
    p.check([outputs, *last])
    p.check_gradients(partial(p, way), p.cotangents())
    if not reverse:
        start = p.arrays["hidden0"] if learned else mx.zeros((5,))
        equal(outputs[0, 1], start)
        equal(outputs[0, 2], start)


def test_a_first_state_that_is_held_until_an_episode_changes_no_gradient(rng, way):
    taken = np.array([[0, 0, 0, 1, 1, 0]] * 4, bool)
    starts = np.array([[0, 0, 1, 0, 0, 0]] * 4)
    p = skipping(rng, way, mask=taken, reset=starts, cell=True)
    firsts = [name for name in p.names if name in p.reference.states]
    d, results = p.cotangents(), []
    for inside in (0.0, np.nan):
        for name in firsts:
            p.arrays[name] = mx.full(p.arrays[name].shape, inside)
        outputs, *last = p(way)
        p.check([outputs, *last])
        results.append(grads(lambda *v: p(way, *v), p.arrays.values(), d))
    for a, b in zip(*results, strict=True):
        equal(a, b)


def test_a_cotangent_of_a_restarted_state_goes_nowhere(rng, way):
    """Also where it is NaN: the output is not a function of anything."""
    p = skipping(rng, way, reset=STARTS)
    d = p.cotangents()
    d[0] = mx.where(mx.array(STARTS.astype(bool) & ~TAKEN)[..., None], mx.nan, d[0])
    for a in grads(lambda *v: p(way, *v), p.arrays.values(), d):
        assert mx.isfinite(a).all()


@both_ways
def test_rows_that_end_and_blocks(rng, way, reverse):
    """Skipped steps count in the blocks of truncated back-propagation."""
    options = {"lengths": [6, 5, 0, 3], "truncate_every": 2}
    p = skipping(rng, way, reverse=reverse, **options)
    p.check(p(way))
    p.check_gradients(partial(p, way), p.cotangents())
    x, *others = p.directions()
    p.check_tangents(partial(p, way), [p.in_unseen(x), *others])


def test_all_steps_are_skipped(rng, way):
    p = skipping(rng, way, mask=np.zeros((4, 6), bool))
    outputs, *last = p(way)
    hidden = p.arrays["hidden"]
    equal(outputs, mx.broadcast_to(hidden[:, None], (4, 6, 5)))
    for state, name in zip(last, p.reference.states, strict=True):
        equal(state, p.arrays[name])
    d = [mx.ones_like(a) for a in (outputs, *last)]
    found = grads(lambda *v: p(way, *v), p.arrays.values(), d)
    for name, a in zip(p.names, found, strict=True):
        times = {"hidden": 7, "cell": 1}.get(name, 0)
        equal(a, mx.full(a.shape, times, a.dtype))


FORMS = {
    "bool list": lambda v: v.tolist(),
    "integer list": lambda v: v.astype(int).tolist(),
    "uint8": lambda v: v.astype(np.uint8),
    "mlx": mx.array,
    "mlx int32": lambda v: mx.array(v.astype(np.int32)),
    "not computed": lambda v: mx.array(~v) == 0,
    "strided": lambda v: mx.array(np.repeat(v, 2, 1))[:, ::2],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(rng, way, form):
    p = skipping(rng, way)
    p.check(p(way, mask=form(TAKEN)))


def test_leading_axes(rng, way):
    mask = TAKEN.reshape(2, 2, 6)
    p = skipping(rng, way, (2, 2), mask=mask)
    p.check(p(way))
    p = skipping(rng, way, (), mask=TAKEN[0])
    p.check(p(way))


def test_leading_axes_of_hidden(rng, way):
    """The batch is that of hidden, which x broadcasts to."""
    p = way.problem(rng, (4,), mask=TAKEN)
    p.arrays["x"] = p.arrays["x"][0]
    p.check(p(way))
    p.check_gradients(partial(p, way), p.cotangents())


@pytest.mark.parametrize("lead, L", [((0,), 4), ((2,), 0), ((0, 2), 0)])
def test_nothing_to_run(rng, way, lead, L):
    p = way.problem(rng, lead, L, mask=np.zeros((*lead, L), bool))
    outputs, *last = p(way)
    equal(outputs, mx.zeros((*lead, L, 5)))
    equal(last[0], p.arrays["hidden"])


@pytest.mark.parametrize("transform", [mx.compile, mx.vmap, mx.checkpoint])
def test_as_an_argument_of_transforms(rng, way, transform):
    p = skipping(rng, way, cell=False)

    def f(x, hidden, mask):
        values = [{"x": x, "hidden": hidden}.get(n, a) for n, a in p.arrays.items()]
        return p(way, *values, mask=mask)

    x, hidden = p.arrays["x"], p.arrays["hidden"]
    p.check(transform(f)(x, hidden, mx.array(TAKEN)))
    p.check(transform(f)(x, hidden, mx.array(TAKEN.astype(np.int32))))


def test_many_masks_of_one_sequence(rng, way):
    """An axis that only the mask has; of gradients too."""
    p = way.problem(rng, (4,), mask=TAKEN)
    values, d = list(p.arrays.values()), p.cotangents()
    masks = np.stack([TAKEN, ~TAKEN, TAKEN[::-1]])

    def gradients(mask):
        return grads(lambda *v: p(way, *v, mask=mask), values, d)

    outputs = mx.vmap(lambda mask: p(way, mask=mask))(mx.array(masks))
    slopes = mx.vmap(gradients)(mx.array(masks))
    for i, mask in enumerate(masks):
        p.keywords["mask"] = mask
        p.check([a[i] for a in outputs])
        for name, got, like, truth in zip(
            p.names, slopes, grads(p.plain, values, d), p.gradients(*d), strict=True
        ):
            close(got[i], like, truth, name)


def _root(scale):
    return lambda a: mx.sqrt(mx.abs(a)) * scale


def _norm(scale):
    return lambda a: a * scale / mx.linalg.norm(a, axis=-1, keepdims=True)


@pytest.mark.parametrize("make", [_root, _norm])
@both_ways
def test_callables_that_are_singular_at_zero(rng, reverse, make):
    """Their derivatives there reach nothing, not even those of second order."""
    x, Wxh, Whh = (draw(rng, s, mx.float32) for s in ((2, 6, 3), (5, 3), (5, 5)))
    along = [draw(rng, a.shape, mx.float32) for a in (x, Wxh, Whh)]
    c, taken = draw(rng, (2, 3, 5), mx.float32), np.array([0, 1, 0, 0, 1, 1], bool)
    places, f = mx.array(np.flatnonzero(taken)), make(0.7)

    def ours(x, Wxh, Whh):
        x = mx.where(mx.array(taken)[:, None], x, 0)
        y = mlx_recurrent.rnn(
            x, Wxh, Whh, nonlinearity=f, reverse=reverse, mask=[taken, taken]
        )
        return y[:, places]

    def theirs(x, Wxh, Whh):
        step = slice(None, None, -1) if reverse else slice(None)
        x = x[:, places][:, step]
        return upstream_layer(x, Wxh, Whh, nonlinearity=f)(x)[:, step]

    def slopes(run, dtype=mx.float32):
        values = [a.astype(dtype) for a in (x, Wxh, Whh)]
        first = lambda *v: mx.vjp(run, v, [c.astype(dtype)])[1]  # noqa: E731
        return (
            first(*values) + mx.vjp(first, values, [a.astype(dtype) for a in along])[1]
        )

    results = slopes(ours), slopes(theirs), slopes(theirs, mx.float64)
    for got, expected, truth in zip(*results, strict=True):
        close(got, expected, wide(truth))


@pytest.mark.parametrize("leak", [None, 0.3])
@pytest.mark.parametrize(
    "of", [NATIVE, TRACED, COMPOSED], ids=["native", "traced", "composed"]
)
@both_ways
def test_scan(rng, reverse, of, leak):
    """Where the input is the projection, and NaN goes straight to the activation."""
    options = {"mask": TAKEN, "leak": leak, "reverse": reverse, "hidden": False}
    p = optional.problem(rng, (4,), D=5, bias=False, **options)
    p.arrays["Wxh"] = mx.eye(5)
    z, Wxh, Whh = p.arrays.values()

    def run(z, Whh):
        f = of["tanh"]
        return list(mlx_recurrent.scan(z, Whh, nonlinearity=f, **given))

    given = {**p.keywords, "return_state": True}
    dirty, d = p.in_unseen(z), p.cotangents()
    p.check(run(dirty, Whh))
    got = mx.vjp(run, [dirty, Whh], d)[1]
    (like_z, _, like), (true_z, _, true) = (
        grads(p.plain, [z, Wxh, Whh], d),
        (p.gradients(*d)),
    )
    close(got[0], like_z, true_z, "z")
    close(got[1], like, true, "Whh")


def test_exporting(rng, tmp_path):
    """The graph takes the mask."""
    layer, x = mlx_recurrent.GRU(3, 5), draw(rng, (4, 6, 3), mx.float32)
    file = str(tmp_path / "layer.mlxfn")
    f = lambda x, mask: layer(x, mask=mask)  # noqa: E731
    with mlx_recurrent.exporting():
        mx.export_function(file, f, x, mx.array(~TAKEN))
        expected = f(x, mx.array(TAKEN))
    (got,) = mx.import_function(file)(x, mx.array(TAKEN))
    equal(got, expected)
