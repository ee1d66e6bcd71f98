"""Sequences of which nothing is left at steps that no row takes."""

import mlx.core as mx

from mlx_recurrent import _native
from mlx_recurrent.functional import dispatch
from mlx_recurrent.functional.judging import FLOATING
from mlx_recurrent.functional.placement import moved
from mlx_recurrent.functional.selection import select


def only_taken(
    x: mx.array, lengths: mx.array | None, mask: mx.array | None
) -> mx.array:
    """Return a sequence with zeros in its padding and at skipped steps.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        lengths (array, optional): As for :func:`without_padding`.
        mask (array, optional): As for :func:`without_skipped`.
    """
    if lengths is not None:
        x = without_padding(x, lengths)
    return x if mask is None else without_skipped(x, mask)


def without_padding(x: mx.array, lengths: mx.array) -> mx.array:
    """Return a sequence with zeros in its padding, whatever that holds.

    Nothing of the padding reaches a derivative, nor anything of what stands there in a
    cotangent.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        lengths (array): How many steps each row has: ``int32``, ``(...)``. The leading
            axes of ``x`` broadcast to it.
    """
    stream = moved(None)
    if dispatch.has_kernels(stream):
        return _native.without_padding(x, lengths, stream)
    runs = mx.arange(x.shape[-2]) < mx.expand_dims(lengths, -1)
    return select(mx.expand_dims(runs, -1), x, mx.zeros((), x.dtype))


def without_skipped(x: mx.array, mask: mx.array) -> mx.array:
    """Return the same for the steps where a mask is false.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        mask (array): Which steps are not skipped: booleans, ``(..., L)``. The leading
            axes of ``x`` broadcast to its own.
    """
    stream = moved(None)
    if dispatch.has_kernels(stream) and x.dtype in FLOATING:
        return _native.without_skipped(x, mask, stream)
    return select(mx.expand_dims(mask, -1), x, mx.zeros((), x.dtype))
