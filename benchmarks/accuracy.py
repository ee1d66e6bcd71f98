"""How far results are from the float64 reference, ours and the others'.

``python -m mlx_recurrent.benchmarks.accuracy`` runs it; ``make accuracy`` writes
docs/accuracy.md.

A case is one call of a layer and its gradients: a sequence or a few, initial states,
weights and a cotangent, all drawn for it alone. Its numbers are first rounded to the
dtype, so that every library starts from what the reference starts from. Errors are in
last places of the largest value: divided by that of the truth and by the dtype's eps.
"""

import argparse
import datetime
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlx_recurrent
from mlx_recurrent import _native
from mlx_recurrent.benchmarks import reference, tolerances
from mlx_recurrent.benchmarks.cases import CELLS, RNN
from mlx_recurrent.benchmarks.machine import processor

Arrays: TypeAlias = dict[str, np.ndarray]

DTYPES = ["float32", "float64", "bfloat16", "float16"]
# Of RNN by their nonlinearities, and the gated ones, by the names of the reference.
NONLINEARITIES = ["tanh", "relu", "sigmoid", "identity"]
GATED = ["gru", "lstm"]
EVERY_CELL = [*NONLINEARITIES, *GATED]
# N, L, D, H: few, because some libraries compile anew for each.
SHAPES = [
    (1, 8, 4, 8),
    (1, 40, 16, 17),
    (2, 16, 33, 31),
    (3, 20, 8, 64),
    (1, 100, 24, 32),
    (4, 5, 64, 100),
]
# The spectral radius of the weights, about: neither dies out nor grows.
GAIN = 0.8


@dataclass(frozen=True)
class Library:
    """A library that runs the layer.

    Args:
        label (str): Its name.
        distribution (str): What is installed under which name.
        module (str): What it needs.
        cells (list): Those that it has.
        make (callable): Gives a function of arrays, a cotangent, a dtype and a cell:
            the outputs and the gradients, in float64.
    """

    label: str
    distribution: str
    module: str
    cells: list[str]
    make: Callable[[], Callable[..., Arrays]]


def layer_of(cell: str) -> str:
    """The name of the layer's class."""
    return RNN if cell in NONLINEARITIES else cell.upper()


def _ours() -> Callable[..., Arrays]:
    named = {
        "tanh": None,
        "relu": nn.relu,
        "sigmoid": mx.sigmoid,
        "identity": nn.Identity(),
    }

    def run(cell: str, *arrays: mx.array) -> mx.array:
        if cell in named:
            return mlx_recurrent.rnn(*arrays, nonlinearity=named[cell])
        function = {"gru": mlx_recurrent.gru, "lstm": mlx_recurrent.lstm}[cell]
        return _first(function(*arrays))

    return _of_mlx(run)


def _upstream() -> Callable[..., Arrays]:
    # Upstream takes a module without parameters for false, and runs tanh.
    named = {
        "tanh": mx.tanh,
        "relu": nn.relu,
        "sigmoid": mx.sigmoid,
        "identity": lambda a: a,
    }

    def run(cell: str, x: mx.array, *arrays: mx.array) -> mx.array:
        made = {"nonlinearity": named[cell]} if cell in named else {}
        layer = getattr(nn, layer_of(cell))(1, 1, **made)
        weights = reference.CELLS[cell].weights
        for name, value in zip(weights, arrays, strict=False):
            setattr(layer, name, value)
        states = arrays[len(weights) :]
        layer.hidden_size = states[0].shape[-1]
        return _first(layer(x, *states))

    return _of_mlx(run)


def _first(result: Any) -> mx.array:
    """The outputs, also where other states come with them."""
    outputs: mx.array = result[0] if isinstance(result, tuple) else result
    return outputs


def _of_mlx(function: Callable[..., mx.array]) -> Callable[..., Arrays]:
    def run(arrays: Arrays, cotangent: np.ndarray, dtype: str, cell: str) -> Arrays:
        def array(a: np.ndarray) -> mx.array:
            return mx.array(a, mx.float64).astype(getattr(mx, dtype))

        states, gradients = mx.vjp(
            lambda *values: [function(cell, *values)],
            [array(a) for a in arrays.values()],
            [array(cotangent)],
        )
        wide = [tolerances.wide(a) for a in (*states, *gradients)]
        return dict(zip(["h", *arrays], wide, strict=True))

    return run


