"""What every recurrent layer has beside MLX's."""

from typing import Any, ClassVar

import mlx.core as mx

from mlx_recurrent import functional
from mlx_recurrent.functional.cells import LSTM
from mlx_recurrent.functional.judging import (
    judge_flag,
    judge_probability,
    judge_size,
    type_name,
)
from mlx_recurrent.functional.options import judge_zoneout
from mlx_recurrent.layers.streaming import Array, Stream
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex

# What a layer may have beside MLX's parameters, and beside its attributes.
_PARAMETERS = frozenset({"leak", *LSTM.starts})
_SHARED = ("zoneout", "input_dropout", "recurrent_dropout")
_ATTRIBUTES = frozenset({"leak", "reset_after", *_SHARED})


class RecurrentLayer(Loading):
    """The options that belong to a layer, and what it gives to its function."""

    # What the layer runs, and what the function is given beside what all take.
    _function: ClassVar[functional.Function]
    _own: ClassVar[tuple[str, ...]] = ()
    # A layer has its own only where they are not zero; all others stay as MLX's are.
    zoneout: Any = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    __reduce_ex__ = reduce_ex

    def __getattr__(self, key: str) -> Any:
        # None for a layer without. A class attribute would hide a parameter.
        if key in _PARAMETERS:
            return self.get(key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _PARAMETERS and isinstance(value, mx.array):
            # MLX would first delete what __getattr__ finds.
            vars(self).pop(key, None)
            self[key] = value
        elif key == "zoneout":  # of which MLX would make an item where it is a pair
            object.__setattr__(self, key, value)
        else:
            super().__setattr__(key, value)

    def _extra_repr(self) -> str:
        described: str = super()._extra_repr()
        described += self._described()
        for name in _SHARED:
            if value := getattr(self, name):
                described += f", {name}={value}"
        return described + (
            ", learn_hidden=True" if self._start_names()[0] in self else ""
        )

    def _described(self) -> str:
        """Return what the representation says of options that other layers lack."""
        return ""

    @classmethod
    def _weight_names(cls) -> tuple[str, ...]:
        """The names of the weights, in the order in which the function takes them."""
        cell = functional.cell_of(cls._function)
        names = (cell.Wx, cell.Wh, cell.bias, cell.hidden_bias)
        return tuple(name for name in names if name)

    @classmethod
    def _start_names(cls) -> tuple[str, ...]:
        """The names of the states that episodes start from."""
        return functional.cell_of(cls._function).starts

    def _own_parameters(self) -> dict[str, mx.array]:
        """What parameters start from that are not drawn like weights, by name."""
        return {}

    @property
    def _has_options(self) -> bool:
        """Whether it is another layer than MLX's."""
        return (
            "leak" in self
            or "hidden0" in self
            or "cell0" in self
            or not _ATTRIBUTES.isdisjoint(self.__dict__)
        )

    def _arguments(self) -> dict[str, Any]:
        """Return what a layer gives to a function."""
        names = (*self._weight_names(), *self._own, *self._start_names(), *_SHARED)
        return {name: getattr(self, name) for name in (*names, "training")}

    def _streamed(self, states: tuple[Array | None, ...]) -> Stream:
        """Return the layer's stream."""
        names = (*self._weight_names(), *self._own, *self._start_names(), "zoneout")
        arguments = {name: getattr(self, name) for name in names}
        return Stream._of(self._function, arguments, states)


def judge_sizes(input_size: Any, hidden_size: Any, bias: Any) -> bool:
    """Judge what MLX's layers are made with; return whether to have biases."""
    judge_size("input_size", input_size, 0)
    judge_size("hidden_size", hidden_size, 1)
    try:
        return bool(bias)  # as MLX takes it
    except (TypeError, ValueError):
        raise TypeError(f"bias must be a bool, but is {type_name(bias)}") from None


def judge_own(
    starts: tuple[str, ...],
    hidden_size: int,
    *,
    zoneout: Any,
    input_dropout: Any,
    recurrent_dropout: Any,
    learn_hidden: Any,
) -> dict[str, Any]:
    """Return the attributes and parameters that a layer has beside MLX's.

    Args:
        starts (tuple(str)): The names of the states that episodes start from.
        hidden_size (int): Its hidden features.
        zoneout (float or tuple): As its constructor was given it, like the others.
        input_dropout (float): That.
        recurrent_dropout (float): That.
        learn_hidden (bool): That.
    """
    own: dict[str, Any] = {}
    each = judge_zoneout(zoneout, len(starts))
    if any(each):
        own["zoneout"] = each if isinstance(zoneout, (tuple, list)) else each[0]
    for name, value in (
        ("input_dropout", input_dropout),
        ("recurrent_dropout", recurrent_dropout),
    ):
        if probability := judge_probability(name, value):
            own[name] = probability
    if judge_flag("learn_hidden", learn_hidden):
        own |= {name: mx.zeros((hidden_size,)) for name in starts}
    return own
