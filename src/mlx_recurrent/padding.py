import mlx.core as mx

from mlx_recurrent.selection import select


def without_padding(x: mx.array, lengths: mx.array) -> mx.array:
    """Return a sequence with zeros in its padding, whatever that holds.

    Nothing of the padding reaches a derivative, nor anything of what stands there in a
    cotangent.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        lengths (array): How many steps each row has: integers, ``(...)``. The leading
            axes of ``x`` broadcast to it.
    """
    # Not mx.arange: a shapeless function would keep the number of steps.
    ones = mx.ones_like(mx.any(x, axis=-1)).astype(mx.int32)
    runs = mx.cumsum(ones, axis=-1) <= mx.expand_dims(lengths, -1)
    return select(mx.expand_dims(runs, -1), x, mx.zeros((), x.dtype))