def _torch() -> Callable[..., Arrays]:
    import torch

    # Small products on a busy machine: threads would wait for each other.
    torch.set_num_threads(1)

    def run(arrays: Arrays, cotangent: np.ndarray, dtype: str, cell: str) -> Arrays:
        kind, layer_name = getattr(torch, dtype), layer_of(cell)
        given = {
            name: torch.from_numpy(a).to(kind).requires_grad_()
            for name, a in arrays.items()
        }
        weights = [given[name] for name in reference.CELLS[cell].weights]
        Wx, Wh, bx, bh = CELLS[layer_name].sides(torch.cat, *weights)
        made = {"nonlinearity": cell} if cell in NONLINEARITIES else {}
        layer = getattr(torch.nn, layer_name)(
            Wx.shape[1], Wh.shape[1], dtype=kind, **made
        )
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        sides = [Wx, Wh, bx, torch.zeros_like(bx) if bh is None else bh]
        first = tuple(given[name][None] for name in reference.CELLS[cell].states)
        states, _ = torch.func.functional_call(
            layer,
            dict(zip(names, sides, strict=True)),
            (given["x"].transpose(0, 1), first if len(first) > 1 else first[0]),
        )
        states = states.transpose(0, 1)
        gradients = torch.autograd.grad(
            states, list(given.values()), torch.from_numpy(cotangent).to(kind)
        )
        wide = [a.detach().double().numpy() for a in (states, *gradients)]
        return dict(zip(["h", *arrays], wide, strict=True))

    return run


def _jax() -> Callable[..., Arrays]:
    import jax
    import jax.numpy as jnp

    named = {
        "tanh": jnp.tanh,
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "identity": lambda a: a,
    }

    def compiled(cell: str) -> Callable[..., Any]:
        layer = CELLS[layer_of(cell)]
        count = len(reference.CELLS[cell].weights)
        # RNN's has a tanh, in whose place the nonlinearity stands.
        math = SimpleNamespace(tanh=named[cell]) if cell in named else jax.nn

        def outputs(x: Any, *arrays: Any) -> Any:
            Wx, Wh, bx, bh = layer.sides(jnp.concatenate, *arrays[:count])

            def step(before: Any, z: Any) -> tuple[Any, Any]:
                u = before[0] @ Wh.T
                after = layer.step(math, z, u if bh is None else u + bh, before)
                return after, after[0]

            z = (x @ Wx.T + bx).swapaxes(0, 1)
            return jax.lax.scan(step, arrays[count:], z)[1].swapaxes(0, 1)

        def both(cotangent: Any, *arrays: Any) -> Any:
            h, pull = jax.vjp(outputs, *arrays)
            return h, *pull(cotangent)

        return jax.jit(both)

    functions = {cell: compiled(cell) for cell in EVERY_CELL}

    def run(arrays: Arrays, cotangent: np.ndarray, dtype: str, cell: str) -> Arrays:
        given = [cotangent, *arrays.values()]
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            results = functions[cell](*(jnp.asarray(a, dtype) for a in given))
        wide = [np.asarray(a, np.float64) for a in results]
        return dict(zip(["h", *arrays], wide, strict=True))

    return run


LIBRARIES = [
    Library("ours", "mlx-recurrent", "mlx_recurrent", EVERY_CELL, _ours),
    Library("mlx.nn", "mlx", "mlx", EVERY_CELL, _upstream),
    # Its RNN has these two nonlinearities.
    Library("PyTorch", "torch", "torch", ["tanh", "relu", *GATED], _torch),
    Library("JAX scan", "jax", "jax", EVERY_CELL, _jax),
]


