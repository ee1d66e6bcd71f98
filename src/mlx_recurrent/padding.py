import mlx.core as mx


def without_padding(x: mx.array, lengths: mx.array) -> mx.array:
    """Return a sequence with zeros in its padding, whatever that holds.

    Args:
        x (array): The sequence, ``(..., L, D)``.
        lengths (array): How many steps each row has: integers, ``(...)``. The leading
            axes of ``x`` broadcast to it.
    """
    if x.shape[:-2] != lengths.shape:
        x = mx.broadcast_to(x, (*lengths.shape, *x.shape[-2:]))
    # Not mx.arange: a shapeless function would keep the number of steps.
    ones = mx.ones_like(mx.any(x, axis=-1)).astype(mx.int32)
    ended = mx.cumsum(ones, axis=-1) > mx.expand_dims(lengths, -1)
    # A derivative of mx.where is a product with the condition, and 0 * NaN is NaN. Of
    # an index it is an index: two layers, of x and of zeros, each step from one.
    layer = mx.expand_dims(ended.astype(mx.int32), (-3, -1))
    x = mx.expand_dims(x, -3)
    layers = mx.zeros_like(x) + mx.zeros((2, 1, 1), x.dtype)
    layers = mx.put_along_axis(layers, mx.zeros_like(layer), x, axis=-3)
    return mx.squeeze(mx.take_along_axis(layers, layer, axis=-3), -3)
