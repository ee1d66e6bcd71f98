"""A network that weighs evidence: a perceptual decision task, with `mlx_recurrent`.

    .venv/bin/python examples/cognitive_task.py          # a minute on two cores

The task is that of the random dots (Britten et al. 1992, J. Neurosci. 12, 4745), in the
form that Song, Yang and Wang (2016, PLoS Comput. Biol. 12, e1004792) trained networks
on: look at a fixation point, watch noisy evidence for left and for right as long as it
lasts, then choose. A trial of coherence c (its sign is the side) has evidence

    u = (1 +- c) / 2 + noise

for 80 to 1,500 ms. The rates h of the network follow tau dh/dt = -h + f(...), with the
noise inside f (Yang et al. 2019, Nat. Neurosci. 22, 297), in steps of dt:

    h_t = (1 - k) h_{t-1} + k f(Wxh u_t + b + sqrt(2 / k) sigma xi_t + Whh h_{t-1})

with k = dt / tau: `scan` with `leak=k`, its projected input with noise added. Trials
differ in length: `lengths`. `--out` receives psychometrics.png and state_space.png.

Exit status: 0, 2 for an error (one line on stderr) and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from scipy.optimize import minimize
    from scipy.special import expit
    from scipy.stats import binomtest

    from mlx_recurrent import Linear, scan
except ImportError as missing:
    hint = "pip install 'mlx-recurrent[cpu,examples]'"
    print(f"cognitive_task: error: {missing} ({hint})", file=sys.stderr)
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("cognitive_task: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

STEP, TAU = 20, 100  # milliseconds
LEAK = STEP / TAU
INPUT_NOISE, RECURRENT_NOISE = 0.15, 0.05
# Milliseconds. The stimulus: an exponential distribution, cut off at both ends.
FIXATION, DECISION = 200, 300
MEAN, SHORTEST, LONGEST = 330, 80, 1500
STEPS = (FIXATION + LONGEST + DECISION) // STEP
COHERENCES = np.array([0.0, 3.2, 6.4, 12.8, 25.6, 51.2]) / 100
SIGNED = np.concatenate([-COHERENCES[:0:-1], COHERENCES])
LEFT, RIGHT, FIXATE = range(3)


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


class Trials(NamedTuple):
    """Trials of the task, padded to ``L`` steps.

    Args:
        inputs (array): Evidence for left, evidence for right, fixation point, ``NL3``.
        targets (array): What to do at each step: `LEFT`, `RIGHT` or `FIXATE`, ``NL``.
        weights (array): 1 where that counts: not during the stimulus, ``NL``.
        lengths (array): Steps of each trial, ``N``.
        coherence (array): Its signed coherence, ``N``: above zero right is right.
        duration (array): Steps of its stimulus, ``N``.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray
    coherence: np.ndarray
    duration: np.ndarray


def draw_trials(
    rng: np.random.Generator, coherence: np.ndarray, milliseconds: int | None = None
) -> Trials:
    """A trial for each signed coherence ``N``; the stimuli's lengths may be given."""
    count, time = len(coherence), np.arange(STEPS)
    if milliseconds is None:
        low, high = np.exp(-SHORTEST / MEAN), np.exp(-LONGEST / MEAN)
        drawn = -MEAN * np.log(rng.uniform(high, low, count))
    else:
        drawn = np.full(count, milliseconds)
    duration = np.round(drawn / STEP).astype(int)
    begin, end = FIXATION // STEP, FIXATION // STEP + duration
    lengths = end + DECISION // STEP
    watching = (time >= begin) & (time < end[:, None])
    evidence = np.stack([1 - coherence, 1 + coherence], axis=-1)[:, None] / 2
    noise = INPUT_NOISE * math.sqrt(2 / LEAK) * rng.standard_normal((count, STEPS, 2))
    fixating = time < end[:, None]
    inputs = np.concatenate(
        [(evidence + noise) * watching[..., None], fixating[..., None]], axis=-1
    )
    # Where nothing points to a side, either of them is right.
    right = (coherence > 0) | ((coherence == 0) & (rng.random(count) < 0.5))
    targets = np.where(fixating, FIXATE, np.where(right, RIGHT, LEFT)[:, None])
    counts = ~watching & (time < lengths[:, None])
    return Trials(
        inputs.astype(np.float32),
        targets,
        counts.astype(np.float32),
        lengths,
        coherence,
        duration,
    )


