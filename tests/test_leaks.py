"""Memory stays constant, however often something is done.

Each piece of work is repeated in a process of its own, where nothing else allocates.
"""

import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

import mlx_recurrent
from conftest import unreadable
from mlx_recurrent import RNN, Linear, Stack, _native
from tolerances import ACTIVE, RESIDENT

N, L, D, H = 2, 5, 3, 8
WARM_UP = 500


def training(compiled, nonlinearity=None):
    """A step of a small model: loss, gradients, update, evaluation."""
    model = nn.Sequential(RNN(D, H, nonlinearity=nonlinearity), Linear(H, 1))
    optimizer = optim.Adam(learning_rate=1e-3)
    loss = nn.value_and_grad(model, lambda m, x, y: ((m(x) - y) ** 2).mean())
    x, y = mx.random.normal((N, L, D)), mx.random.normal((N, L, 1))
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def step(x, y):
        value, grads = loss(model, x, y)
        optimizer.update(model, grads)
        return value

    run = mx.compile(step, inputs=state, outputs=state) if compiled else step
    return lambda: mx.eval(run(x, y), state)


def forward():
    layer, x = RNN(D, H), mx.random.normal((N, L, D))
    mx.eval(layer.parameters(), x)
    return lambda: mx.eval(layer(x))


def arrays():
    shapes = [(N, L, D), (H, D), (H, H), (H,), (N, H)]
    made = [0.3 * mx.random.normal(shape) for shape in shapes]
    mx.eval(made)
    return made


def gradient(function):
    return mx.grad(lambda *a: function(*a).square().sum(), tuple(range(5)))


def unevaluated():
    """Graphs of every order that nobody evaluates."""
    values = arrays()
    penalty = gradient(lambda x, *a: gradient(mlx_recurrent.rnn)(x, *a)[0])

    def work():
        mlx_recurrent.rnn(*values)
        gradient(mlx_recurrent.rnn)(*values)
        mx.jvp(mlx_recurrent.rnn, values, values)
        penalty(*values)

    return work


def exceptions():
    """Errors of the user's and of shapes, in the middle of things.

    Not in a function that is compiled: MLX itself keeps something of each.
    """
    values, count = arrays(), [0]

    def breaks(a):
        count[0] += 1
        if count[0] % 3 == 0:
            raise KeyError
        return mx.sin(a)

    def after(*a):
        mlx_recurrent.rnn(*a)
        raise KeyError

    def misfit(*a):
        return mlx_recurrent.rnn(*a[:4], hidden=a[0])

    def attempt(function, error):
        try:
            mx.eval(function(*values))
        except error:
            return
        raise AssertionError("nothing was raised")

    def work():
        attempt(lambda *a: mlx_recurrent.rnn(*a, nonlinearity=breaks), KeyError)
        attempt(gradient(after), KeyError)
        attempt(mx.vmap(after, (0, None, None, None, 0)), KeyError)
        attempt(gradient(misfit), ValueError)

    return work


def transformations():
    values = arrays()
    mapped = mx.vmap(mlx_recurrent.rnn, (0, None, None, None, 0))
    ensemble = mx.vmap(mlx_recurrent.rnn, (None, 0, 0, 0, None))
    stacked = [values[0], *(mx.stack([w, w]) for w in values[1:4]), values[4]]
    mx.eval(stacked)

    def work():
        mx.eval(
            mapped(*values),
            ensemble(*stacked),
            mx.jvp(mlx_recurrent.rnn, values, values),
            gradient(mx.checkpoint(mlx_recurrent.rnn))(*values),
        )

    return work


def second_order():
    values = arrays()
    penalty = gradient(lambda x, *a: gradient(mlx_recurrent.rnn)(x, *a)[0])
    product = lambda: mx.jvp(gradient(mlx_recurrent.rnn), values, values)  # noqa: E731
    return lambda: mx.eval(penalty(*values), product())


