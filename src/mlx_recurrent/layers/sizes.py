from typing import Any

from mlx.nn.layers import recurrent


def sizes_of(layer: Any) -> tuple[int | None, int | None]:
    """Return the features of a layer's input and of its outputs.

    ``None`` stands for what only a call can tell.
    """
    if isinstance(layer, recurrent.RNN):
        return layer.Wxh.shape[-1], layer.Whh.shape[-1]
    if isinstance(layer, (recurrent.GRU, recurrent.LSTM)):
        return layer.Wx.shape[-1], layer.Wh.shape[-1]
    sizes: tuple[int | None, int | None] = getattr(layer, "_sizes", (None, None))
    return sizes