class Network(nn.Module):
    """A leaky network with noise, and what it does at each step.

    Args:
        hidden (int): The number of units, ``H``.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.input = Linear(3, hidden)
        self.Whh = 0.9 * mx.eye(hidden)
        self.output = Linear(hidden, 3)

    def __call__(
        self, x: mx.array, lengths: mx.array | np.ndarray, return_state: Any = False
    ) -> mx.array:
        """Rates ``NLH`` for inputs ``NL3``; zero after the end of a trial."""
        z = self.input(x)
        z = z + math.sqrt(2 / LEAK) * RECURRENT_NOISE * mx.random.normal(z.shape)
        return scan(
            z,
            self.Whh,
            nonlinearity=nn.relu,
            leak=LEAK,
            lengths=lengths,
            return_state=return_state,
        )

    def decide(self, trials: Trials) -> np.ndarray:
        """Whether the network chooses right ``N``, at the last step of each trial."""
        pieces = []
        for at in range(0, len(trials.lengths), 1000):
            x = mx.array(trials.inputs[at : at + 1000])
            last = self(x, trials.lengths[at : at + 1000], return_state="only")
            logits = self.output(last)
            pieces.append(np.array(logits[:, RIGHT] > logits[:, LEFT]))
        return np.concatenate(pieces)


def train(
    network: Network, rng: np.random.Generator, steps: int, batch: int, rate: float
) -> None:
    """Trains by the cross-entropy of what to do where it counts."""

    def loss(
        x: mx.array, lengths: mx.array, targets: mx.array, weights: mx.array
    ) -> mx.array:
        logits = network.output(network(x, lengths))
        losses = nn.losses.cross_entropy(logits, targets, weights)
        return losses.sum() / weights.sum()

    schedule = optim.cosine_decay(rate, steps)
    optimizer = optim.Adam(schedule, bias_correction=True)
    optimizer.init(network.trainable_parameters())
    gradient = nn.value_and_grad(network, loss)
    state = [network.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(*arguments: mx.array) -> mx.array:
        value, gradients = gradient(*arguments)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(network, gradients)
        return value

    begun, values = time.perf_counter(), []
    for number in range(1, steps + 1):
        trials = draw_trials(rng, rng.choice(SIGNED, batch))
        arrays = trials.inputs, trials.lengths, trials.targets, trials.weights
        value = step(*map(mx.array, arrays))
        mx.eval(value, state)
        values.append(value.item())
        if not math.isfinite(values[-1]):
            raise Failure(
                f"the loss is {values[-1]} at step {number}: try a smaller "
                "--learning-rate"
            )
        if number % max(1, steps // 5) == 0:
            print(
                f"step {number}/{steps}: loss {np.mean(values[-100:]):.3f}, "
                f"{time.perf_counter() - begun:.0f} s",
                flush=True,
            )


def fit_logistic(coherence: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    r"""The likeliest bias and slope of :math:`p = 1 / (1 + e^{-s (c - b)})`."""

    def surprise(values: np.ndarray) -> float:
        bias, slope = values
        evidence = 10 * slope * (coherence - bias)
        return float(np.logaddexp(0, np.where(right, -evidence, evidence)).sum())

    bias, slope = minimize(surprise, [0.0, 1.0], method="Nelder-Mead").x
    return float(bias), float(10 * slope)


def fraction(yes: np.ndarray) -> tuple[float, float, float]:
    """A fraction, and how far Wilson's 95 % interval goes below and above it."""
    test = binomtest(int(yes.sum()), len(yes))
    interval = test.proportion_ci(method="wilson")
    p = test.statistic
    return p, max(0, p - interval.low), max(0, interval.high - p)


