"""Graphs over two devices: a moved call among operations that stay.

Without a GPU two CPU streams stand for the two (``machine`` of the fixtures).
"""

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import Adam

from cells import flat
from conftest import draw
from machines import TwoStreams
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack, placement
from mlx_recurrent.functional import devices
from optional import WAYS, grads
from tolerances import wide

LAYERS = (RNN, GRU, LSTM)
OPTIONS = {
    "plain": {},
    "rows that end": {"lengths": True, "reset": True, "reverse": True},
    "masks": {"mask": True, "zoneout": 0.3, "recurrent_dropout": 0.25},
    "inputs": {"input_dropout": 0.4, "checkpoint_every": 2, "truncate_every": 3},
}


@pytest.fixture(autouse=True)
def moved(machine):
    """Every call moves."""
    with placement("cpu"):
        yield


def late(a):
    """The same numbers, still to be computed on the default stream."""
    return mx.negative(mx.negative(a))


def outside(path, problem):
    """A problem's call between operations that stay."""

    def run(*values):
        return [late(y) for y in problem(path, *map(late, values))]

    return run


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", WAYS)
class TestOptions:
    def test_results_and_derivatives(self, rng, name, options):
        way = WAYS[name]
        problem = way.problem(rng, L=7, D=4, H=9, **OPTIONS[options])
        run = outside(way.path, problem)
        values = list(problem.arrays.values())
        problem.check(run(*values))
        problem.check_gradients(run, [*map(late, problem.cotangents())])
        problem.check_tangents(run, [*map(late, problem.directions())])

    def test_second_order(self, rng, name, options):
        """As in one stream, to the bit: the kernels are the same."""
        way = WAYS[name]
        problem = way.problem(rng, L=5, D=3, H=4, **OPTIONS[options])
        values, directions = list(problem.arrays.values()), problem.directions()
        cotangents = problem.cotangents()

        def of(run):
            def along(*a):
                found = grads(run, a, cotangents)
                return sum(
                    (g * d).sum() for g, d in zip(found, directions, strict=True)
                )

            return mx.grad(along, tuple(range(len(values))))(*values)

        with mx.stream(mx.cpu):
            here = of(lambda *a: problem(way.path, *a, stream=devices.here().cpu))
        for one, other in zip(of(outside(way.path, problem)), here, strict=True):
            np.testing.assert_allclose(wide(one), wide(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
class TestTransformations:
    def setting(self, rng, kind, **options):
        layer = kind(4, 9, **options)
        mx.eval(layer.parameters())
        return layer, draw(rng, (3, 7, 4), mx.float32)

    def first(self, y):
        return y[0] if isinstance(y, tuple) else y

    def test_vmap(self, rng, kind):
        layer, _ = self.setting(rng, kind)
        x = draw(rng, (5, 3, 7, 4), mx.float32)
        got = mx.vmap(lambda x: self.first(layer(-x)) * 2)(x)
        close_to = self.first(layer(-x)) * 2
        np.testing.assert_allclose(got, close_to, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("shapeless", [False, True])
    def test_compile(self, rng, kind, shapeless):
        layer, x = self.setting(rng, kind)

        def loss(x):
            return mx.sum(mx.square(self.first(layer(late(x)))) * 2)

        step = mx.compile(mx.value_and_grad(loss), shapeless=shapeless)
        for each in (x, -x, draw(rng, (5, 4, 4), mx.float32) if shapeless else x):
            expected = mx.value_and_grad(loss)(each)
            for a, b in zip(step(each), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_checkpoint(self, rng, kind):
        layer, x = self.setting(rng, kind)
        run = lambda x: mx.sum(self.first(layer(-x)) ** 2)  # noqa: E731
        got = mx.grad(mx.checkpoint(run))(x)
        np.testing.assert_allclose(got, mx.grad(run)(x), rtol=1e-5, atol=1e-6)

    def test_random_masks_are_those_of_one_stream(self, rng, kind):
        options = {"zoneout": 0.3, "recurrent_dropout": 0.2, "input_dropout": 0.1}
        layer, x = self.setting(rng, kind, **options)
        found = []
        for stream in (None, mx.cpu):
            mx.random.seed(7)
            if stream is None:
                found.append(np.array(self.first(layer(late(x)))))
            else:
                arguments = {**layer._arguments(), "stream": devices.here().cpu}
                found.append(np.array(self.first(kind._function(x, **arguments))))
        np.testing.assert_array_equal(*found)

    def test_lengths_of_the_other_stream(self, rng, kind):
        layer, x = self.setting(rng, kind)
        expected = self.first(layer(x, lengths=[7, 0, 3], mask=np.ones((3, 7), bool)))
        lengths = mx.array([6, -1, 2]) + 1  # not computed yet, and not here
        mask = mx.ones((3, 7)) > mx.zeros((3, 7))
        got = self.first(layer(late(x), lengths=lengths, mask=mask))
        np.testing.assert_array_equal(got, expected)
        traced = mx.compile(lambda x, n: self.first(layer(x, lengths=n)))
        np.testing.assert_array_equal(traced(x, mx.array([6, -1, 2]) + 1), expected)

    def test_async_eval(self, rng, kind):
        layer, x = kind(4, 4), draw(rng, (3, 7, 4), mx.float32)
        mx.eval(layer.parameters())
        expected, results = x, []
        for _ in range(20):
            x = mx.tanh(self.first(layer(x)) + 1)
            mx.async_eval(x)
            results.append(x)
        with placement("stay"):
            for got in results:
                expected = mx.tanh(self.first(layer(expected)) + 1)
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_training(self, rng, kind):
        """Steps of an optimizer, whose state stays where it is."""
        x = draw(rng, (3, 7, 4), mx.float32)
        losses = []
        for mode in ("cpu", "stay"):
            mx.random.seed(1)
            model = Stack([kind(4, 5), kind(5, 4)])
            optimizer = Adam(0.01)

            def loss(model, x):
                return mx.mean(mx.square(model(x) - mx.sin(x)))

            step = nn.value_and_grad(model, loss)
            with placement(mode):
                for _ in range(5):
                    value, gradients = step(model, x)
                    optimizer.update(model, gradients)
                    mx.eval(model.parameters(), optimizer.state)
            losses.append(float(value))
        assert math.isclose(*losses, rel_tol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_networks(rng, kind):
    """Stacks, both directions, with dropout and residuals between, as in one place."""
    large = draw(rng, (4, 120, 64), mx.float32)
    small = draw(rng, (2, 40, 6), mx.float32)
    for model, x in (
        (Bidirectional(kind(64, 96), kind(64, 96)), large),  # in one launch
        (Stack.build(6, 6, 3, layer=kind, residual=True, dropout=0.3), small),
        (Stack.build(6, 3, 2, layer=kind, bidirectional=True, residual=True), small),
    ):
        mx.eval(model.parameters())
        lengths = np.minimum([x.shape[1], 11, 0, 5], x.shape[1])[: x.shape[0]]

        def loss(x, model=model, lengths=lengths):
            y = model(late(x), lengths=lengths)
            return mx.mean(mx.square(y) * mx.cos(y))

        found = []
        for mode in ("cpu", "stay"):
            mx.random.seed(5)
            with placement(mode):
                assert model.plan(x).place == ("cpu" if mode == "cpu" else "gpu")
                found.append(mx.value_and_grad(loss)(x))
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("return_state", [True, "only"])
def test_all_of_a_call_is_on_the_cpus_stream(rng, monkeypatch, kind, return_state):
    """And of its gradients: the border is at what made the operands or uses them.

    That stream is here another thread's, which evaluates what has no part elsewhere.
    """
    with ThreadPoolExecutor(1) as other:
        cpu = other.submit(mx.new_stream, mx.cpu).result()
        monkeypatch.setattr(devices, "_here", TwoStreams(cpu))
        layer, x = kind(4, 5), draw(rng, (3, 7, 4), mx.float32)
        mx.eval(layer.parameters())
        names = [*layer.parameters()]

        def run(*values):
            layer.update(dict(zip(names, values, strict=True)))
            return flat(layer(x, return_state=return_state))

        values = [mx.negative(layer[name], stream=cpu) for name in names]
        results = run(*values)
        cotangents = [mx.ones(a.shape, stream=cpu) for a in results]
        gradients = mx.vjp(run, values, cotangents)[1]
        used = [mx.negative(a) for a in gradients]
        with pytest.raises(RuntimeError, match="There is no Stream"):
            other.submit(mx.eval, used).result()
        for made in (results, gradients):
            other.submit(mx.eval, made).result()


def test_python_threads(rng, monkeypatch):
    """Each has streams of its own."""
    if not mx.metal.is_available():
        cpu = mx.new_thread_local_stream(mx.cpu)
        monkeypatch.setattr(devices, "_here", TwoStreams(cpu))
    layers = [kind(4, 9) for kind in LAYERS]
    mx.eval([layer.parameters() for layer in layers])
    xs = [draw(rng, (3, 7, 4), mx.float32) for _ in range(4)]

    def result(x):
        def loss(x):
            outputs = [layer(late(x)) for layer in layers]
            outputs = [y[0] if isinstance(y, tuple) else y for y in outputs]
            return sum(mx.sum(y * mx.cos(y)) for y in outputs)

        with placement("cpu"):
            return [np.array(a) for a in mx.value_and_grad(loss)(x)]

    expected, found = [result(x) for x in xs], {}

    def work(i):
        found[i] = [result(xs[i]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, want in enumerate(expected):
        assert len(found[i]) == 20
        for got in found[i]:
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


ALTERNATIONS = """
import mlx.core as mx
from machines import TwoStreams
from mlx_recurrent import GRU, placement, set_placement
from mlx_recurrent.functional import devices

if not mx.metal.is_available():
    devices._here = TwoStreams()
set_placement("cpu")
layer, x = GRU(3, 3), mx.ones((2, 2, 3))
mx.eval(layer.parameters(), x)
expected = x
for i in range(10_000):
    x = mx.sin(layer(x))
    if i % 3 == 0:
        mx.async_eval(x)
    if i % 100 == 99:
        mx.eval(x)
set_placement("stay")
for i in range(10_000):
    expected = mx.sin(layer(expected))
    if i % 100 == 99:
        mx.eval(expected)
print(mx.allclose(x, expected, rtol=1e-4, atol=1e-5).item())
"""


def test_ten_thousand_alternations():
    """Never stuck, whatever is waited for and when."""
    run = subprocess.run(
        [sys.executable, "-c", ALTERNATIONS],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.strip() == "True", run.stderr
