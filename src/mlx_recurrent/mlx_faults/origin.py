"""Where a layer's first weights come from."""

import weakref
from threading import get_ident
from typing import Any

import mlx.core as mx

from mlx_recurrent import _native


class Origin:
    """The thread and its stream that are to compute a new layer's weights.

    No other thread can. A copy of a layer has none.

    Args:
        weight (array): The first of the weights.
    """

    def __init__(self, weight: mx.array) -> None:
        self._thread = get_ident()
        self._stream = mx.default_stream(mx.default_device())
        self._weight = weakref.ref(weight)

    def expect(self, weight: mx.array | None) -> None:
        """Raise in another thread where the weight is the first one, not computed yet.

        Raises:
            RuntimeError: It says what to do.
        """
        if get_ident() == self._thread:
            return
        if weight is None or weight is not self._weight():
            return
        # Who works on that stream leaves the evaluation to its thread.
        here = mx.default_stream(mx.default_device())
        if here != self._stream and _native.is_unscheduled(weight):
            raise RuntimeError(
                "the layer's weights are not computed yet, and only the thread that "
                "made the layer can do it: before another one uses it call "
                "mx.eval(layer.parameters()) there"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