@dataclass
class Errors:
    """The errors of many numbers, in last places of the largest value.

    Args:
        largest (float): The largest.
        squares (float): The sum of their squares.
        count (int): How many numbers there were.
    """

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, got: np.ndarray, truth: np.ndarray, eps: float) -> None:
        """Count the numbers of a result."""
        if not np.isfinite(got).all():
            raise ValueError("results must be finite to have errors")
        # Zeros alone, where all units of a relu are off, have no error but others.
        unit = eps * float(np.abs(truth).max()) or 1.0
        error = np.abs(got - truth).astype(np.float64) / unit
        self.largest = max(self.largest, float(error.max()))
        self.squares += float((error**2).sum())
        self.count += error.size

    @property
    def root_mean_square(self) -> float:
        """The root of the mean of the squares."""
        return math.sqrt(self.squares / self.count)


# By dtype and cell, the library's label, and whether it is of gradients.
Found: TypeAlias = dict[tuple[str, str], dict[tuple[str, bool], Errors]]


def draw(rng: np.random.Generator, dtype: str, cell: str) -> tuple[Arrays, np.ndarray]:
    """Return the arrays of a case and a cotangent, rounded to a dtype."""
    N, L, D, H = SHAPES[rng.integers(len(SHAPES))]
    found = reference.CELLS[cell]
    arrays = {"x": rng.standard_normal((N, L, D))}
    for name, shape in found.shapes(D, H).items():
        # Of a matrix by what it sums over; of a bias alone.
        scale = GAIN / math.sqrt(shape[-1]) if len(shape) > 1 else 0.5
        arrays[name] = scale * rng.standard_normal(shape)
    for name in found.states:
        arrays[name] = 0.5 * rng.standard_normal((N, H))
    if cell == "relu":
        # Near zero a rounding decides the slope. The first feature turns the units on
        # and off, by many times what the others do.
        x, Wxh = arrays["x"], 0.3 * arrays["Wxh"]
        x[..., 0], Wxh[:, 0] = np.sign(x[..., 0]), 4 * np.sign(Wxh[:, 0])
        others = {name: 0.3 * arrays[name] for name in ("Whh", "bias", "hidden")}
        arrays |= {"x": x, "Wxh": Wxh, **others}
    cotangent = rng.standard_normal((N, L, H))

    def rounded(a: np.ndarray) -> np.ndarray:
        values = mx.array(a, mx.float64).astype(getattr(mx, dtype))
        return np.array(values.astype(mx.float64))

    return {name: rounded(a) for name, a in arrays.items()}, rounded(cotangent)


def truth_of(arrays: Arrays, cotangent: np.ndarray, dtype: str, cell: str) -> Arrays:
    """Return the outputs and the gradients of the reference."""
    wide = np.longdouble if dtype == "float64" else np.float64
    given = {name: a.astype(wide) for name, a in arrays.items()}
    found = reference.CELLS[cell]
    primals = [given.get(name) for name in found.arguments]
    outputs, _ = reference.recurrence(found, primals)
    cotangents = [cotangent, *[None] * (len(found.states) - 1)]
    gradients = dict(
        zip(
            found.arguments,
            reference.recurrence_grad(found, primals, d_outputs=cotangents),
            strict=True,
        )
    )
    return {"h": outputs[0], **{name: gradients[name] for name in arrays}}


def draw_with_truth(
    rng: np.random.Generator, dtype: str, cell: str
) -> tuple[Arrays, np.ndarray, Arrays]:
    """Return a case whose truth the dtype can hold: arrays, cotangent and truth."""
    largest = float(mx.finfo(getattr(mx, dtype)).max)
    while True:
        arrays, cotangent = draw(rng, dtype, cell)
        truth = truth_of(arrays, cotangent, dtype, cell)
        if all(np.abs(a).max() <= largest for a in truth.values()):
            return arrays, cotangent, truth


def installed() -> list[Library]:
    """Return the libraries that are there."""
    return [one for one in LIBRARIES if importlib.util.find_spec(one.module)]


