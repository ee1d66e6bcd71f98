"""`examples/cognitive_task.py`: its trials, its network, its figures and its report."""

import importlib.util
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tolerances import DEMO, FIT, STANDARD_ERRORS

pytest.importorskip("matplotlib", reason="the examples draw with it")
pytest.importorskip("scipy", reason="the example fits its curve with it")

SCRIPT = Path(__file__).parents[1] / "examples" / "cognitive_task.py"
SMALL = "--hidden 8 --batch 4 --steps 5 --trials 6".split()


@pytest.fixture(scope="module")
def task():
    spec = importlib.util.spec_from_file_location("cognitive_task", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Its named tuple looks its module up.
    sys.modules["cognitive_task"] = module
    spec.loader.exec_module(module)
    return module


def expected(values, mean):
    """The mean of many draws is what it should be, as far as chance allows."""
    error = values.std() / math.sqrt(values.size)
    assert abs(values.mean() - mean) < STANDARD_ERRORS * error


def test_periods_of_a_trial(task, rng):
    coherence = rng.choice(task.SIGNED, 300)
    trials = task.draw_trials(rng, coherence)
    assert trials.inputs.shape == (300, task.STEPS, 3)
    for n in range(300):
        begin, end, last = 10, 10 + trials.duration[n], trials.lengths[n]
        assert last == end + 15 <= task.STEPS
        evidence, fixation = trials.inputs[n, :, :2], trials.inputs[n, :, 2]
        assert not evidence[:begin].any() and not evidence[end:].any()
        assert evidence[begin:end].all()
        assert (fixation[:end] == 1).all() and not fixation[end:].any()
        counts = np.r_[np.ones(begin), np.zeros(end - begin), np.ones(15)]
        assert (trials.weights[n, :last] == counts).all()
        assert not trials.weights[n, last:].any()
        assert (trials.targets[n, :end] == task.FIXATE).all()
        (side,) = set(trials.targets[n, end:last])
        if coherence[n]:
            assert side == (task.RIGHT if coherence[n] > 0 else task.LEFT)
    assert {task.LEFT, task.RIGHT} == set(trials.targets[coherence == 0, -1])


def test_evidence_has_its_mean_and_its_noise(task, rng):
    trials = task.draw_trials(rng, np.full(500, -0.256), 800)
    assert set(trials.duration) == {40}
    watched = trials.inputs[:, 10:50]
    expected(watched[..., task.LEFT], 0.628)
    expected(watched[..., task.RIGHT], 0.372)
    # 0.15 sqrt(2 tau / dt), with a time constant of 100 ms in steps of 20 ms
    for side in (task.LEFT, task.RIGHT):
        deviation = watched[..., side] - watched[..., side].mean()
        expected(deviation**2, 0.15**2 * 10)


def test_durations_are_exponential_between_their_ends(task, rng):
    duration = 20 * task.draw_trials(rng, np.zeros(20_000)).duration
    assert duration.min() == 80 and duration.max() == 1500
    t = np.linspace(80, 1500, 100_001)
    density = np.exp(-t / 330)
    expected(duration, (t * density).sum() / density.sum())
    assert len(set(duration)) == (1500 - 80) // 20 + 1


def test_network_is_the_leaky_one(task, rng, monkeypatch):
    """Against NumPy, a step after the other, without the noise."""
    monkeypatch.setattr(task, "RECURRENT_NOISE", 0.0)
    network = task.Network(7)
    network.Whh = mx.array(rng.standard_normal((7, 7)) / 3, mx.float32)
    x = rng.standard_normal((3, 9, 3)).astype(np.float32)
    lengths = np.array([9, 4, 1])
    rates = np.array(network(mx.array(x), lengths))
    Wxh, bias, Whh = map(
        np.float64, (network.input.weight, network.input.bias, network.Whh)
    )
    for n in range(3):
        h = np.zeros(7)
        for t in range(lengths[n]):
            a = Wxh @ x[n, t] + bias + Whh @ h
            h = 0.8 * h + 0.2 * np.maximum(a, 0)
            assert rates[n, t] == pytest.approx(h, rel=DEMO, abs=DEMO)
        assert not rates[n, lengths[n] :].any()


def test_noise_inside_the_nonlinearity(task):
    """Without input or recurrence a rate is a leaky mean of rectified noise."""
    network = task.Network(50)
    network.Whh = mx.zeros((50, 50))
    network.input.weight, network.input.bias = mx.zeros((50, 3)), mx.zeros((50,))
    lengths = np.full(100, task.STEPS)
    rates = np.array(network(mx.zeros((100, task.STEPS, 3)), lengths))[:, -1]
    # The mean of the rectified normal: its deviation over the root of 2 pi.
    expected(rates, 0.05 * math.sqrt(10) / math.sqrt(2 * math.pi))


def test_decisions_are_those_of_the_last_step(task, rng, monkeypatch):
    monkeypatch.setattr(task, "RECURRENT_NOISE", 0.0)
    network = task.Network(7)
    trials = task.draw_trials(rng, rng.choice(task.SIGNED, 20))
    right = network.decide(trials)
    for n, last in enumerate(trials.lengths):
        alone = mx.array(trials.inputs[n : n + 1, :last])
        logits = network.output(network(alone, np.array([last])))[0, -1]
        assert right[n] == (logits[task.RIGHT] > logits[task.LEFT]).item()
    padded = trials._replace(inputs=trials.inputs.copy())
    for n, last in enumerate(trials.lengths):
        padded.inputs[n, last:] = np.nan
    assert (network.decide(padded) == right).all()


def test_fit_is_the_likeliest_curve(task, rng):
    """Where it is, both derivatives of the likelihood are zero."""
    coherence = np.repeat(task.SIGNED, 400)
    chance = 1 / (1 + np.exp(-9 * (coherence - 0.04)))
    right = rng.random(len(coherence)) < chance
    bias, slope = task.fit_logistic(coherence, right)
    p = 1 / (1 + np.exp(-slope * (coherence - bias)))
    assert abs((right - p).mean()) < FIT
    assert abs(((right - p) * coherence).mean()) < FIT


def test_fractions_have_wilsons_interval(task):
    for yes, count in [(0, 10), (3, 10), (10, 10), (450, 600)]:
        p, below, above = task.fraction(np.arange(count) < yes)
        z = 1.959963984540054
        middle = (yes + z**2 / 2) / (count + z**2)
        half = z / (count + z**2) * math.sqrt(yes * (count - yes) / count + z**2 / 4)
        assert p == yes / count
        assert p - below == pytest.approx(middle - half, abs=DEMO)
        assert p + above == pytest.approx(middle + half, abs=DEMO)


def test_learns_to_weigh_evidence(task, rng, capsys):
    mx.random.seed(0)
    network = task.Network(32)
    task.train(network, rng, 150, 32, 5e-3)
    trials = task.draw_trials(rng, np.repeat([-0.512, 0.512], 200))
    correct = network.decide(trials) == (trials.coherence > 0)
    assert correct.mean() > 0.9
    assert capsys.readouterr().out.count("loss") == 5


def test_small_run(task, tmp_path, capsys):
    assert task.main([*SMALL, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = re.findall(r"^ +(\S+) % +(\S+) +\((\S+) to (\S+)\) +(\S+)$", out, re.M)
    assert [row[0] for row in rows] == ["3.2", "6.4", "12.8", "25.6", "51.2"]
    for _, p, low, high, ideal in rows:
        assert 0 <= float(low) <= float(p) <= float(high) <= 1
        assert 0 <= float(ideal) <= 1
    assert "logistic curve: bias" in out
    names = ["psychometrics.png", "state_space.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert 900 < width < 1100 and 400 < height < 700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hidden", "0"], "--hidden: must be from 1 to 4096, not 0"),
        (["--steps", "x"], "--steps: invalid int value: 'x'"),
        (["--learning-rate", "nan"], "--learning-rate: must be from"),
        (["--trials", "0"], "--trials: must be from 1"),
        (["--seed", "-1"], "--seed: must be from 0"),
        (["--what"], "--what"),
    ],
)
def test_wrong_options(task, arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        task.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cognitive_task: error: ") and words in line


def test_a_place_that_cannot_be_written(task, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert task.main(["--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cognitive_task: error: ") and str(tmp_path) in line


def test_a_loss_that_is_not_finite(task, tmp_path, capsys):
    arguments = [*SMALL, "--steps", "60", "--learning-rate", "1", "--hidden", "64"]
    assert task.main([*arguments, "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("cognitive_task: error: the loss is ")
    assert "--learning-rate" in line and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interrupted(task, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "train", interrupt)
    assert task.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "cognitive_task: interrupted\n"


def test_help_from_the_command_line():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == ""
    for word in ("--hidden", "--trials", "--seed", "--out", "Britten"):
        assert word in done.stdout
