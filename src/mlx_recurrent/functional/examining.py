"""Looks at a declared cell once for each dtype: whether it is a function of a step."""

from typing import NamedTuple

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.cells import DeclaredCell
from mlx_recurrent.functional.judging import dtype_name


def examine(cell: DeclaredCell, dtype: mx.Dtype, H: int) -> "_native.CellProgram | str":
    """Return what the kernels run of a cell, or why they cannot.

    Its function is called with placeholders, twice for each dtype and number of units.

    Args:
        cell (DeclaredCell): The cell.
        dtype (Dtype): Of a step.
        H (int): How many units there are.

    Raises:
        TypeError: If a result is no array.
        ValueError: If the results do not fit, or depend on other things than the
            function's arguments: on values in Python, on random numbers, or on arrays
            that were there before the call.
    """
    found = cell.found.get((dtype, H))
    if found is not None:
        return found
    # float64 arrays live on the CPU alone; nothing of this is computed.
    with mx.stream(mx.cpu):
        # Of different numbers of rows, so that no shape is taken for that of a vector.
        # All are kept: an identity that is free is used again.
        one, other = (_called(cell, _placeholders(cell, dtype, H, n)) for n in (2, 3))
        if captured := one.arrays.keys() & other.arrays.keys():
            shape, of = next(one.arrays[i] for i in one.arrays if i in captured)
            raise ValueError(
                f"the cell {cell.name} uses an array of shape {shape}, "
                f"{dtype_name(of)}, that was there before it was called: give it as "
                "one of parameters (a vector of H numbers that the layer learns, or "
                "that freeze keeps), or write a number as one of Python's"
            )
        found = _native.trace_cell(
            one.results,
            one.given,
            state_only=len(cell.hidden_gates),
            shared=len(cell.gates),
            input_only=len(cell.input_gates),
            parameters=len(cell.parameters),
        )
        if not isinstance(found, str) and not found.is_of(other.results, other.given):
            found = "depends on how many rows there are"
    cell.found[dtype, H] = found
    return found


def stops_gradients(cell: DeclaredCell, dtype: mx.Dtype, H: int) -> bool:
    """Return whether a cell's derivative is not that of its values, on purpose."""
    given = list(_placeholders(cell, dtype, H).values())
    assert cell.step is not None
    return "StopGradient" in _native.operations_of(cell.step(*given), given)


def _placeholders(
    cell: DeclaredCell, dtype: mx.Dtype, H: int, rows: int = 2
) -> dict[str, mx.array]:
    """Return arrays for what a cell's function takes, which are not computed."""
    return {
        name: mx.zeros((H,) if name in cell.parameters else (rows, H), dtype)
        for name in cell.arguments
    }


class _Called(NamedTuple):
    """One call: its arguments in the kernels' order, and what came of them.

    Args:
        given (list(array)): The arguments.
        results (tuple(array)): The results.
        arrays (dict): What these are made of beside the arguments, by identity: shapes
            and dtypes.
    """

    given: list[mx.array]
    results: tuple[mx.array, ...]
    arrays: dict[int, tuple[tuple[int, ...], mx.Dtype]]


def _called(cell: DeclaredCell, arguments: dict[str, mx.array]) -> _Called:
    key = _native.random_key()
    assert cell.step is not None
    results = cell.step(*arguments.values())
    if _native.random_key() is not key:
        raise ValueError(
            f"the cell {cell.name} draws random numbers, which would be the same at "
            "every step: draw them outside and give them with the input, as one of "
            "input_gates"
        )
    gates = (*cell.hidden_gates, *cell.gates, *cell.input_gates)
    order = (*gates, *cell.states, *cell.parameters)
    given = [arguments[name] for name in order]
    evaluated, arrays = _native.graph_of(results, given)
    if evaluated:
        raise ValueError(
            f"the cell {cell.name} evaluates its arguments, as a Python branch on "
            "their values does: mx.where(condition, a, b) chooses for each unit"
        )
    return _Called(given, results, arrays)
