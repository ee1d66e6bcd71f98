"""What a pass holds at its peak, as MLX counts it."""

import mlx.core as mx
import pytest

import mlx_recurrent
from conftest import Case, array, draw, gradients, upstream
from mlx_recurrent import _native
from tolerances import MEMORY_SLACK, SCRATCH_KEPT, WORKSPACE, close

N, L, D, H = 4, 65536, 4, 32
OUTPUT = 4 * N * L * H


@pytest.fixture(autouse=True)
def two_threads():
    """The workspace grows with the threads, and machines differ."""
    mlx_recurrent.set_num_threads(2)


def peak(function, *arrays):
    """Bytes held at the peak of a call, beyond what was there before it."""
    mx.eval(arrays)
    mx.synchronize()
    mx.clear_cache()
    _native.release_scratch()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = function(*arrays)
    mx.eval(result)
    mx.synchronize()
    return mx.get_peak_memory() - before


def inputs(rng, N=N, L=L):
    """x, Wxh, Whh, bias and hidden."""
    shapes = [(N, L, D), (H, D), (H, H), (H,), (N, H)]
    return [draw(rng, shape, mx.float32, 0.2) for shape in shapes]


def bound(outputs, extra=0):
    return (outputs + MEMORY_SLACK) * OUTPUT + WORKSPACE + extra


@pytest.mark.parametrize("nonlinearity", [None, mx.sigmoid])
def test_forward_holds_its_output(rng, nonlinearity):
    arrays = inputs(rng)
    got = peak(lambda *a: mlx_recurrent.rnn(*a, nonlinearity=nonlinearity), *arrays)
    assert OUTPUT <= got <= bound(1)


def test_scan_holds_its_output(rng):
    z, Whh = draw(rng, (N, L, H), mx.float32), inputs(rng)[2]
    got = peak(mlx_recurrent.scan, z, Whh)
    assert OUTPUT <= got <= bound(1)


def test_state_only_stores_no_outputs(rng):
    """About sqrt(L) states remain for a derivative, none of the others."""
    got = peak(lambda *a: mlx_recurrent.rnn(*a, return_state="only"), *inputs(rng))
    assert got <= bound(0)


def weight_gradients(c):
    def function(x, Wxh, Whh, bias, hidden):
        _, grads = mx.vjp(
            lambda *w: mlx_recurrent.rnn(x, *w), [Wxh, Whh, bias, hidden], [c]
        )
        return grads

    return function


def test_backward_holds_one_more(rng):
    """The output and at most one further array of its size."""
    c = draw(rng, (N, L, H), mx.float32)
    assert peak(weight_gradients(c), *inputs(rng)) <= bound(2)


def test_backward_with_the_gradient_of_x(rng):
    c = draw(rng, (N, L, H), mx.float32)

    def function(*arrays):
        return mx.vjp(mlx_recurrent.rnn, list(arrays), [c])[1]

    assert peak(function, *inputs(rng)) <= bound(2, extra=4 * N * L * D)


def test_backward_keeps_a_broadcast_cotangent(rng):
    """The gradient of a sum: one number must not be written L times."""
    c = mx.broadcast_to(mx.array(1.0), (N, L, H))
    assert peak(weight_gradients(c), *inputs(rng)) <= bound(2)


def test_backward_of_state_only(rng):
    """Recomputed from about sqrt(L) states, block by block."""
    c = draw(rng, (N, H), mx.float32)

    def function(x, Wxh, Whh, bias, hidden):
        def state(*w):
            return mlx_recurrent.rnn(x, *w, return_state="only")

        return mx.vjp(state, [Wxh, Whh, bias, hidden], [c])[1]

    assert peak(function, *inputs(rng)) <= bound(2)


