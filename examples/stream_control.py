"""A recurrent layer in a control loop in real time: a pole balanced on a cart.

    .venv/bin/python examples/stream_control.py
    .venv/bin/python examples/stream_control.py --rate 5000 --seconds 10

Sensors tell the cart's place and the pole's angle, with noise. The cart rubs, and
somebody pushes it. A fixed Kalman filter estimates the state s and the unknown force d,
and the motor's force is u = -K s - d, K of the linear-quadratic regulator. The filter
takes the plant for linear, and friction and pushes for noise. A recurrent layer watches
it and learns, in simulation, what to add to its estimates:

    h_t = (1 - a) h_{t-1} + a tanh(Wxh x_t + Whh h_{t-1} + b),  correction = W h_t + c

Then one cart is driven by the clock: once with a step of `layer.step` and `mx.eval` a
tick, MLX's graph, and once with `layer.stream`, the same work without it. The folder
`--out` receives how long each step took, `latency.csv`, and the picture `control.png`.

Exit status: 0, 2 for an error (one line on stderr) and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from mlx_recurrent import RNN, Linear
except ImportError as missing:
    print(
        f"stream_control: error: {missing} (pip install 'mlx-recurrent[cpu,examples]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("stream_control: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

GRAVITY, CART, POLE, HALF_LENGTH = 9.81, 1.0, 0.2, 0.5  # m/s^2, kg, kg, m
FRICTION, DRAG, STRONGEST = 4.0, 0.1, 20.0  # N, N s/m, N
NOISE = np.array([1e-3, 2e-3])  # m, rad: standard deviations of the sensors
START = np.array([0.3, 0.2, 0.05, 0.1])  # m, m/s, rad, rad/s: of the first state
COST, FORCE_COST = np.diag([10.0, 1.0, 10.0, 1.0]), np.array([[0.1]])
# What the filter takes the drift of speeds and force to be: the best of a grid.
SPEED_NOISE, FORCE_NOISE = 0.03, 6.0
HIDDEN, BATCH, WINDOW, SECONDS = 32, 32, 0.5, 3.0  # the last two in s
NOBODY, FILTER, BOTH = "no controller", "Kalman filter", "filter and layer"


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


def motion(state: np.ndarray, force: np.ndarray) -> np.ndarray:
    """Time derivative of states ``(N, 4)``: place, speed, angle from upright, turn.

    The equations are those of Florian, "Correct equations for the dynamics of the
    cart-pole system", 2007, for a cart without weight on its wheels.
    """
    _, speed, angle, turn = state.T
    sin, cos, mass = np.sin(angle), np.cos(angle), CART + POLE
    push = (force - DRAG * speed + POLE * HALF_LENGTH * turn**2 * sin) / mass
    lean = GRAVITY * sin - cos * push
    turning = lean / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / mass))
    pull = push - POLE * HALF_LENGTH * turning * cos / mass
    return np.stack([speed, pull, turn, turning], axis=-1)


def gain(A: np.ndarray, B: np.ndarray, Q: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The gain K of the linear-quadratic regulator, by the Riccati recursion."""
    P = Q
    for _ in range(100_000):
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        before, P = P, Q + A.T @ P @ (A - B @ K)
        if np.abs(P - before).max() <= 1e-12 * np.abs(P).max():
            break
    return K