def measure(
    cases: int, seed: int, libraries: list[Library], say: Callable[[str], None]
) -> Found:
    """Return the errors of so many cases, shared evenly among the groups.

    Args:
        cases (int): How many.
        seed (int): From which they are drawn.
        libraries (list(Library)): Whose errors.
        say (callable): Is told of each group.
    """
    mx.set_default_device(mx.cpu)
    runs = {library.label: library.make() for library in libraries}
    groups = [(dtype, cell) for dtype in DTYPES for cell in EVERY_CELL]
    found: Found = {}
    for i, (dtype, cell) in enumerate(groups):
        count = cases // len(groups) + (i < cases % len(groups))
        say(f"{dtype} {cell}: {count} cases")
        errors: dict[tuple[str, bool], Errors] = {}
        eps = tolerances.EPS[getattr(mx, dtype)]
        rng = np.random.default_rng([seed, i])
        for _ in range(count):
            arrays, cotangent, truth = draw_with_truth(rng, dtype, cell)
            for library in libraries:
                if cell not in library.cells:
                    continue
                got = runs[library.label](arrays, cotangent, dtype, cell)
                for name, expected in truth.items():
                    key = library.label, name != "h"
                    try:
                        errors.setdefault(key, Errors()).add(got[name], expected, eps)
                    except ValueError as error:
                        what = f"{library.label}, {dtype} {cell}, {name}"
                        raise ValueError(f"{what}: {error}") from error
        found[dtype, cell] = errors
    return found


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _table(found: Found, labels: list[str], gradients: bool) -> Iterator[str]:
    yield "| dtype | cell | " + " | ".join(labels) + " |"
    yield "| --- | --- |" + " ---: |" * len(labels)
    for (dtype, cell), errors in found.items():
        cells = []
        for label in labels:
            one = errors.get((label, gradients))
            cells.append(
                f"{_number(one.largest)} ({_number(one.root_mean_square)})"
                if one
                else ""
            )
        yield f"| {dtype} | {cell} | " + " | ".join(cells) + " |"


def report(
    found: Found, libraries: list[Library], cases: int, seed: int, command: str
) -> str:
    """Return the page."""
    labels = [library.label for library in libraries]
    versions = ", ".join(
        f"{o.distribution} {version(o.distribution)}" for o in libraries
    )
    shapes = "; ".join(", ".join(map(str, shape)) for shape in SHAPES)
    lines = [
        "# Accuracy",
        "",
        f"Written by `{command}` on {datetime.date.today()}: {cases:,} cases, seed "
        f"{seed}.",
        "",
        "A case is one call of a layer and its gradients: inputs, initial states, "
        "weights, biases and cotangent are drawn for it alone and rounded to the "
        "dtype, so that every library starts from the same numbers. The truth is the "
        "reference of the tests in float64, for float64 in NumPy's longdouble; a case "
        "whose truth is beyond the dtype's largest number is drawn anew. The cases are "
        "divided evenly among dtypes and cells: `RNN` by its nonlinearities, `GRU` and "
        f"`LSTM`. Their N, L, D, H are one of: {shapes}. The weights have a spectral "
        f"radius of about {GAIN}; those of relu are such that no rounding "
        "decides a slope.",
        "",
        "An error is in last places of the largest value: the difference from the "
        "truth, over the largest value of that result and the dtype's eps (2^-23 for "
        "float32, 2^-52 for float64, 2^-7 for bfloat16, 2^-10 for float16). Each "
        "entry is the largest of all cases and, in parentheses, the root mean square. "
        "Empty where a library's layer has no such nonlinearity.",
        "",
        "## Outputs",
        "",
        *_table(found, labels, False),
        "",
        "## Gradients",
        "",
        "By the input, the weights, the biases and the initial states, together.",
        "",
        *_table(found, labels, True),
        "",
        "## The run",
        "",
        f"{processor()}, {_native.isa()} instructions; Python "
        f"{'.'.join(map(str, sys.version_info[:3]))}, NumPy {np.__version__}; "
        f"{versions}. MLX computes sigmoid in float64 with the precision of float32.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print the page and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_recurrent.benchmarks.accuracy", description=__doc__
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the page to this file")
    options = parser.parse_args()
    libraries = installed()
    found = measure(
        options.cases,
        options.seed,
        libraries,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    command = " ".join(
        [
            "python -m mlx_recurrent.benchmarks.accuracy",
            f"--cases {options.cases} --seed {options.seed}",
        ]
    )
    page = report(found, libraries, options.cases, options.seed, command)
    if options.report:
        options.report.write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
