"""Layers one beside another, each called with its own states."""

from typing import Any

from mlx.nn.layers import recurrent

from mlx_recurrent.functional.judging import type_name


def states_of(layer: Any, name: str, state: Any) -> tuple[Any, ...]:
    """Return what a layer takes in the place of its state.

    Args:
        layer (Module): The layer.
        name (str): What the user calls the state.
        state (array or tuple): That state, of an LSTM a pair, or ``None``.

    Raises:
        TypeError: If it is no pair where it must be one.
        ValueError: If it has not two entries then.
    """
    return pair_of(name, state) if isinstance(layer, recurrent.LSTM) else (state,)


def pair_of(name: str, state: Any) -> tuple[Any, Any]:
    """Return the hidden state and the cell state of an LSTM.

    Args:
        name (str): What the user calls the pair.
        state (tuple): The pair, or ``None``.

    Raises:
        TypeError: If it is no pair.
        ValueError: If it has not two entries.
    """
    if state is None:
        return None, None
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            f"{name} must be a pair (hidden, cell), the states of an LSTM, but is "
            f"{type_name(state)}"
        )
    if len(state) != 2:
        raise ValueError(
            f"{name} must be a pair (hidden, cell), the states of an LSTM, but has "
            f"{len(state)} entries"
        )
    hidden, cell = state
    return hidden, cell


def run_layer(layer: Any, x: Any, name: str, state: Any, **keywords: Any) -> Any:
    """Return what a layer returns, with one output: that of an LSTM is its first state.

    Args:
        layer (Module): The layer.
        x (array): The sequence.
        name (str): What the user calls the state.
        state (array or tuple): That state.
        keywords: Of the call.
    """
    result = layer(x, *states_of(layer, name, state), **keywords)
    returns_all = keywords.get("return_state", False) is False
    if isinstance(layer, recurrent.LSTM) and returns_all:
        return result[0]
    return result