def draw_psychometrics(trials: Trials, right: np.ndarray) -> Figure:
    """Choices over coherence, and correct choices over the time to watch."""
    figure = Figure(figsize=(8.4, 4), layout="constrained")
    left_axes, right_axes = figure.subplots(1, 2)
    bias, slope = fit_logistic(trials.coherence, right)
    p, below, above = np.transpose(
        [fraction(right[trials.coherence == c]) for c in SIGNED]
    )
    style = {"fmt": "o", "markersize": 5, "capsize": 2.5}
    left_axes.errorbar(100 * SIGNED, p, [below, above], color="#0072b2", **style)
    fine = np.linspace(1.05 * SIGNED[0], 1.05 * SIGNED[-1], 300)
    left_axes.plot(100 * fine, expit(slope * (fine - bias)), "#0072b2", linewidth=1.3)
    left_axes.set(
        xlabel="coherence (%; above zero: right)",
        ylabel="fraction of choices to the right",
        title="Psychometric curve",
        ylim=(-0.03, 1.03),
    )
    edges = np.quantile(trials.duration, [0, 0.2, 0.4, 0.6, 0.8, 1])
    bins = np.clip(np.searchsorted(edges, trials.duration, "right") - 1, 0, 4)
    correct = right == (trials.coherence > 0)
    colors = ["#56b4e9", "#009e73", "#e69f00", "#d55e00", "0.15"]
    for c, color, marker in zip(COHERENCES[1:], colors, "osD^v", strict=True):
        groups = [(bins == b) & (np.abs(trials.coherence) == c) for b in range(5)]
        groups = [group for group in groups if group.any()]
        at = [STEP * trials.duration[group].mean() for group in groups]
        p, below, above = np.transpose([fraction(correct[group]) for group in groups])
        style |= {"fmt": f"{marker}-", "label": f"{100 * c:.1f}"}
        right_axes.errorbar(at, p, [below, above], color=color, **style)
    right_axes.set(
        xlabel="duration of the stimulus (ms)",
        ylabel="fraction of correct choices",
        title="The longer it looks, the better it chooses",
        ylim=(0.45, 1.02),
    )
    figure.legend(title="coherence (%)", frameon=False, loc="outside right center")
    for axes in (left_axes, right_axes):
        axes.grid(alpha=0.25)
    return figure


