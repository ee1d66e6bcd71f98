import copy
from typing import Any, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module

T = TypeVar("T")


def duplicate(module: T) -> T:
    """Return a module like another one, with modules, lists and arrays of its own.

    All else is shared, functions and what they hold above all, of which
    :func:`copy.deepcopy` copies some and refuses others.
    """
    # By identity: what is held twice stays one, and cycles end.
    copies: dict[int, Any] = {}

    def of(value: Any) -> Any:
        if id(value) in copies:
            return copies[id(value)]
        if isinstance(value, mx.array):
            copies[id(value)] = mx.array(value)
        elif isinstance(value, list):
            items = copies[id(value)] = copy.copy(value)
            items[:] = map(of, value)
        elif isinstance(value, dict):
            new = copies[id(value)] = copy.copy(value)
            dict.update(new, {key: of(item) for key, item in value.items()})
            if isinstance(value, Module):
                held = {key: of(item) for key, item in vars(value).items()}
                vars(new).update(held, _no_grad=set(value._no_grad))
        elif type(value) is tuple:
            copies[id(value)] = tuple(map(of, value))
        return copies.get(id(value), value)

    result: T = of(module)
    return result
