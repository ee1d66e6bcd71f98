"""Compares a declared cell's layer with a loop, and derivatives with differences."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_recurrent import functional
from mlx_recurrent.functional.cells import DeclaredCell
from mlx_recurrent.functional.declared import initial_of
from mlx_recurrent.functional.dispatch import exporting
from mlx_recurrent.functional.examining import stops_gradients
from mlx_recurrent.functional.judging import type_name
from mlx_recurrent.functional.masks import undrawn
from mlx_recurrent.functional.values import evaluate

_N, _L, _D, _H = 3, 6, 2, 5
# Beside none: what says which steps run, and from which states.
_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {
        "lengths": [6, 0, 4],
        "reset": np.array([[0, 0, 1, 0, 0, 1], [0] * 6, [1, 0, 0, 1, 0, 0]], bool),
        "mask": np.array([[1, 1, 0, 1, 1, 1], [1] * 6, [1, 0, 1, 1, 1, 1]], bool),
        "reverse": True,
    },
)
# The widths of differences; the nearest counts, since beside a kink of a function some
# are wrong. MLX's own functions of float64 may have float32's precision, and all that
# is made of them.
_WIDTHS = (1e-3, 1e-4, 1e-5, 1e-6)
# What values, first and second derivatives may differ by, of one of the largest: from
# the loop's, and from differences.
_OF_LOOP = (1e-5, 1e-4, 1e-3)
_OF_DIFFERENCES = 5e-3

Arrays = list[mx.array]
Run = Callable[..., Arrays]


class CellCheck(NamedTuple):
    """The largest errors that :func:`check_cell` found, of one of the largest numbers.

    Args:
        path (str): The path of the layer.
        values (float): Between the layer and the loop.
        first_derivatives (float): Also between derivatives and differences.
        second_derivatives (float): As these.
    """

    path: str
    values: float
    first_derivatives: float
    second_derivatives: float


def check_cell(cell: DeclaredCell, seed: int = 0) -> CellCheck:
    """Compare a cell's layer with a loop of MLX's operations, and with differences.

    Weights, states and sequences are drawn in float64. Compared are the values, the
    first derivatives in both modes and the second ones, without options and with
    lengths, episodes, skipped steps and backwards in time. Where the cell has
    :func:`mlx.core.stop_gradient`, derivatives are compared with the loop's alone.

    Args:
        cell (cell): The cell.
        seed (int, optional): Of what is drawn. Default: ``0``.

    Returns:
        CellCheck: The largest errors.

    Raises:
        TypeError: If it is no cell.
        ValueError: If the cell's function is not one of a step.
        AssertionError: If two differ.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import cell, check_cell
        >>> @cell(gates="a", states="h")
        ... def elman(a, h):
        ...     return mx.tanh(a)
        >>> check_cell(elman).first_derivatives < 1e-4
        True
    """
    if not isinstance(cell, DeclaredCell):
        raise TypeError(
            "cell must be a function that mlx_recurrent.cell(...) decorates, but is "
            f"{type_name(cell)}"
        )
    function = functional.DeclaredFunction(cell)
    rng = np.random.default_rng(seed)
    errors = [0.0, 0.0, 0.0]
    with mx.stream(mx.cpu), undrawn():
        arrays: dict[str, Any] = _drawn(cell, rng)
        path = functional.plan(function, **arrays).path
        for options in _OPTIONS:
            comparison = _Comparison(cell, function, arrays, options, rng)
            for order, what, got, expected, allowed in comparison.pairs():
                error = _distance(got, expected)
                if not error <= allowed:
                    raise AssertionError(
                        f"{what} of the cell {cell.name}: {error:.1e} of the largest, "
                        f"where {allowed:.0e} is allowed (options: "
                        f"{', '.join(options) or 'none'})"
                    )
                errors[order] = max(errors[order], error)
    return CellCheck(path, *errors)


def _drawn(cell: DeclaredCell, rng: np.random.Generator) -> dict[str, mx.array]:
    """Return a sequence, weights, states and parameters, by name."""
    rows, hidden_rows = cell.input_rows * _H, cell.hidden_rows * _H
    shapes: dict[str, tuple[int, ...]] = {
        "x": (_N, _L, _D),
        "Wx": (rows, _D),
        "b": (rows,),
        "Wh": (hidden_rows, _H),
        "bh": (len(cell.hidden_gates) * _H,),
        **dict.fromkeys(cell.states, (_N, _H)),
        **dict.fromkeys(cell.starts, (_H,)),
    }
    drawn = {
        name: mx.array(0.6 * rng.standard_normal(shape), mx.float64)
        for name, shape in shapes.items()
        if all(shape)
    }
    # About what they start from: where two are equal a function may have a kink.
    for name, a in initial_of(cell, _H).items():
        noise = mx.array(0.05 * rng.standard_normal(_H), mx.float64)
        drawn[name] = a.astype(mx.float64) + noise
    return drawn


class _Comparison:
    """A layer and its loop, of the same arrays and options.

    Args:
        cell (DeclaredCell): The cell.
        function (DeclaredFunction): What the layer runs.
        arrays (dict): What it is given, by name.
        options (dict): Of the call.
        rng (Generator): Draws cotangents and directions.
    """

    def __init__(
        self,
        cell: DeclaredCell,
        function: functional.DeclaredFunction,
        arrays: dict[str, mx.array],
        options: dict[str, Any],
        rng: np.random.Generator,
    ) -> None:
        self._function, self._options = function, options
        self._names, self._values = list(arrays), list(arrays.values())

        def like(of: Arrays) -> Arrays:
            return [mx.array(rng.standard_normal(a.shape), mx.float64) for a in of]

        self._direction = like(self._values)
        self._cotangents = like(self._layer(*self._values))
        self._smooth = not stops_gradients(cell, mx.float64, _H)

    def pairs(self) -> Iterator[tuple[int, str, Arrays, Arrays | list[Arrays], float]]:
        """Yield the order of two results, what they are, them, and what is allowed."""
        pairs: tuple[tuple[str, Callable[..., Arrays]], ...] = (
            ("the values", lambda run, *v: run(*v)),
            ("the tangents", self._tangents),
            ("the gradients", self._gradients),
            ("the second derivatives", self._second),
        )
        v, found = self._values, {}
        for order, (what, of) in zip((0, 1, 1, 2), pairs, strict=True):
            found[what] = of(self._layer, *v)
            loop = of(self._loop, *v)
            yield (
                order,
                f"{what} differ from a loop's",
                found[what],
                loop,
                (_OF_LOOP[order]),
            )
        # Both modes are one derivative.
        forward = _dot(self._cotangents, found["the tangents"])
        backward = _dot(self._direction, found["the gradients"])
        yield 1, "the gradients are not the tangents", backward, forward, _OF_LOOP[1]
        if not self._smooth:
            return
        for order, what, of in (
            (1, "the tangents", self._layer),
            (2, "the second derivatives", partial(self._gradients, self._layer)),
        ):
            yield (
                order,
                f"{what} are not differences",
                found[what],
                ([self._difference(of, width) for width in _WIDTHS]),
                _OF_DIFFERENCES,
            )

    def _layer(self, *values: mx.array) -> Arrays:
        given: dict[str, Any] = dict(zip(self._names, values, strict=True))
        outputs, state = self._function(**given, **self._options, return_state=True)
        return [outputs, *(state if isinstance(state, tuple) else (state,))]

    def _loop(self, *values: mx.array) -> Arrays:
        with exporting():
            return self._layer(*values)

    def _tangents(self, run: Run, *values: mx.array) -> Arrays:
        return mx.jvp(run, list(values), self._direction)[1]

    def _gradients(self, run: Run, *values: mx.array) -> Arrays:
        return mx.vjp(run, list(values), self._cotangents)[1]

    def _second(self, run: Run, *values: mx.array) -> Arrays:
        return mx.vjp(partial(self._gradients, run), list(values), self._direction)[1]

    def _difference(self, f: Run, width: float) -> Arrays:
        after, before = (
            f(
                *(
                    v + mx.array(sign * width, mx.float64) * d
                    for v, d in zip(self._values, self._direction, strict=True)
                )
            )
            for sign in (1, -1)
        )
        scale = mx.array(0.5 / width, mx.float64)
        return [(a - b) * scale for a, b in zip(after, before, strict=True)]


def _dot(one: Arrays, other: Arrays) -> Arrays:
    return [mx.sum(mx.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]))]


def _distance(got: Arrays, expected: Arrays | list[Arrays]) -> float:
    """Return the largest difference of the nearest expectation, of one of the largest.

    Args:
        got (list(array)): Several arrays.
        expected (list): As many, or several times as many.
    """
    several = expected if isinstance(expected[0], list) else [expected]
    found, all_of = _numbers(got), np.stack([_numbers(each) for each in several])
    if not np.isfinite(found).all():
        return np.inf
    errors = np.abs(all_of - found).min(axis=0)
    return float(errors.max() / max(1.0, np.abs(found).max()))


def _numbers(arrays: Any) -> np.ndarray:
    evaluate(*arrays)
    return np.concatenate([np.array(a).ravel() for a in arrays])
