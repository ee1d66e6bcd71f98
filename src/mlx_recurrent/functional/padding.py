import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.selection import select


def without_padding(x: mx.array, lengths: mx.array) -> mx.array:
    """Return a sequence with zeros in its padding, whatever that holds.

    Nothing of the padding reaches a derivative, nor anything of what stands there in a
    cotangent.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        lengths (array): How many steps each row has: ``int32``, ``(...)``. The leading
            axes of ``x`` broadcast to it.
    """
    if dispatch.has_kernels(None):
        return _native.without_padding(x, lengths, None)
    runs = mx.arange(x.shape[-2]) < mx.expand_dims(lengths, -1)
    return select(mx.expand_dims(runs, -1), x, mx.zeros((), x.dtype))
