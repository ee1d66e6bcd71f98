from collections.abc import Callable
from typing import Any, TypeVar

from mlx.nn.layers import linear, recurrent
from mlx.nn.layers.base import Module

from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.judging import type_name
from mlx_recurrent.layers.gru import GRU
from mlx_recurrent.layers.linear import Linear
from mlx_recurrent.layers.lstm import LSTM
from mlx_recurrent.layers.rnn import RNN

T = TypeVar("T")

_REPLACEMENTS: dict[type, type[Module]] = {
    recurrent.RNN: RNN,
    recurrent.GRU: GRU,
    recurrent.LSTM: LSTM,
    linear.Linear: Linear,
}


def accelerate(model: T) -> T:
    """Replace every MLX layer in a model that this package has a faster one for.

    Every object whose type is exactly :class:`mlx.nn.RNN`, :class:`mlx.nn.GRU`,
    :class:`mlx.nn.LSTM` or :class:`mlx.nn.Linear` becomes this package's layer of the
    same name: once for each object, wherever modules,
    lists, dictionaries and tuples (plain or named) hold it, also under private names
    and inside a nonlinearity. :class:`mlx.nn.Linear` stays MLX's where its product is
    fast, everywhere but on Linux. The new layer has the same arrays, frozen parameters,
    mode and nonlinearity. Modules, lists and dictionaries are changed in place.

    Args:
        model (Module): The model; or a list, dictionary or tuple of models.

    Returns:
        Module: The model. It is another object where the model itself is replaced, so
        use this value.

    Raises:
        TypeError: If ``model`` is none of these.

    Example:
        >>> import mlx.nn as nn
        >>> from mlx_recurrent import RNN, accelerate
        >>> model = accelerate(nn.Sequential(nn.RNN(3, 8), nn.Linear(8, 2)))
        >>> type(model.layers[0]) is RNN
        True
    """
    if not isinstance(model, (dict, list, tuple)):
        raise TypeError(
            "model must be a module, or a list, dictionary or tuple of modules, but is "
            f"{type_name(model)}"
        )
    swapper = _Swapper()
    result: T = swapper.swap(model)
    swapper.run()
    return result


class _Swapper:
    def __init__(self) -> None:
        # By identity, together with the original, so that no identity is used again.
        self.swapped: dict[int, tuple[Any, Any]] = {}
        self.pending: list[Any] = []

    def swap(self, value: Any) -> Any:
        """Return what stands for a value, and note what it holds for :meth:`run`."""
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in self.swapped:
            return self.swapped[id(value)][1]
        if isinstance(value, tuple):
            new: Any = _make(value, [self.swap(item) for item in value])
        else:
            new = _replace(value)
            self.pending.append(new)
        self.swapped[id(value)] = (value, new)
        return new

    def run(self) -> None:
        """Swap what the noted objects hold, in place, until nothing is left."""
        while self.pending:
            held = self.pending.pop()
            items = enumerate(held) if isinstance(held, list) else held.items()
            for key, value in list(items):
                if (new := self.swap(value)) is not value:
                    held[key] = new
            if isinstance(held, Module):
                attributes = vars(held)
                for name, value in list(attributes.items()):
                    if (new := self.swap(value)) is not value:
                        attributes[name] = new


def _make(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """Return the same kind of tuple of these items, or it itself if they are its own.

    What makes a tuple of another class is not known, but for a named one: it stays.
    """
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if type(value) is tuple:
        return tuple(items)
    make: Callable[[list[Any]], tuple[Any, ...]] | None
    make = getattr(value, "_make", None)
    return value if make is None else make(items)


def _replace(layer: Any) -> Any:
    kind = _REPLACEMENTS.get(type(layer))
    if kind is None or (kind is Linear and not dispatch.SLOW_MLX_PRODUCT):
        return layer
    # Not constructed: that would draw new weights from the random state.
    new = kind.__new__(kind)
    dict.update(new, layer)
    vars(new).update(vars(layer), _no_grad=set(layer._no_grad))
    return new