class Filter:
    """The Kalman filter and the regulator of the plant, linearised at rest.

    Args:
        dt (float): Seconds of a step.
    """

    def __init__(self, dt: float):
        jacobian = np.zeros((5, 5))  # of the state and a force that stays
        for i, e in enumerate(1e-6 * np.eye(5)):
            up, down = (motion(s[None, :4], s[4:]) for s in (e, -e))
            jacobian[:4, i] = (up - down)[0] / 2e-6
        term, self.A = np.eye(5), np.eye(5)
        for i in range(1, 9):
            term = term @ jacobian * dt / i
            self.A = self.A + term
        self.B = np.append(self.A[:4, 4], 0.0)
        self.K = np.append(gain(self.A[:4, :4], self.B[:4, None], COST, FORCE_COST), 1)
        C = np.eye(5)[[0, 2]]
        drift = np.array([0, SPEED_NOISE, 0, SPEED_NOISE, FORCE_NOISE])
        # The filter's gain is the regulator's of the transposed system.
        G = gain(self.A.T, C.T, np.diag(drift**2 * dt + 1e-14), np.diag(NOISE**2)).T
        self.G = np.linalg.solve(self.A, G)

    def __call__(
        self, estimate: np.ndarray, force: np.ndarray, measured: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Estimates ``(N, 5)`` after a step, and what the network sees, ``(N, 8)``."""
        ahead = estimate @ self.A.T + force[:, None] * self.B
        surprise = measured - ahead[:, [0, 2]]
        estimate = ahead + surprise @ self.G.T
        return estimate, np.concatenate([estimate, surprise, force[:, None]], axis=-1)


class World:
    """`N` carts for `T` steps: how they start, what pushes them, the sensors' noise."""

    def __init__(self, seed: int, rows: int, steps: int, dt: float):
        rng = np.random.default_rng(seed)
        self.dt, self.start = dt, rng.normal(0, START, (rows, 4))
        self.noise = rng.normal(0, NOISE, (steps, rows, 2))
        self.pushes = np.zeros((steps, rows))
        for push in self.pushes.T:  # 40 % of the time, by some newtons
            at = 0
            while at < steps:
                until = at + math.ceil((0.02 + rng.exponential(0.4)) / dt)
                push[at:until] = (rng.random() < 0.4) * rng.normal(0, 2)
                at = until

    def unknown(self, state: np.ndarray, t: int) -> np.ndarray:
        """The forces ``(N,)`` that the filter is not told of."""
        return self.pushes[t] - FRICTION * np.tanh(state[:, 1] / 0.01)

    def step(self, state: np.ndarray, force: np.ndarray, t: int) -> np.ndarray:
        """The states ``(N, 4)`` after a step, by the midpoint method."""
        middle = state + self.dt / 2 * motion(state, force + self.unknown(state, t))
        return state + self.dt * motion(middle, force + self.unknown(middle, t))


Correct = Callable[[np.ndarray], np.ndarray]


def limited(force: np.ndarray) -> np.ndarray:
    """What the motor makes of a command."""
    return np.clip(force, -STRONGEST, STRONGEST)


def nothing(seen: np.ndarray) -> np.ndarray:
    """The correction of a filter alone."""
    return np.zeros(5)


def run(
    world: World, filter: Filter, correct: Correct, tick: Callable[[int], None] = int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lets a controller drive the carts.

    Args:
        world (World): The carts.
        filter (Filter): The filter and the regulator.
        correct (callable): What to add to the estimates ``(N, 5)``, from ``(N, 8)``.
        tick (callable): Called with `t` before each step, and with `T` at the end.

    Returns:
        tuple: The truth and the estimates ``(T, N, 5)``, what the network saw
        ``(T, N, 8)``.
    """
    steps, rows, _ = world.noise.shape
    truth, estimates = np.zeros((2, steps, rows, 5))
    seen = np.zeros((steps, rows, 8), np.float32)
    state, force, raw = world.start, np.zeros(rows), np.zeros((rows, 5))
    raw[:, [0, 2]] = state[:, [0, 2]] + world.noise[0]
    for t in range(steps):
        tick(t)
        raw, seen[t] = filter(raw, force, state[:, [0, 2]] + world.noise[t])
        estimate = raw + correct(seen[t])
        force = limited(-estimate @ filter.K)
        truth[t, :, :4], truth[t, :, 4] = state, world.unknown(state, t)
        estimates[t] = estimate
        state = world.step(state, force, t)
    tick(steps)
    return truth, estimates, seen


class Network(nn.Module):
    """The corrections ``(..., 5)`` for what a filter shows ``(..., 8)``.

    Args:
        dt (float): Seconds of a step.
        inputs (array): Scale of the inputs, ``(8,)``.
        outputs (array): Scale of the corrections, ``(5,)``.
    """

    def __init__(self, dt: float, inputs: np.ndarray, outputs: np.ndarray):
        super().__init__()
        # Units that remember for two steps to a tenth of a second; they learn it, too.
        leak = dt / np.geomspace(2 * dt, 0.1, HIDDEN)
        self.rnn = RNN(len(inputs), HIDDEN, leak=leak.astype(np.float32))
        self.head = Linear(HIDDEN, len(outputs))
        self.head.weight *= 0.01  # at first the filter is believed
        self.scales = inputs, outputs

    def stream(self, rows: int) -> Correct:
        """A function of one step, by `layer.stream`."""
        stream = self.rnn.stream(np.zeros((rows, HIDDEN), np.float32))
        hidden = np.empty((rows, HIDDEN), np.float32)
        inputs, outputs = self.scales
        weight = np.array(self.head.weight).T * outputs
        bias = np.array(self.head.bias) * outputs

        def correct(seen: np.ndarray) -> np.ndarray:
            return stream(seen / inputs, out=hidden) @ weight + bias

        return correct

    def graph(self, rows: int) -> Correct:
        """The same by `layer.step`, in MLX's graph."""
        inputs, outputs = self.scales
        hidden = mx.zeros((rows, HIDDEN))

        def correct(seen: np.ndarray) -> np.ndarray:
            nonlocal hidden
            hidden = self.rnn.step(mx.array(seen / inputs), hidden)
            mx.eval(correction := self.head(hidden), hidden)
            return np.array(correction) * outputs

        return correct


def train(seen: np.ndarray, missing: np.ndarray, dt: float, steps: int) -> Network:
    """Learns what the filter's estimates ``(T, N, 5)`` were missing."""
    inputs = np.maximum(seen.std(axis=(0, 1)), 1e-6)
    outputs = np.maximum(missing.std(axis=(0, 1)), 1e-6).astype(np.float32)
    seen, missing = (seen / inputs).swapaxes(0, 1), (missing / outputs).swapaxes(0, 1)
    mx.random.seed(0)
    network = Network(dt, inputs, outputs)
    optimizer = optim.Adam(optim.cosine_decay(2e-3, steps))
    optimizer.init(network.trainable_parameters())
    window = round(WINDOW / dt)

    def loss(network: Network, x: mx.array, y: mx.array) -> mx.array:
        corrections = network.head(network.rnn(x))
        # The state is zero at first: what comes until it has settled is not judged.
        return (corrections - y)[:, window // 5 :].square().mean()

    gradient = nn.value_and_grad(network, loss)
    state = [network.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x: mx.array, y: mx.array) -> None:
        _, gradients = gradient(network, x, y)
        optimizer.update(network, optim.clip_grad_norm(gradients, 1.0)[0])

    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(0, len(seen), BATCH)
        begin = rng.integers(0, seen.shape[1] - window)
        cut = rows, slice(begin, begin + window)
        step(mx.array(seen[cut]), mx.array(missing[cut].astype(np.float32)))
        mx.eval(state)
    return network


class Clock:
    """Lets each step begin at its time, and measures the corrections.

    Args:
        correct (callable): What is measured.
        dt (float): Seconds from one step to the next.
    """

    def __init__(self, correct: Correct, dt: float):
        self.inner, self.period = correct, round(1e9 * dt)
        self.latencies: list[int] = []  # ns
        self.missed = 0

    def tick(self, t: int) -> None:
        """Waits until step `t` is due; counts the step before if it ended later."""
        if t == 0:
            self.due = time.perf_counter_ns()
            return
        self.due += self.period
        if time.perf_counter_ns() > self.due:
            self.missed += 1
            self.due = time.perf_counter_ns()  # no other step is late for this one
        if (left := self.due - time.perf_counter_ns()) > 500_000:
            time.sleep((left - 300_000) * 1e-9)
        while time.perf_counter_ns() < self.due:
            pass

    def correct(self, seen: np.ndarray) -> np.ndarray:
        """The correction, timed."""
        begun = time.perf_counter_ns()
        correction = self.inner(seen)
        self.latencies.append(time.perf_counter_ns() - begun)
        return correction


def draw(times: pd.DataFrame, angles: dict[str, np.ndarray], dt: float) -> bytes:
    """How long the steps took, in microseconds, and the poles' angles, as a PNG."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    high = max(times.max().max(), 1e6 * dt)
    bins = np.geomspace(0.8 * times.min().min(), 1.5 * high, 100)
    for color, (name, column) in zip(("C1", "C0"), times.items(), strict=True):
        median, most, tail, longest = column.quantile([0.5, 0.99, 0.999, 1])
        label = f"{name}: median {median:,.1f}, 99 % below {most:,.0f},"
        label += f" 99.9 % below {tail:,.0f}, longest {longest:,.0f} µs"
        top.hist(column, bins, color=color, alpha=0.7, label=label)
        top.axvline(tail, color=color, ls="--", lw=1.2)
    top.axvline(1e6 * dt, color="k", lw=1.2, label=f"period: {1e6 * dt:,.0f} µs")
    top.set(xscale="log", yscale="log", ylim=(0.7, 100 * len(times)), ylabel="steps")
    top.set(xlabel="time of one recurrent step (µs)", title="Latency")
    held = np.degrees([angle for name, angle in angles.items() if name != NOBODY])
    styles = {"color": "0.5", "ls": "--"}, {"color": "C1"}, {"color": "C0"}
    for style, (name, angle) in zip(styles, angles.items(), strict=True):
        at = dt * np.arange(len(angle))
        bottom.plot(at, np.degrees(angle), lw=1.5, label=name, **style)
    bottom.set(ylim=(1.3 * held.min() - 1, 1.6 * held.max() + 1), xlabel="time (s)")
    bottom.set(
        ylabel="angle from upright (degrees)", title="The pole, with equal pushes"
    )
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.legend(loc="upper right")
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def judge(truth: np.ndarray, estimates: np.ndarray, filter: Filter) -> dict[str, float]:
    """Root mean squares of place, angle and errors of estimates, and the mean cost."""
    rms = 1e3 * np.sqrt(np.square(truth).mean(axis=(0, 1)))
    errors = 1e3 * np.sqrt(np.square(estimates - truth).mean(axis=(0, 1)))
    state, force = truth[..., :4], limited(estimates @ filter.K)
    cost = (state @ COST * state).sum(axis=-1) + FORCE_COST.item() * force**2
    names = "place mm", "speed mm/s", "angle mrad", "turn mrad/s", "force mN"
    return {"rms place mm": rms[0], "rms angle mrad": rms[2], "cost": cost.mean()} | {
        f"error {name}": error for name, error in zip(names, errors, strict=True)
    }


def by_the_clock(
    network: Network, filter: Filter, world: World
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Drives one cart in real time, by both ways to run a layer's step.

    Returns:
        tuple: The times of all steps in microseconds, a table of them, and the angles.
    """
    steps, times, table = len(world.noise), {}, {}
    for name, make in (("layer.step", network.graph), ("layer.stream", network.stream)):
        make(1)(np.ones((1, 8), np.float32))  # the first call has work of its own
        clock = Clock(make(1), world.dt)
        gc.collect()
        gc.disable()  # as a program in real time does
        try:
            truth, _, _ = run(world, filter, clock.correct, clock.tick)
        finally:
            gc.enable()
        times[name] = np.array(clock.latencies) / 1e3
        quantiles = np.percentile(times[name], [50, 99, 99.9, 100])
        table[name] = [*quantiles, 100 * clock.missed / steps]
    columns = ["median", "99 %", "99.9 %", "longest", "% late"]
    table = pd.DataFrame.from_dict(table, "index", columns=columns)
    return pd.DataFrame(times), table, truth[:, 0, 2]


def report(arguments: argparse.Namespace) -> None:
    """Trains, drives carts in simulation and one by the clock, and says how."""
    dt = 1 / arguments.rate
    filter, steps, skipped = Filter(dt), round(SECONDS / dt), round(0.5 / dt)
    arguments.out.mkdir(parents=True, exist_ok=True)
    truth, estimates, seen = run(World(1, 128, steps, dt), filter, nothing)
    begun = time.perf_counter()
    network = train(seen, truth - estimates, dt, arguments.steps)
    print(f"{arguments.steps} training steps took {time.perf_counter() - begun:.0f} s.")

    world, rows = World(2, 64, steps, dt), {}
    for name, correct in ((FILTER, nothing), (BOTH, network.stream(64))):
        truth, estimates, _ = run(world, filter, correct)
        rows[name] = judge(truth[skipped:], estimates[skipped:], filter)
    print("64 carts not seen in training, after half a second:\n")
    print(pd.DataFrame(rows).to_string(float_format="{:.4g}".format), flush=True)

    world, idle = World(3, 1, round(arguments.seconds / dt), dt), Filter(dt)
    idle.K = 0 * idle.K
    angles = {NOBODY: run(world, idle, nothing)[0][:, 0, 2]}
    angles[FILTER] = run(world, filter, nothing)[0][:, 0, 2]
    times, table, angles[BOTH] = by_the_clock(network, filter, world)
    print(f"\n{len(times)} steps at {arguments.rate} Hz, microseconds each:\n")
    print(table.to_string(float_format="{:.4g}".format))
    write(arguments.out / "latency.csv", times.to_csv(index=False).encode())
    write(arguments.out / "control.png", draw(times, angles, dt))
    print(f"Files: {arguments.out / 'latency.csv'}, {arguments.out / 'control.png'}")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("stream_control.py", description=__doc__, formatter_class=raw)
    limits = {"rate": (500, 5000), "seconds": (1, 3600), "steps": (1, 10**6)}
    add = parser.add_argument
    add("--rate", type=int, default=1000, help="steps a second (default: 1000)")
    add("--seconds", type=int, default=5, help="of each loop by the clock (default: 5)")
    add("--steps", type=int, default=400, help="of the training (default: 400)")
    home = Path("runs/stream_control")
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    arguments = parser.parse_args(argv)
    for name, (low, high) in limits.items():
        if not low <= getattr(arguments, name) <= high:
            parser.error(f"--{name} must be from {low} to {high}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    # The native core is the CPU's for now.
    mx.set_default_device(mx.cpu)
    try:
        report(parse(argv))
        return 0
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Failure as failure:
        status, message = 2, f"error: {failure}"
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        status, message = 2, f"error: {error.strerror or error}{place}"
    print("stream_control:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