def states():
    """return_state in all its forms, with and without a gradient."""
    values = arrays()

    def state(kind):
        def function(*a):
            result = mlx_recurrent.rnn(*a, return_state=kind)
            return result[1] if kind is True else result

        return function

    def work():
        for kind in (False, True, "only"):
            mx.eval(
                mlx_recurrent.rnn(*values, return_state=kind),
                gradient(state(kind))(*values),
            )
        h = values[4]
        for _ in range(3):  # from one call to the next
            _, h = mlx_recurrent.rnn(*values[:4], h, return_state=True)
        mx.eval(h)

    return work


def compiled_anew():
    """Functions that are compiled, used and forgotten."""
    values = arrays()

    def work():
        for shapeless in (False, True):
            function = mx.compile(lambda *a: mlx_recurrent.rnn(*a), shapeless=shapeless)
            mx.eval(function(*values))

    return work


def callables():
    """A new callable at each call."""
    values = arrays()

    def work():
        slope = mx.array(0.3)
        for f in (lambda a: mx.maximum(0.1 * a, a), lambda a: mx.sin(slope * a)):
            mx.eval(
                gradient(lambda *a, f=f: mlx_recurrent.rnn(*a, nonlinearity=f))(*values)
            )

    return work


def numbers():
    """A callable whose number changes from call to call."""
    values = arrays()
    counter = itertools.count(1)

    def work():
        k = 1 / next(counter)
        f = lambda a: mx.sin(k * a)  # noqa: E731
        mx.eval(gradient(lambda *a: mlx_recurrent.rnn(*a, nonlinearity=f))(*values))

    return work


def streams():
    """25 steps of each path at a time, chunks and errors, and new streams."""
    x = np.ones((5, D), np.float32)
    layers = [RNN(D, H), RNN(D, H, nonlinearity=nn.silu)]
    composed = RNN(D, H, nonlinearity=unreadable(mx.sin)).stream()
    model = Stack([RNN(D, H), RNN(H, H)], residual=True)
    stack, starts = model.stream(), np.array([True, False, False, True, False])
    running = [layer.stream() for layer in layers]

    def work():
        for stream in running:
            for _ in range(5):
                for step in x:
                    stream(step)
            stream.reset(stream.state)
            stream(x, out=stream(x), reset=starts)
            try:
                stream(x[:, 1:])
            except ValueError:
                pass
        composed(x[0], reset=True)
        stack(x, reset=starts)
        try:
            stack(x[0], out=x)
        except ValueError:
            pass
        model.stream()
        for layer in layers:
            layer.stream(mx.zeros((N, H)))

    return work


# And how often: a second or some for each.
WORK = {
    "forward": (forward, 10_000),
    "training": (lambda: training(False), 10_000),
    "training_compiled": (lambda: training(True), 10_000),
    "training_traced": (lambda: training(False, nn.silu), 10_000),
    "training_traced_compiled": (lambda: training(True, nn.silu), 10_000),
    "training_composed": (lambda: training(True, unreadable(mx.sin)), 4_000),
    "unevaluated": (unevaluated, 4_000),
    "exceptions": (exceptions, 4_000),
    "transformations": (transformations, 4_000),
    "second_order": (second_order, 2_000),
    "states": (states, 4_000),
    "compiled_anew": (compiled_anew, 4_000),
    "callables": (callables, 1_500),
    "numbers": (numbers, 1_500),
    "streams": (streams, 4_000),
}


def resident():
    """The bytes of this process that are in memory."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * 4096
    ps = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True
    )
    return int(ps.stdout) * 1024


def held():
    gc.collect()
    mx.synchronize()
    _native.release_scratch()  # how much there is depends on what ran at one time
    return mx.get_active_memory(), resident()


def growth(name):
    """What many repetitions add, in bytes: MLX's arrays, and the process."""
    mx.set_default_device(mx.cpu)
    make, repetitions = WORK[name]
    work = make()
    for _ in range(WARM_UP):
        work()
    before = held()
    for _ in range(repetitions):
        work()
    return [b - a for a, b in zip(before, held(), strict=True)]


@pytest.mark.parametrize("name", WORK)
def test_memory_is_constant(name):
    run = subprocess.run(
        [sys.executable, "-W", "error", __file__, name], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    active, process = json.loads(run.stdout)
    assert active <= ACTIVE
    assert process <= RESIDENT


if __name__ == "__main__":
    print(json.dumps(growth(sys.argv[1])))