def draw_state_space(network: Network, rng: np.random.Generator, count: int) -> Figure:
    """Mean rates in the plane of the choice and of what else varies most.

    The choice axis is the difference of the weights by which right and left are read.
    The other one is the first principal component of what is left without it.
    """
    length = 800
    trials = draw_trials(rng, np.repeat(SIGNED, count), length)
    rates = np.array(network(mx.array(trials.inputs), trials.lengths))
    steps = trials.lengths[0]
    means = rates[:, :steps].reshape(len(SIGNED), count, steps, -1).mean(axis=1)
    weight = np.array(network.output.weight)
    choice = weight[RIGHT] - weight[LEFT]
    choice /= np.linalg.norm(choice)
    centred = means - means.mean(axis=(0, 1))
    along = centred @ choice
    rest = centred - along[..., None] * choice
    component = np.linalg.svd(rest.reshape(-1, len(choice)), full_matrices=False)[2][0]
    # A principal component has no sign of its own: time goes up.
    across = rest @ component * np.sign((rest[:, -1] @ component).mean())
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="choice axis (a.u.; right is right)",
        ylabel="first principal component of the rest (a.u.)",
        title=f"Mean state over time, stimuli of {length} ms",
    )
    marks = {"stimulus begins": (FIXATION // STEP - 1, "s")}
    marks["stimulus ends"] = ((FIXATION + length) // STEP - 1, "o")
    marks["trial ends"] = (steps - 1, "^")
    for n, c in enumerate(SIGNED):
        shade = 0.35 + 0.6 * np.abs(n - len(COHERENCES) + 1) / (len(COHERENCES) - 1)
        scale = colormaps["Blues" if c < 0 else "Oranges"]
        color = scale(shade) if c else "0.4"
        name = f"{100 * c:+.1f} %" if c else "0 %"
        axes.plot(along[n], across[n], color=color, linewidth=1.5, label=name)
        for at, marker in marks.values():
            axes.plot(along[n, at], across[n, at], marker, color=color, markersize=5)
    for name, (_, marker) in marks.items():
        axes.plot([], [], marker, color="0.3", markersize=5, label=name)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, title="coherence")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Replaces a picture in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(path, flush=True)


def report(trials: Trials, right: np.ndarray) -> None:
    """Prints how well the network chooses, beside one that adds up all evidence."""
    evidence = trials.inputs[..., RIGHT] - trials.inputs[..., LEFT]
    ideal = evidence.sum(axis=1) > 0
    print("\ncoherence   correct   (95 % interval)   sum of all evidence")
    for c in COHERENCES[1:]:
        group = np.abs(trials.coherence) == c
        sides = trials.coherence[group] > 0
        p, below, above = fraction(right[group] == sides)
        print(
            f"{100 * c:8.1f} %   {p:7.3f}   ({p - below:.3f} to {p + above:.3f})   "
            f"{(ideal[group] == sides).mean():19.3f}"
        )
    bias, slope = fit_logistic(trials.coherence, right)
    threshold = math.log(0.75 / 0.25) / slope
    print(
        f"\nlogistic curve: bias {100 * bias:+.2f} % coherence; 75 % of the choices to "
        f"the right {100 * threshold:.1f} % above it\n"
    )


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argument type: a number of `kind` from `low` to `high`."""

    def parse(text: str) -> float:
        value: float = kind(text)
        if not low <= value <= high:
            message = f"must be from {low} to {high}, not {text}"
            raise argparse.ArgumentTypeError(message)
        return value

    parse.__name__ = kind.__name__  # what argparse calls it
    return parse


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cognitive_task: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains a network, tests it and returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add, home = parser.add_argument, Path("runs/cognitive_task")

    def option(name: str, kind: type, default: float, high: float, text: str) -> None:
        text, low = f"{text} (default: {default})", 1 if kind is int else 1e-9
        add(name, type=number(kind, low, high), default=default, metavar="X", help=text)

    option("--hidden", int, 100, 4096, "units of the network, H")
    option("--steps", int, 800, 10**6, "training steps")
    option("--batch", int, 64, 4096, "trials in a training step, N")
    option("--learning-rate", float, 2e-3, 1.0, "Adam's, at first")
    option("--trials", int, 1000, 10**4, "trials of each signed coherence in the test")
    text = "seed of the weights, the noise and the trials (default: 0)"
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="X", help=text)
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    arguments = parser.parse_args(argv)
    mx.set_default_device(mx.cpu)  # the native core is the CPU's for now
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        mx.random.seed(arguments.seed)
        rng = np.random.default_rng(arguments.seed)
        network = Network(arguments.hidden)
        train(network, rng, arguments.steps, arguments.batch, arguments.learning_rate)
        trials = draw_trials(rng, np.repeat(SIGNED, arguments.trials))
        right = network.decide(trials)
        report(trials, right)
        save(draw_psychometrics(trials, right), arguments.out / "psychometrics.png")
        count = min(arguments.trials, 200)
        figure = draw_state_space(network, rng, count)
        save(figure, arguments.out / "state_space.png")
    except KeyboardInterrupt:
        print("cognitive_task: interrupted", file=sys.stderr)
        return 130
    except Failure as failure:
        print(f"cognitive_task: error: {failure}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{place}"
        print(f"cognitive_task: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
