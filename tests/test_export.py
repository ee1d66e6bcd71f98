"""exporting(): functions of the layers in files, made of MLX's own operations."""

import asyncio
import contextvars
import threading
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_recurrent
import reference
from cells import CELLS, flat
from conftest import (
    ACTIVATIONS,
    ARGUMENTS,
    DTYPES,
    call,
    draw,
    gradients,
    ours,
    smooth,
    upstream,
)
from mlx_recurrent import RNN, Linear, exporting
from tolerances import agree, all_close, close, wide

X = (2, 5, 3)


@pytest.fixture
def exported(tmp_path):
    """Writes a function traced inside exporting(), and reads it."""
    path = str(tmp_path / "function.mlxfn")

    def export(function, *args, **kwargs):
        with exporting():
            mx.export_function(path, function, *args, **kwargs)
        return mx.import_function(path)

    return export


def inside():
    return RNN(3, 6).plan(mx.zeros(X)).path == "composed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values(rng, exported, activation, dtype):
    problem = smooth(rng, (3, 6, 5, 8), dtype, activation)
    function = exported(
        lambda *v: ours(activation, *v, return_state=True), *problem.arrays.values()
    )
    got, state = function(*problem.arrays.values())
    expected, truth = call(upstream, problem), problem.states()
    close(got, expected, truth)
    close(state, expected[:, -1], truth[:, -1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(rng, exported, activation):
    problem = smooth(rng, (3, 6, 5, 8), activation=activation)
    values, c = list(problem.arrays.values()), draw(rng, (3, 6, 8), mx.float32)

    def loss(c, *v):
        return (ours(activation, *v) * c).sum()

    got = exported(mx.grad(loss, range(1, 6)), c, *values)(c, *values)
    all_close(
        dict(zip(ARGUMENTS, got, strict=True)),
        gradients(upstream, problem, c),
        problem.gradients(c),
    )


def test_second_order(rng, exported):
    problem = smooth(rng, (2, 4, 3, 6))
    values, c = list(problem.arrays.values()), draw(rng, (2, 4, 6), mx.float32)
    v = [draw(rng, a.shape, mx.float32) for a in values]

    def grad(function):
        return mx.grad(lambda *a: (function("tanh", *a) * c).sum(), range(5))

    def second(*a):
        return mx.jvp(grad(ours), list(a), v)[1]

    def along(*a):
        return sum((g * d).sum() for g, d in zip(grad(upstream)(*a), v, strict=True))

    got = exported(second, *values)(*values)
    # By reverse mode alone: MLX 0.32.0 has no forward mode of what a slice leaves.
    expected = mx.grad(along, range(5))(*values)
    truth = reference.rnn_hessian_vector(
        problem.truth, [wide(d) for d in v], "tanh", wide(c)
    )
    all_close(*(dict(zip(ARGUMENTS, r, strict=True)) for r in (got, expected, truth)))


def test_training_step(rng, exported):
    """Weights in and out: three steps of an imported file."""
    x, y = draw(rng, (3, 6, 5), mx.float32), draw(rng, (3, 6, 4), mx.float32)

    def model(recurrent, linear, dtype):
        mx.random.seed(1)
        made = nn.Sequential(recurrent(5, 8), linear(8, 4))
        made.set_dtype(dtype)
        return made

    def step_of(made):
        optimizer = optim.SGD(learning_rate=0.3)
        loss = nn.value_and_grad(made, lambda m, x, y: ((m(x) - y) ** 2).mean())

        def step(x, y, *weights):
            made.update(
                tree_unflatten(list(zip(names, weights, strict=True))), strict=False
            )
            value, grads = loss(made, x, y)
            optimizer.update(made, grads)
            return [value, *(a for _, a in tree_flatten(made.parameters()))]

        return step

    def train(step, made, dtype):
        weights = [a for _, a in tree_flatten(made.parameters())]
        losses = []
        for _ in range(3):
            value, *weights = step(x.astype(dtype), y.astype(dtype), *weights)
            losses.append(value)
        return {"loss": mx.stack(losses), **dict(zip(names, weights, strict=True))}

    def learned(recurrent, linear, dtype):
        made = model(recurrent, linear, dtype)
        return train(step_of(made), made, dtype)

    made = model(RNN, Linear, mx.float32)
    names = [name for name, _ in tree_flatten(made.parameters())]
    weights = [a for _, a in tree_flatten(made.parameters())]
    imported = exported(step_of(made), x, y, *weights)
    got = train(imported, model(RNN, Linear, mx.float32), mx.float32)
    truth = learned(nn.RNN, nn.Linear, mx.float64)
    all_close(
        got,
        learned(nn.RNN, nn.Linear, mx.float32),
        {n: wide(a) for n, a in truth.items()},
    )


@pytest.mark.parametrize("shape", [X, (5, 3), (2, 2, 5, 3), (2, 1, 3), (0, 5, 3)])
def test_layers(rng, exported, shape):
    layer, linear = RNN(3, 6), Linear(3, 6)
    x = draw(rng, shape, mx.float32)
    (got,) = exported(layer, x)(x)
    problem = smooth(rng, (*shape[:-1], 3, 6), hidden=False).of(
        x=x, Wxh=layer.Wxh, Whh=layer.Whh, bias=layer.bias
    )
    close(got, call(upstream, problem), problem.states())
    (got,) = exported(linear, x)(x)
    truth = reference.matmul(wide(x), wide(linear.weight), wide(linear.bias))
    close(got, nn.Linear.__call__(linear, x), truth)


@pytest.mark.parametrize("name", [name for name in CELLS if name != "rnn"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gated_layers(rng, exported, name, reverse):
    """Values and gradients, with lengths."""
    layer = CELLS[name].layer(3, 6, **CELLS[name].arguments)
    x, lengths = draw(rng, X, mx.float32), mx.array([5, 2])

    def loss(x, lengths):
        results = flat(layer(x, lengths=lengths, reverse=reverse, return_state=True))
        return sum((a**2).sum() for a in results), results

    def run(x, lengths):
        return flat(mx.value_and_grad(loss)(x, lengths))

    got = exported(run, x, lengths)(x, lengths)
    layer.set_dtype(mx.float64)
    expected = run(x.astype(mx.float64), lengths)
    for a, b in zip(got, expected, strict=True):
        agree(a, b.astype(mx.float32))


@pytest.mark.parametrize("name", CELLS)
def test_an_empty_sequence(exported, name):
    """Upstream's layer cannot take one at all."""
    layer = CELLS[name].layer(3, 6, **CELLS[name].arguments)
    x, h = mx.zeros((2, 0, 3)), [mx.ones((2, 6)) for _ in CELLS[name].states]
    function = exported(lambda x, *h: flat(layer(x, *h, return_state=True)), x, *h)
    outputs, *states = function(x, *h)
    assert outputs.shape == (2, 0, 6)
    assert all(mx.array_equal(a, b) for a, b in zip(states, h, strict=True))


def test_functions(rng, exported):
    z, w = draw(rng, (2, 5, 6), mx.float32), draw(rng, (6, 6), mx.float32, 0.3)
    (got,) = exported(mlx_recurrent.matmul, z, w)(z, w)
    close(got, z @ w.T, reference.matmul(wide(z), wide(w)))
    function = exported(lambda z, w: mlx_recurrent.scan(z, w, stream=mx.cpu), z, w)
    truth = reference.scan(wide(z), wide(w))
    close(function(z, w)[0], upstream("tanh", z, mx.eye(6), w), truth)


@pytest.mark.parametrize(
    "nonlinearity",
    [mx.sin, nn.gelu, nn.LayerNorm(6), nn.PReLU()],
    ids=["sin", "gelu", "LayerNorm", "PReLU"],
)
def test_any_callable(rng, exported, nonlinearity):
    layer = RNN(3, 6, nonlinearity=nonlinearity)
    x = draw(rng, X, mx.float32)
    theirs = nn.RNN.__call__
    (got,) = exported(layer, x)(x)
    expected = theirs(layer, x)
    layer.set_dtype(mx.float64)
    close(got, expected, wide(theirs(layer, x.astype(mx.float64))))


def test_several_lengths_in_one_file(rng, tmp_path):
    layer, path = RNN(3, 6), str(tmp_path / "layer.mlxfn")
    inputs = [draw(rng, (2, L, 3), mx.float32) for L in (3, 5)]
    with exporting(), mx.exporter(path, layer) as write:
        for x in inputs:
            write(x)
    function = mx.import_function(path)
    for x in inputs:
        (got,) = function(x)
        problem = smooth(rng, (2, x.shape[1], 3, 6), hidden=False).of(
            x=x, Wxh=layer.Wxh, Whh=layer.Whh, bias=layer.bias
        )
        close(got, call(upstream, problem), problem.states())


TRANSFORMED = {
    "compile": lambda layer: mx.compile(lambda x: layer(x)),
    "vmap": lambda layer: mx.vmap(lambda x: layer(x)),
    "jvp": lambda layer: lambda x: mx.jvp(lambda x: layer(x), [x], [x])[1][0],
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed(rng, exported, name):
    transform = TRANSFORMED[name]
    layer, x = RNN(3, 6), draw(rng, X, mx.float32)
    theirs = nn.RNN(3, 6)
    theirs.load_weights(tree_flatten(layer.parameters()))
    (got,) = exported(transform(layer), x)(x)
    expected = transform(theirs)(x)
    theirs.set_dtype(mx.float64)
    close(got, expected, wide(transform(theirs)(x.astype(mx.float64))))


def test_a_function_that_was_compiled_before(rng, exported):
    """MLX traces it anew to export it."""
    layer, x = RNN(3, 6), draw(rng, X, mx.float32)
    compiled = mx.compile(lambda x: layer(x))
    mx.eval(compiled(x))
    assert exported(compiled, x)(x)[0].shape == (2, 5, 6)


@pytest.mark.parametrize(
    "function, primitive",
    [
        (lambda x, w: RNN(3, 6)(x), "Recurrence"),
        (lambda x, w: mx.grad(lambda x: RNN(3, 6)(x).sum())(x), "Recurrence"),
        (mlx_recurrent.matmul, "Matmul"),
        (mx.grad(lambda x, w: mlx_recurrent.matmul(x, w).sum(), 1), "OuterSum"),
    ],
    ids=["forward", "gradient", "matmul", "gradient of matmul"],
)
def test_outside_the_error_says_what_to_do(tmp_path, function, primitive):
    with pytest.raises(ValueError, match=r"exporting\(\)") as raised:
        mx.export_function(
            str(tmp_path / "f.mlxfn"), function, mx.zeros(X), mx.zeros((6, 3))
        )
    assert f"mlx_recurrent.{primitive}" in str(raised.value)


def test_what_cannot_be_exported(rng, exported):
    """Rules of the user's, numbers read while tracing, every length at once."""
    x = draw(rng, X, mx.float32)
    layer = RNN(3, 6)
    mx.eval(layer.parameters())
    shapeless = exported(layer, x, shapeless=True)  # MLX judges it at its call
    with pytest.raises(ValueError, match="cannot infer output shapes"):
        shapeless(x)
    with pytest.raises(ValueError, match="CustomTransforms"):
        exported(mx.checkpoint(lambda x: layer(x)), x)
    layer.nonlinearity = lambda a: a * a.max().item()
    with pytest.raises(ValueError, match="eval"):
        exported(layer, x)
    assert not inside()


def test_plan_says_so():
    layer, x = RNN(3, 6), mx.zeros(X)
    with exporting():
        plan = layer.plan(x)
        assert plan.path == "composed" and "mlx_recurrent.exporting()" in plan.reason
        assert plan.reason in str(plan)
        custom = RNN(3, 6, nonlinearity=mx.sin).plan(x)
    assert custom.path == "composed" and "exporting" in custom.reason
    assert layer.plan(x).path == "native"


def test_none_of_our_operations(rng, tmp_path):
    """Inside, also without an export."""
    layer, linear, x = RNN(3, 6), Linear(6, 2), draw(rng, X, mx.float32)
    path = tmp_path / "graph.dot"
    for names_of_ours in (True, False):
        with exporting() if not names_of_ours else nullcontext():
            loss = mx.grad(lambda x: linear(layer(x)).sum())
            mx.export_to_dot(str(path), loss(x))
        assert ("mlx_recurrent." in path.read_text()) == names_of_ours


def test_nesting_and_exceptions():
    context = exporting()
    assert not inside()
    with context:
        assert inside()
        with context, exporting():
            assert inside()
        assert inside()
        with pytest.raises(ZeroDivisionError), exporting():
            _ = 1 / 0
        assert inside()
    assert not inside()
    with pytest.raises(ZeroDivisionError), context:
        _ = 1 / 0
    assert not inside()


def test_other_threads_are_not_inside():
    found = []
    with exporting():
        thread = threading.Thread(target=lambda: found.append(inside()))
        thread.start()
        thread.join()
        # One that is given this context is.
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.append(copied.run(inside)))
        thread.start()
        thread.join()
    assert found == [False, True]


def test_other_tasks_are_not_inside():
    async def first(entered, looked):
        with exporting():
            entered.set()
            await looked.wait()
            return inside()

    async def second(entered, looked):
        await entered.wait()
        found = inside()
        looked.set()
        return found

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(first(*events), second(*events))

    assert asyncio.run(both()) == [True, False]
    assert not inside()
