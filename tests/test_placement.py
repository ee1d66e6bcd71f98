"""Where calls run: the rule, the ways to say otherwise, and that it is so."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
from conftest import draw, unreadable
from machines import stream_of
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack, placement, set_placement
from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.devices import Machine
from mlx_recurrent.functional.placement import CROSSING, Work, costs, decide

SLABS = {"rnn": 1, "gru": 3, "lstm": 4}


class OnGpu(Machine):
    """A machine on whose GPU the default stream is."""

    def on_cpu(self, stream):
        return stream is not None and stream == mx.cpu


APPLE = OnGpu("metal", unified=True)
CUDA = OnGpu("cuda", unified=False)
INTEGRATED = OnGpu("cuda", unified=True)
NONE = Machine(None, unified=False)


def work(cell="lstm", N=1, L=100, D=128, H=128):
    return Work(cell, N, L, D, H, SLABS[cell])


def decided(work, *, kernels=True, stream=None, mode="auto", machine=APPLE):
    place = decide(work, kernels, stream, mode, machine)
    assert place.reason and not place.reason.endswith(".")
    if place.device == "gpu":
        assert place.stream is stream and not place.otherwise
    elif stream is None and machine.gpu:
        assert place.stream is machine.cpu
    return place.device


@pytest.mark.parametrize("cell", SLABS)
class TestRule:
    """Of public measurements: small calls pay the way, large ones do not."""

    def test_small_ones_move(self, cell):
        for N, H in ((1, 64), (1, 256), (8, 64), (16, 64)):
            assert decided(work(cell, N, 128, H, H)) == "cpu", (N, H)

    def test_large_ones_stay(self, cell):
        for N, H in ((1, 1024), (64, 512), (512, 128), (4096, 64)):
            assert decided(work(cell, N, 128, H, H)) == "gpu", (N, H)

    def test_few_steps_stay(self, cell):
        """They do not pay the way there and back, which is what the CPU must save."""
        assert decided(work(cell, L=1, D=4, H=4)) == "gpu"
        assert decided(work(cell, L=2, D=4, H=4)) == "gpu"
        assert decided(work(cell, L=0)) == "gpu"
        shortest = next(L for L in range(1000) if decided(work(cell, L=L)) == "cpu")
        found = costs(work(cell, L=shortest))
        assert CROSSING < found.cpu < found.gpu

    def test_more_work_never_moves_what_stays(self, cell):
        """Once a call is too large, more rows and units leave it there."""
        for name, sizes in {
            "N": (1, 4, 5, 8, 32, 128, 1000, 10**6),
            "D": (1, 16, 256, 4096),
            "H": (8, 64, 256, 1024, 4096),
        }.items():
            places = [decided(work(cell, **{name: size})) for size in sizes]
            assert places == sorted(places), (name, places)

    def test_longer_ones_of_small_steps_move(self, cell):
        places = [decided(work(cell, L=L)) for L in (1, 2, 30, 1000, 10**6)]
        assert places == sorted(places, reverse=True)
        assert set(places) == {"cpu", "gpu"}

    def test_only_from_an_apple_gpu(self, cell):
        small = work(cell, D=16, H=16)
        assert decided(small) == "cpu"
        assert decided(small, machine=CUDA) == "gpu"
        assert decided(small, machine=INTEGRATED) == "gpu"
        assert decided(small, machine=OnGpu("metal", unified=False)) == "gpu"
        assert decided(small, machine=NONE) == "cpu"
        assert decide(small, True, None, "auto", NONE).stream is None

    def test_what_is_said(self, cell):
        small, large = work(cell, D=16, H=16), work(cell, N=512, D=512, H=512)
        step = work(cell, L=1)
        for each in (small, large, step):
            assert decided(each, mode="stay") == "gpu"
            assert decided(each, mode="cpu") == "cpu"
            assert decided(each, mode="cpu", machine=CUDA) == "cpu"
            for mode in ("auto", "stay", "cpu"):
                assert decided(each, mode=mode, stream=mx.gpu) == "gpu"
                assert decided(each, mode=mode, stream=mx.cpu) == "cpu"
                assert decided(each, mode=mode, machine=NONE) == "cpu"

    def test_only_what_the_kernels_run(self, cell):
        small = work(cell, D=16, H=16)
        assert decided(small, kernels=False) == "gpu"
        assert decided(small, kernels=False, mode="cpu") == "cpu"

    def test_reasons_name_what_would_be_faster(self, cell):
        small, large = work(cell, D=16, H=16), work(cell, N=512, D=512, H=512)
        for keywords in ({"mode": "stay"}, {"stream": mx.gpu}):
            arguments = {"stream": None, "mode": "auto", **keywords}
            asked = (arguments["stream"], arguments["mode"], APPLE)
            assert "on the CPU" in decide(small, True, *asked).reason
            assert "on the CPU" not in decide(large, True, *asked).reason


def test_the_page_says_where_the_rule_turns():
    page = Path(__file__).parents[1] / "docs" / "guides" / "on_a_mac.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    rows = re.findall(r"^\| `(RNN|GRU|LSTM)` \| ([\d |]+) \|$", page.read_text(), re.M)
    assert len(rows) == 3
    for name, numbers in rows:
        cell, (shortest, *largest) = name.lower(), map(int, numbers.split("|"))
        for L, place in ((shortest - 1, "gpu"), (shortest, "cpu")):
            assert decided(work(cell, L=L, D=64, H=64)) == place
        for N, H in zip((1, 4, 16, 64, 256), largest, strict=True):
            assert decided(work(cell, N, 128, H, H)) == "cpu"
            assert decided(work(cell, N, 128, H + 1, H + 1)) == "gpu"


class TestModes:
    def test_context_inside_context(self, machine):
        layer, x = RNN(3, 4), mx.zeros((5, 3))
        inner = placement("stay")
        with placement("cpu"):
            assert layer.plan(x).place == "cpu"
            with inner, placement("cpu"), inner:
                assert layer.plan(x).place == "gpu"
            assert layer.plan(x).place == "cpu"
        assert layer.plan(x).place == "gpu"

    def test_an_error_leaves_the_context(self, machine):
        layer, x = RNN(3, 4), mx.zeros((5, 3))
        with pytest.raises(KeyError), placement("cpu"):
            raise KeyError
        assert layer.plan(x).place == "gpu"

    def test_set_for_all_threads_the_context_for_one(self, machine):
        layer, x, found = RNN(3, 4), mx.zeros((5, 3)), []

        def ask():
            thread = threading.Thread(target=lambda: found.append(layer.plan(x).place))
            thread.start()
            thread.join()
            return found[-1]

        with placement("cpu"):
            assert layer.plan(x).place == "cpu" and ask() == "gpu"
        set_placement("cpu")
        try:
            assert layer.plan(x).place == "cpu" and ask() == "cpu"
            with placement("stay"):
                assert layer.plan(x).place == "gpu"
        finally:
            set_placement("auto")
        assert ask() == "gpu"

    @pytest.mark.parametrize("give", [set_placement, placement])
    @pytest.mark.parametrize(
        "mode, error",
        [
            ("gpu", ValueError),
            ("", ValueError),
            ("CPU", ValueError),
            (None, TypeError),
            (mx.cpu, TypeError),
            (1, TypeError),
        ],
    )
    def test_errors(self, give, mode, error):
        with pytest.raises(error, match=r"^mode must be"):
            give(mode)

    @pytest.mark.parametrize("value", ["", "auto", "stay", "cpu", "gpu"])
    def test_environment(self, value):
        code = (
            "import mlx_recurrent\n"
            "from mlx_recurrent.functional.placement import _present\n"
            "print(_present())"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"MLX_RECURRENT_PLACEMENT": value},
            capture_output=True,
            text=True,
        )
        if value == "gpu":
            words = 'MLX_RECURRENT_PLACEMENT must be "auto", "stay" or "cpu"'
            assert run.returncode and words in run.stderr and "'gpu'" in run.stderr
        else:
            assert run.stdout.strip() == (value or "auto"), run.stderr


class TestCalls:
    """What runs is what the plan says, on the stream that it says."""

    def streams(self, machine):
        one = mx.ones((3,))
        mx.eval(one)
        return {
            "gpu": stream_of(mx.add(one, one)),
            "cpu": stream_of(mx.add(one, one, stream=machine.cpu)),
        }

    @pytest.mark.parametrize("kind", [RNN, GRU, LSTM])
    def test_results_are_on_the_stream_of_the_plan(self, rng, machine, kind):
        streams = self.streams(machine)
        assert streams["gpu"] != streams["cpu"]
        layer = kind(4, 6)
        mx.eval(layer.parameters())
        for L, mode, expected in (
            (40, "auto", "cpu"),
            (1, "auto", "gpu"),
            (40, "stay", "gpu"),
            (1, "cpu", "cpu"),
        ):
            x = draw(rng, (2, L, 4), mx.float32)
            with placement(mode):
                plan, y = layer.plan(x), layer(x)
                state = layer.step(x[:, 0]) if L == 1 else None
            assert plan.place == expected, plan
            assert plan.path == ("native" if expected == "cpu" else "composed")
            assert expected.upper() in str(plan) and plan.place_reason in str(plan)
            for a in (*y,) if isinstance(y, tuple) else (y,):
                assert stream_of(a) == streams[expected], (L, mode)
            if mode == "auto" and L == 1:
                state = state[0] if isinstance(state, tuple) else state
                assert stream_of(state) == streams["gpu"]

    def test_what_no_kernel_runs_stays(self, rng, machine):
        streams = self.streams(machine)
        x = draw(rng, (2, 60, 4), mx.float32)
        before = GRU(4, 6, reset_after=False)
        traced, read = RNN(4, 6, nonlinearity=mx.sin), unreadable(mx.sin)
        composed = RNN(4, 6, nonlinearity=read)
        for layer, place, path in (
            (before, "gpu", "composed"),
            (composed, "gpu", "composed"),
            (traced, "cpu", "traced"),
        ):
            mx.eval(layer.parameters())
            plan, y = layer.plan(x), layer(x)
            assert (plan.place, plan.path) == (place, path), plan
            mx.eval(y)
            if place == "cpu":
                assert stream_of(layer(x)) == streams["cpu"]
        composed.update(traced.parameters())
        np.testing.assert_allclose(composed(x), traced(x), rtol=1e-5, atol=1e-5)

    def test_a_callable_draws_as_it_does_where_it_stays(self, rng, machine):
        calls = []

        def noisy(a):
            calls.append(a.shape)
            return mx.tanh(a) + mx.random.normal(a.shape)

        layer, x = RNN(4, 6, nonlinearity=noisy), draw(rng, (2, 30, 4), mx.float32)
        found = []
        for mode in ("auto", "stay"):
            mx.random.seed(3)
            calls.clear()
            with placement(mode):
                found.append(np.array(layer(x)))
            assert len(calls) == 30
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)

    def test_explicit_streams(self, rng, machine):
        x, W, U = (draw(rng, s, mx.float32) for s in ((2, 60, 4), (6, 4), (6, 6)))
        streams = self.streams(machine)
        for mode in ("auto", "stay", "cpu"):
            with placement(mode):
                y = mlx_recurrent.rnn(x, W, U, stream=machine.cpu)
                assert stream_of(y) == streams["cpu"]

    def test_exporting_stays(self, machine):
        layer, x = LSTM(4, 6), mx.zeros((2, 60, 4))
        assert layer.plan(x).place == "cpu"
        with mlx_recurrent.exporting():
            plan = layer.plan(x)
            assert (plan.place, plan.path) == ("gpu", "composed")

    def test_a_compiled_function_keeps_its_place(self, rng, machine):
        layer, x = RNN(4, 6), draw(rng, (2, 60, 4), mx.float32)
        mx.eval(layer.parameters())
        streams = self.streams(machine)
        compiled = mx.compile(lambda x: layer(x))
        with placement("cpu"):
            mx.eval(compiled(x))
        with placement("stay"):
            assert stream_of(compiled(x)) == streams["cpu"]

    def test_products_move_only_with_all(self, rng, machine):
        layer, x = mlx_recurrent.Linear(4, 6), draw(rng, (2, 4), mx.float32)
        mx.eval(layer.parameters())
        streams = self.streams(machine)
        for run in (layer, lambda x: mlx_recurrent.matmul(x, layer.weight)):
            assert stream_of(run(x)) == streams["gpu"]
            with placement("cpu"):
                assert stream_of(run(x)) == streams["cpu"]
        with placement("cpu"):  # complex numbers are MLX's alone
            assert layer(x.astype(mx.complex64)).dtype == mx.complex64

    def test_networks(self, machine):
        x = mx.zeros((1, 60, 4))
        model = Stack([LSTM(4, 6), Bidirectional(GRU(6, 5)), RNN(10, 2000)])
        plan = model.plan(x)
        assert plan.place is None
        assert plan.parts["layers[0]"].place == plan.parts["layers[1]"].place == "cpu"
        assert plan.parts["layers[2]"].place == "gpu"
        with placement("cpu"):
            assert model.plan(x).place == "cpu"

    def test_linear_stays_mlx_where_its_product_is_fast(self, monkeypatch):
        for slow, kind in ((True, mlx_recurrent.Linear), (False, nn.Linear)):
            monkeypatch.setattr(dispatch, "SLOW_MLX_PRODUCT", slow)
            model = mlx_recurrent.accelerate(
                nn.Sequential(nn.RNN(3, 4), nn.Linear(4, 2))
            )
            assert [type(layer) for layer in model.layers] == [RNN, kind]
