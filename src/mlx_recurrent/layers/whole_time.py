from typing import Any, NoReturn

from mlx_recurrent.functional.judging import type_name


class WholeTime:
    """What a layer is that begins at the end of a sequence: none for single steps."""

    def step(self, x: Any = None, hidden: Any = None, *, reset: Any = None) -> NoReturn:
        """Raise a ``TypeError``: time must be whole for this layer."""
        _refuse("step", f"a {type(self).__name__}", self)

    def stream(self, hidden: Any = None) -> NoReturn:
        """Raise a ``TypeError``: time must be whole for this layer."""
        _refuse("stream", f"a {type(self).__name__}", self)


def judge_method(layer: Any, name: str, method: str) -> None:
    """Raise a ``TypeError`` for a layer, of this name, that lacks a method."""
    if isinstance(layer, WholeTime) and method != "plan":
        _refuse(method, f"{name}, a {type(layer).__name__},", layer)
    if not callable(getattr(layer, method, None)):
        raise TypeError(
            f"{name} must have the method {method}, as the layers of this package "
            f"have, but is {type_name(layer)}"
        )


def _refuse(method: str, name: str, layer: Any) -> NoReturn:
    raise TypeError(
        f"{method} needs a layer that runs forward in time, but {name} begins at the "
        "end of the sequence: time must be whole. Call it on a sequence, or on windows "
        "of one"
    )
