"""Looks at a declared cell once for each dtype: whether it is a function of a step."""

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional.cells import DeclaredCell
from mlx_recurrent.functional.judging import dtype_name


def examine(cell: DeclaredCell, dtype: mx.Dtype, H: int) -> None:
    """Call a cell's function with placeholders, if it was not yet in this dtype.

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
    if dtype in cell.seen:
        return
    # float64 arrays live on the CPU alone; nothing of this is computed.
    with mx.stream(mx.cpu):
        # Both are kept: an identity that is free is used again.
        calls = [_call(cell, dtype, H) for _ in range(2)]
    first, second = (arrays for _, arrays in calls)
    if captured := first.keys() & second.keys():
        shape, of = next(first[i] for i in first if i in captured)
        raise ValueError(
            f"the cell {cell.name} uses an array of shape {shape}, {dtype_name(of)}, "
            "that was there before it was called: give it as one of parameters (a "
            "vector of H numbers that the layer learns, or that freeze keeps), or "
            "write a number as one of Python's"
        )
    cell.seen.add(dtype)


def stops_gradients(cell: DeclaredCell, dtype: mx.Dtype, H: int) -> bool:
    """Return whether a cell's derivative is not that of its values, on purpose."""
    given = _placeholders(cell, dtype, H)
    assert cell.step is not None
    return "StopGradient" in _native.operations_of(cell.step(*given), given)


def _placeholders(cell: DeclaredCell, dtype: mx.Dtype, H: int) -> list[mx.array]:
    """Return arrays for what a cell's function takes, which are not computed."""
    vectors = len(cell.parameters)
    count = len(cell.arguments) - vectors
    # Two rows, so that no shape is taken for that of a vector.
    given = [mx.zeros((2, H), dtype) for _ in range(count)]
    return given + [mx.zeros((H,), dtype) for _ in range(vectors)]


def _call(
    cell: DeclaredCell, dtype: mx.Dtype, H: int
) -> tuple[tuple[mx.array, ...], dict[int, tuple[tuple[int, ...], mx.Dtype]]]:
    """Return the results of one call, and what they are made of beside its arguments.

    The latter by identity: shapes and dtypes.
    """
    given = _placeholders(cell, dtype, H)
    key = _native.random_key()
    assert cell.step is not None
    results = cell.step(*given)
    if _native.random_key() is not key:
        raise ValueError(
            f"the cell {cell.name} draws random numbers, which would be the same at "
            "every step: draw them outside and give them with the input, as one of "
            "input_gates"
        )
    evaluated, arrays = _native.graph_of(results, given)
    if evaluated:
        raise ValueError(
            f"the cell {cell.name} evaluates its arguments, as a Python branch on "
            "their values does: mx.where(condition, a, b) chooses for each unit"
        )
    return results, arrays
