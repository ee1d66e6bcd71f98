"""The example in real time: `examples/stream_control.py`, at a small size."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tolerances import CLOSED_LOOP, LINEARISED, REGULATOR, WAYS

pytest.importorskip("matplotlib", reason="the example draws with matplotlib")
pytest.importorskip("pandas", reason="the example makes tables with pandas")
SCRIPT = Path(__file__).parents[1] / "examples" / "stream_control.py"
DT = 1e-3


@pytest.fixture(scope="module")
def control():
    spec = importlib.util.spec_from_file_location("stream_control", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(control):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(600, 40, 8)).astype(np.float32)
    missing = np.repeat(seen[..., :1], 5, axis=-1)
    return control.train(seen, missing, DT, 5)


def energy(control, state):
    """Of the cart and a uniform rod, in J."""
    _, speed, angle, turn = state.T
    M, m, half = control.CART, control.POLE, control.HALF_LENGTH
    cart = (M + m) * speed**2 / 2 + m * half * speed * turn * np.cos(angle)
    rod = m * (4 / 3) * half**2 * turn**2 / 2
    return cart + rod + m * control.GRAVITY * half * np.cos(angle)


def test_the_plant_keeps_its_energy(control, monkeypatch):
    """Without friction, drag and pushes, however it swings."""
    monkeypatch.setattr(control, "FRICTION", 0.0)
    monkeypatch.setattr(control, "DRAG", 0.0)
    world = control.World(0, 5, 500, DT)
    world.pushes[:] = 0
    state, still = world.start, np.zeros(5)
    before = energy(control, state)
    for t in range(500):
        state = world.step(state, still, t)
    assert np.ptp(state[:, 2]) > 0.5
    assert energy(control, state) == pytest.approx(before, rel=LINEARISED)


def test_the_regulator_solves_the_riccati_equation(control):
    """Against SciPy, for the plant and for the filter."""
    linalg = pytest.importorskip("scipy.linalg", reason="SciPy is the reference")
    filter = control.Filter(DT)
    A, B = filter.A[:4, :4], filter.B[:4, None]
    P = linalg.solve_discrete_are(A, B, control.COST, control.FORCE_COST)
    K = np.linalg.solve(control.FORCE_COST + B.T @ P @ B, B.T @ P @ A)
    assert filter.K[:4] == pytest.approx(K[0], rel=REGULATOR)
    assert np.abs(np.linalg.eigvals(A - B @ K)).max() < 1
    C = np.eye(5)[[0, 2]]
    assert np.abs(np.linalg.eigvals((np.eye(5) - filter.G @ C) @ filter.A)).max() < 1


def test_the_filter_follows_a_plant_it_knows(control, monkeypatch):
    """Its model, started alike, without noise: the estimates stay the truth."""
    filter = control.Filter(DT)
    state, force = np.array([[0.001, 0.0, 0.0005, 0.0, 0.01]]), np.array([0.02])
    estimate = state
    for _ in range(50):
        state = state @ filter.A.T + force[:, None] * filter.B
        estimate, seen = filter(estimate, force, state[:, [0, 2]])
    assert estimate == pytest.approx(state, rel=REGULATOR)
    assert seen.shape == (1, 8)


def test_both_ways_of_a_step_do_the_same(control, network):
    seen = np.random.default_rng(1).normal(size=(50, 1, 8)).astype(np.float32)
    stream, graph = network.stream(1), network.graph(1)
    scale = np.abs(network.scales[1]).max() * np.finfo(np.float32).eps * WAYS
    inputs, outputs = network.scales
    x = mx.array((seen / inputs).swapaxes(0, 1))
    whole = np.array(network.head(network.rnn(x)))[0] * outputs
    for row, expected in zip(seen, whole, strict=True):
        one, other = stream(row)[0], graph(row)[0]
        assert np.abs(one - other).max() <= scale
        assert np.abs(one - expected).max() <= scale


def test_it_holds_the_pole_and_learns(control):
    filter, world = control.Filter(DT), control.World(2, 16, 1500, DT)
    idle = control.Filter(DT)
    idle.K = 0 * idle.K
    fallen, _, _ = control.run(world, idle, control.nothing)
    truth, estimates, seen = control.run(world, filter, control.nothing)
    assert np.abs(fallen[-1, :, 2]).max() > 1
    assert np.abs(truth[500:, :, 2]).max() < 0.3
    network = control.train(seen, truth - estimates, DT, 60)
    truth, corrected, _ = control.run(world, filter, network.stream(16))
    assert np.abs(truth[500:, :, 2]).max() < 0.3

    def error(estimates, truth):
        return np.sqrt(np.square((estimates - truth)[500:, :, 4]).mean())

    before, _, _ = control.run(world, filter, control.nothing)
    assert error(corrected, truth) < CLOSED_LOOP * error(estimates, before)


def test_the_clock_counts_what_is_late(control, monkeypatch):
    """With a clock of the test's own: three of ten steps take too long."""
    now = [0]
    monkeypatch.setattr(control.time, "perf_counter_ns", lambda: now[0])

    def correct(seen):
        now[0] += seen
        return 0

    clock = control.Clock(correct, 1e-6)
    durations = [300, 2000, 900, 1, 1001, 700, 5000, 400, 400, 900]

    def waiting():
        now[0] += 10
        return now[0]

    def tick(t):
        with monkeypatch.context() as patch:
            patch.setattr(control.time, "perf_counter_ns", waiting)
            clock.tick(t)

    for t, duration in enumerate(durations):
        tick(t)
        clock.correct(duration)
    tick(len(durations))
    assert clock.latencies == durations
    assert clock.missed == 3


def test_a_whole_run(control, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(control, "SECONDS", 1.0)
    arguments = ["--steps", "2", "--seconds", "1", "--rate", "500"]
    assert control.main([*arguments, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "layer.stream" in out and "error force mN" in out
    rows = np.loadtxt(tmp_path / "latency.csv", delimiter=",", skiprows=1)
    assert rows.shape == (500, 2) and (rows > 0).all()
    shown = float(out.split("layer.stream")[1].split()[0])
    assert shown == pytest.approx(np.median(rows[:, 1]), rel=1e-3)
    picture = (tmp_path / "control.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 960
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "control.png",
        "latency.csv",
    ]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rate", "10"], "--rate must be from 500 to 5000"),
        (["--rate", "fast"], "invalid int value: 'fast'"),
        (["--steps", "0"], "--steps must be from 1 to 1000000"),
        (["--speed", "1"], "unrecognized arguments: --speed"),
    ],
)
def test_wrong_arguments(arguments, words, control, capsys):
    assert control.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stream_control: error: ") and words in line


def test_a_folder_that_cannot_be(control, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert control.main(["--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line


def test_control_c(control, monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "train", interrupted)
    monkeypatch.setattr(control, "SECONDS", 0.1)
    assert control.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stream_control: interrupted\n"


def test_help_as_a_program():
    shown = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "--rate" in shown.stdout and not shown.stderr


def test_control_c_while_it_is_imported(tmp_path):
    (tmp_path / "pandas.py").write_text("raise KeyboardInterrupt\n")
    shown = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 130
    assert shown.stderr == "stream_control: interrupted\n"
