"""MLX's transformations of the layer: value_and_grad, jvp, checkpoint, streams.

``ours`` is the native path, ``traced`` and ``composed`` are the others, on the same
mathematics.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

import mlx_recurrent
import reference
from conftest import (
    ACTIVATIONS,
    ARGUMENTS,
    COMPOSED,
    UPSTREAM,
    call,
    draw,
    gradients,
    ours,
    smooth,
    upstream,
)
from mlx_recurrent import RNN
from tolerances import all_close, close, equal, wide
from transforms import both_nonlinearities, both_paths, directions, setting


@pytest.mark.parametrize("unused", ["outputs", "state"])
def test_one_of_both_results(rng, unused):
    """The cotangent of what nobody uses is zero, and is not even made."""
    problem, values, c = setting(rng)
    last = draw(rng, (3, 20), mx.float32)

    def loss(*v):
        outputs, state = ours("tanh", *v, return_state=True)
        return (outputs * c).sum() if unused == "state" else (state * last).sum()

    got = dict(zip(ARGUMENTS, mx.grad(loss, tuple(range(5)))(*values), strict=True))
    if unused == "state":
        expected, truth = gradients(upstream, problem, c), problem.gradients(c)
    else:
        expected = gradients(upstream, problem, mx.zeros_like(c), last=last)
        truth = problem.gradients(d_last=last)
    all_close(got, expected, truth)


@pytest.mark.parametrize("returned", [mx.float16, mx.float64])
@both_paths
def test_cotangent_of_another_dtype(rng, run, returned):
    """MLX hands on what a rule returns, whatever its dtype."""
    problem, values, c = setting(rng)

    @mx.custom_function
    def identity(y):
        return y

    @identity.vjp
    def identity_vjp(y, cotangent, output):
        return cotangent.astype(returned)

    def grads(function):
        run = lambda *v: (identity(function("tanh", *v)) * c).sum()  # noqa: E731
        found = mx.grad(run, list(range(len(values))))(*values)
        return dict(zip(ARGUMENTS, found, strict=True))

    given = mx.array(np.array(c.astype(returned)), mx.float32)
    got, expected = grads(run), grads(upstream)
    truth = problem.gradients(given)
    for name in got:
        close(got[name], expected[name].astype(mx.float32), truth[name], name)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_tangent_of_another_dtype(rng, argument):
    _, values, _ = setting(rng)
    i = ARGUMENTS.index(argument)
    tangent = draw(rng, values[i].shape, mx.float16)

    def pushed(tangent):
        function = lambda v: ours("tanh", *values[:i], v, *values[i + 1 :])  # noqa: E731
        return mx.jvp(function, [values[i]], [tangent])[1][0]

    equal(pushed(tangent), pushed(tangent.astype(mx.float32)))


@both_nonlinearities
@pytest.mark.parametrize("frozen", [[], ["Whh"], ["Wxh", "bias"]], ids="-".join)
def test_value_and_grad(rng, frozen, nonlinearity):
    problem, _, c = setting(rng, hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    layer.Wxh, layer.Whh, layer.bias = problem.Wxh, problem.Whh, problem.bias
    layer.freeze(keys=frozen)
    step = nn.value_and_grad(layer, lambda m, x: (m(x) * c).sum())
    loss, grads = step(layer, problem.x)
    names = [n for n in ("Wxh", "Whh", "bias") if n not in frozen]
    assert sorted(grads) == sorted(names)
    truth = problem.gradients(c)
    all_close(
        dict(grads),
        gradients(upstream, problem, c, names),
        {n: truth[n] for n in names},
    )
    equal(loss, (layer(problem.x) * c).sum())


@both_nonlinearities
@pytest.mark.parametrize("compiled", [False, True])
def test_training(rng, compiled, nonlinearity):
    """Three steps with momentum, compiled with the state in and out."""
    x, y = draw(rng, (3, 6, 5), mx.float32), draw(rng, (3, 6, 20), mx.float32)
    weights = [("Wxh", (20, 5)), ("Whh", (20, 20)), ("bias", (20,))]
    weights = [(name, draw(rng, shape, mx.float32, 0.3)) for name, shape in weights]

    def train(layer, dtype, compiled):
        layer.load_weights(weights)
        layer.set_dtype(dtype)
        optimizer = optim.SGD(learning_rate=0.5, momentum=0.9)
        data = x.astype(dtype), y.astype(dtype)
        loss = nn.value_and_grad(layer, lambda m, x, y: ((m(x) - y) ** 2).mean())
        state = [layer.state, optimizer.state]

        def step(x, y):
            value, grads = loss(layer, x, y)
            optimizer.update(layer, grads)
            return value

        optimizer.init(layer.trainable_parameters())
        if compiled:
            step = mx.compile(step, inputs=state, outputs=state)
        losses = [step(*data) for _ in range(3)]
        mx.eval(losses, state)
        return {"loss": mx.stack(losses), **layer.parameters()}

    got = train(RNN(5, 20, nonlinearity=nonlinearity), mx.float32, compiled)
    expected = train(nn.RNN(5, 20), mx.float32, compiled)
    truth = train(nn.RNN(5, 20), mx.float64, False)
    all_close(got, expected, {n: wide(a) for n, a in truth.items()})


@both_paths
def test_checkpoint(rng, run):
    problem, values, c = setting(rng)
    _, grads = mx.vjp(mx.checkpoint(lambda *v: run("tanh", *v)), values, [c])
    got = dict(zip(ARGUMENTS, grads, strict=True))
    all_close(got, gradients(upstream, problem, c), problem.gradients(c))


@both_nonlinearities
def test_checkpoint_of_a_module(rng, nonlinearity):
    problem, _, c = setting(rng, hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    layer.Wxh, layer.Whh, layer.bias = problem.Wxh, problem.Whh, problem.bias
    checkpointed = nn.utils.checkpoint(layer)
    _, grads = nn.value_and_grad(layer, lambda x: (checkpointed(x) * c).sum())(
        problem.x
    )
    names = ["Wxh", "Whh", "bias"]
    truth = problem.gradients(c)
    all_close(
        dict(grads),
        gradients(upstream, problem, c, names),
        {n: truth[n] for n in names},
    )


@both_paths
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", [[n] for n in ARGUMENTS] + [ARGUMENTS], ids="-".join)
def test_jvp(rng, names, activation, run):
    problem, _, _ = setting(rng, activation=activation, gain=0.8)
    primals = [problem.arrays[n] for n in names]
    tangents = directions(rng, primals)

    def along(run):
        def function(*values):
            return call(run, problem.of(**dict(zip(names, values, strict=True))))

        _, (tangent,) = mx.jvp(function, primals, tangents)
        return tangent

    given = {n: wide(v) for n, v in zip(names, tangents, strict=True)}
    truth = reference.rnn_tangent(
        problem.truth, [given.get(n) for n in ARGUMENTS], activation
    )
    close(along(run), along(upstream), truth)


@pytest.mark.parametrize("dtype", [mx.float64, mx.float16, mx.bfloat16])
def test_jvp_dtypes(rng, dtype):
    problem, values, _ = setting(rng, dtype=dtype, gain=0.8)
    tangents = directions(rng, values)

    def along(run):
        return mx.jvp(lambda *v: run("tanh", *v), values, tangents)[1][0]

    truth = reference.rnn_tangent(problem.truth, [wide(v) for v in tangents])
    close(along(ours), along(upstream), truth)


@both_paths
@pytest.mark.parametrize("return_state", [True, "only"])
def test_jvp_of_the_state(rng, return_state, run):
    problem, values, _ = setting(rng)
    tangents = directions(rng, values)

    def state(*v):
        out = run("tanh", *v, return_state=return_state)
        return out if return_state == "only" else out[1]

    got = mx.jvp(state, values, tangents)[1][0]
    expected = mx.jvp(lambda *v: upstream("tanh", *v)[:, -1], values, tangents)[1][0]
    truth = reference.rnn_tangent(problem.truth, [wide(v) for v in tangents])
    close(got, expected, truth[:, -1])


@both_paths
def test_stream(rng, run):
    problem, values, c = setting(rng)
    stream = mx.new_stream(mx.cpu)
    equal(run("tanh", *values, stream=stream), run("tanh", *values))
    grads = gradients(run, problem, c, stream=stream)
    all_close(grads, gradients(upstream, problem, c), problem.gradients(c))


def test_scan_stream(rng):
    z, Whh = draw(rng, (3, 6, 20), mx.float32), draw(rng, (20, 20), mx.float32, 0.3)
    stream = mx.new_stream(mx.cpu)
    got = mlx_recurrent.scan(z, Whh, stream=stream)
    equal(got, mlx_recurrent.scan(z, Whh))


@both_nonlinearities
def test_layer_on_a_stream(rng, nonlinearity):
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    x = draw(rng, (3, 6, 5), mx.float32)
    expected = layer(x)
    with mx.stream(mx.new_stream(mx.cpu)):
        got = layer(x)
    equal(got, expected)


def test_streams_at_the_same_time(rng):
    """Two streams run their own sequences; the pool serves one and the other waits."""
    shapes = [(16, 40, 16, 128), (1, 60, 16, 256)]
    problems = [smooth(rng, shape) for shape in shapes]
    expected = [call(ours, p) for p in problems]
    mx.eval(expected)
    streams = [mx.new_stream(mx.cpu) for _ in range(2)]
    results = []
    for _ in range(5):
        for p, s in zip(problems, streams, strict=True):
            results.append(call(ours, p, stream=s))
            mx.async_eval(results[-1])
    mx.eval(results)
    for i, got in enumerate(results):
        equal(got, expected[i % 2])


def test_lazy_inputs(rng):
    """Inputs that nobody has evaluated, made on another stream."""
    problem = smooth(rng, (3, 6, 5, 20))
    with mx.stream(mx.new_stream(mx.cpu)):
        x = mx.exp(problem.x * 0.5)
    got = call(ours, problem.of(x=x))
    expected = call(upstream, problem.of(x=x))
    close(got, expected, problem.of(x=x).states())


@both_nonlinearities
def test_stop_gradient_on_the_state(rng, nonlinearity):
    """Truncated back-propagation by hand: nothing passes between two chunks."""
    problem, _, c = setting(rng, (3, 10, 5, 20), hidden=False)
    layer = RNN(5, 20, nonlinearity=nonlinearity)
    weights = dict(Wxh=problem.Wxh, Whh=problem.Whh, bias=problem.bias)
    x1, x2, c1, c2 = problem.x[:, :6], problem.x[:, 6:], c[:, :6], c[:, 6:]

    def loss(weights):
        layer.update(weights)
        first, state = layer(x1, return_state=True)
        second = layer(x2, mx.stop_gradient(state))
        return (first * c1).sum() + (second * c2).sum()

    got = mx.grad(loss)(weights)
    first = problem.of(x=x1)
    second = problem.of(x=x2, hidden=mx.stop_gradient(call(upstream, first)[:, -1]))
    state = first.states()[:, -1]
    names = list(weights)
    expected = {
        n: a + gradients(upstream, second, c2, names)[n]
        for n, a in gradients(upstream, first, c1, names).items()
    }
    pieces = (
        first.gradients(c1),
        dict(
            zip(
                ARGUMENTS,
                reference.rnn_grad(*second.truth[:4], state, "tanh", wide(c2)),
                strict=True,
            )
        ),
    )
    all_close(got, expected, {n: pieces[0][n] + pieces[1][n] for n in names})


@both_paths
@pytest.mark.parametrize("name", ["x", "Whh", "hidden"])
def test_stop_gradient_on_an_input(rng, name, run):
    problem, values, c = setting(rng)

    def function(*v):
        arrays = dict(zip(ARGUMENTS, v, strict=True))
        arrays[name] = mx.stop_gradient(arrays[name])
        return run("tanh", **arrays)

    _, grads = mx.vjp(function, values, [c])
    got = dict(zip(ARGUMENTS, grads, strict=True))
    expected, truth = gradients(upstream, problem, c), problem.gradients(c)
    expected[name], truth[name] = mx.zeros_like(expected[name]), 0 * truth[name]
    all_close(got, expected, truth)


@both_paths
def test_a_weight_in_two_places(rng, run):
    """The same array as Wxh and Whh: its gradient is the sum of both."""
    problem, _, c = setting(rng, (3, 6, 20, 20))

    def grad(run):
        def loss(W):
            return (call(run, problem.of(Wxh=W, Whh=W)) * c).sum()

        return mx.grad(loss)(problem.Whh)

    truth = problem.of(Wxh=problem.Whh).gradients(c)
    close(grad(run), grad(upstream), truth["Wxh"] + truth["Whh"])


@both_paths
def test_chained_layers(rng, run):
    """Outputs of one into another: the gradient of both in one pass."""
    problem, values, c = setting(rng, (3, 6, 20, 20))

    def grad(run):
        def function(*v):
            return run("tanh", run("tanh", *v), *v[1:])

        return mx.vjp(function, values, [c])[1]

    inner = problem.states()
    outer = reference.rnn_grad(inner, *problem.truth[1:], "tanh", wide(c))
    below = reference.rnn_grad(*problem.truth, "tanh", outer[0])
    truth = [below[0]] + [a + b for a, b in zip(outer[1:], below[1:], strict=True)]
    all_close(
        *(
            dict(zip(ARGUMENTS, r, strict=True))
            for r in (grad(run), grad(upstream), truth)
        )
    )


def test_activations_are_the_same_functions():
    """UPSTREAM and COMPOSED hold one function each: a guard of these tests."""
    a = mx.linspace(-3, 3, 13)
    for name in ACTIVATIONS:
        equal(COMPOSED[name](a), UPSTREAM[name](a), name)
