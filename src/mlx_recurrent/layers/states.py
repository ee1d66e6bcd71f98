"""Layers one beside another, each called with its own states."""

from typing import Any

from mlx.nn.layers import recurrent

from mlx_recurrent.functional.judging import judge_pair, judge_states
from mlx_recurrent.layers.recurrent import Recurrent
from mlx_recurrent.layers.recurrent_layer import RecurrentLayer


def states_of(layer: Any, name: str, state: Any) -> tuple[Any, ...]:
    """Return what a layer takes in the place of its state.

    Args:
        layer (Module): The layer.
        name (str): What the user calls the state.
        state (array or tuple): That state, of an LSTM a pair, of a cell with several
            states a tuple of them, or ``None``.

    Raises:
        TypeError: If it is no tuple where it must be one.
        ValueError: If it has another number of entries then.
    """
    if isinstance(layer, Recurrent):
        return judge_states(name, state, layer.cell.states)
    return judge_pair(name, state) if isinstance(layer, recurrent.LSTM) else (state,)


def run_layer(layer: Any, x: Any, name: str, state: Any, **keywords: Any) -> Any:
    """Return what a layer returns, with one output: that of an LSTM is its first state.

    Args:
        layer (Module): The layer.
        x (array): The sequence.
        name (str): What the user calls the state.
        state (array or tuple): That state.
        keywords: Of the call.
    """
    states = states_of(layer, name, state)
    wanted = keywords.get("return_state", False)
    if not isinstance(layer, recurrent.LSTM) or wanted is not False:
        return layer(x, *states, **keywords)
    if isinstance(layer, RecurrentLayer):  # no cell state of every step is made then
        keywords["return_state"] = True
    return layer(x, *states, **keywords)[0]