def test_backward_of_few_cells(rng):
    """Of an LSTM's cells, which are no result, every 32nd is kept."""
    shapes = [(4 * H, D), (4 * H, H), (4 * H,)]
    weights = [draw(rng, shape, mx.float32, 0.2) for shape in shapes]
    x, c = draw(rng, (N, L, D), mx.float32), draw(rng, (N, L, H), mx.float32)

    def function(*w):
        def outputs(*w):
            return mlx_recurrent.lstm(x, *w, return_state=True, checkpoint_every=32)[0]

        return mx.vjp(outputs, list(w), [c])[1]

    assert peak(function, *weights) <= bound(1)


# Each takes (L, N, D + 8) and gives (N, L, D) of it.
VIEWS = {
    "time_major": lambda big: big[:, :, :-8].swapaxes(0, 1),
    "sliced": lambda big: big[:, :, 3:-5].swapaxes(0, 1),
    "reversed": lambda big: big[::-1, :, :-8].swapaxes(0, 1),
    "every_second": lambda big: big[:, :, :-8:2].swapaxes(0, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_x_is_read_where_it_is(rng, view):
    """No copy of x, which is larger than the output here."""
    x = view(array(rng.standard_normal((L, N, 3 * H + 8)), mx.float32))
    _, _, Whh, bias, hidden = inputs(rng)
    Wxh = draw(rng, (H, x.shape[-1]), mx.float32, 0.1)
    c = draw(rng, (N, L, H), mx.float32)
    assert peak(mlx_recurrent.rnn, x, Wxh, Whh, bias, hidden) <= bound(1)
    assert peak(weight_gradients(c), x, Wxh, Whh, bias, hidden) <= bound(2)


def test_a_million_steps(rng):
    """One row, forward and backward, in twice its output and the gradient of x."""
    steps, D, H = 1_000_000, 3, 4
    x = draw(rng, (steps, D), mx.float32)
    weights = [draw(rng, s, mx.float32, 0.2) for s in ((H, D), (H, H), (H,))]
    output, dx = 4 * steps * H, 4 * steps * D

    def gradient(x, *w):
        return mx.grad(lambda *a: mlx_recurrent.rnn(*a).sum(), (0, 1, 2, 3))(x, *w)

    held = peak(gradient, x, *weights)
    assert held <= (2 + MEMORY_SLACK) * output + dx + WORKSPACE
    # The end of the sequence, where its start is long forgotten, alone.
    end = Case("tanh", x[-1000:], *weights, None)
    c = mx.ones((1000, H))
    got = gradient(x, *weights)[0][-500:]
    expected = gradients(upstream, end, c, ["x"])["x"][500:]
    close(got, expected, end.gradients(c)["x"][500:])


def test_scratch_is_used_again(rng):
    """What a call leaves on the shelf serves the next one, and can be released."""
    arrays = inputs(rng, L=64)

    def held():
        mx.eval(mlx_recurrent.rnn(*arrays))
        mx.synchronize()
        return mx.get_active_memory()

    peak(lambda *a: mlx_recurrent.rnn(*a), *arrays)
    before = mx.get_active_memory()
    assert held() == held() == before
    _native.release_scratch()
    assert mx.get_active_memory() < before


@pytest.mark.parametrize("sizes", [[6_100, 6_100], [2_900, 3_500, 4_100, 4_700, 300]])
def test_no_more_scratch_is_kept_than_is_small(sizes):
    """Half types are widened in it: 4 bytes for each weight."""
    mx.synchronize()
    _native.release_scratch()
    before = mx.get_active_memory()
    for H in sizes:
        arrays = [mx.zeros(s, mx.float16) for s in ((2, 2, 1), (H, 1), (H, H))]
        assert peak(lambda *a: mlx_recurrent.rnn(*a), *arrays) >= 4 * H * H
    for H in sizes:
        arrays = [mx.zeros(s, mx.float16) for s in ((2, 2, 1), (H, 1), (H, H))]
        mx.eval(mlx_recurrent.rnn(*arrays))
        del arrays
        mx.synchronize()
        assert mx.get_active_memory() - before <= SCRATCH_KEPT
