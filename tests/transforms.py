"""What the tests of MLX's transformations have in common."""

import mlx.core as mx
import pytest

from conftest import (
    COMPOSED,
    NATIVE,
    TRACED,
    Case,
    array,
    composed,
    draw,
    ours,
    smooth,
    traced,
)

both_paths = pytest.mark.parametrize(
    "run", [ours, traced, composed], ids=["native", "traced", "composed"]
)
both_nonlinearities = pytest.mark.parametrize(
    "nonlinearity",
    [NATIVE["tanh"], TRACED["tanh"], COMPOSED["tanh"]],
    ids=["native", "traced", "composed"],
)


def setting(rng, shape=(3, 6, 5, 20), activation="tanh", dtype=mx.float32, **options):
    """A case, the values of its five arguments and a cotangent."""
    problem = smooth(rng, shape, dtype, activation, **options)
    # Not around zero: where a sum over all steps cancels, luck decides its error.
    c = array(1 + rng.standard_normal((*shape[:-2], shape[-1])), dtype)
    return problem, list(problem.arrays.values()), c


def directions(rng, values):
    return [draw(rng, v.shape, v.dtype) for v in values]


def vjp(function, values, v):
    cotangents = [mx.arctan(y) for y in as_list(function(*values))]
    return mx.vjp(function, values, cotangents)[1]


def jvp(function, values, v):
    return mx.jvp(function, values, v)[1]


def vjp_of_vjp(function, values, v):
    return vjp(lambda *a: vjp(function, list(a), v), values, v)


def jvp_of_vjp(function, values, v):
    cotangents = [mx.arctan(y) for y in as_list(function(*values))]
    return mx.jvp(lambda *a: mx.vjp(function, list(a), cotangents)[1], values, v)[1]


def ours_tanh(*values):
    return ours("tanh", *values)


def list_of_call(function, values, v):
    return as_list(function(*values))


def as_list(y):
    return [y] if isinstance(y, mx.array) else list(y)


# The axis of x, Wxh, Whh, bias, hidden that vmap runs along.
VMAP_AXES = {
    "x": (0, None, None, None, None),
    "x_axis_1": (1, None, None, None, None),
    "x_last_axis": (-1, None, None, None, None),
    "hidden": (None, None, None, None, 0),
    "x_and_hidden": (1, None, None, None, 1),
    "Wxh": (None, 0, None, None, None),
    "Whh": (None, None, 0, None, None),
    "bias": (None, None, None, 0, None),
    "weights": (None, 0, 0, 0, None),
    "all": (0, 0, 0, 0, 0),
    "all_at_other_axes": (2, 1, 2, 1, 1),
}


B = 3


def batched(rng, axes, activation="tanh", hidden=True, lead=(2,)):
    """Values of the five arguments with an axis of B where axes says; the slices."""
    L, D, H = 5, 5, 20
    shapes = [(*lead, L, D), (H, D), (H, H), (H,), (*lead, H)]
    stds = [1, 0.5, 0.3, 0.5, 0.5]
    values = []
    for shape, axis, std in zip(shapes, axes, stds, strict=True):
        if axis is not None:
            at = axis % (len(shape) + 1)
            shape = (*shape[:at], B, *shape[at:])
        values.append(draw(rng, shape, mx.float32, std))
    if not hidden:
        values[-1] = None
    problems = [
        Case(
            activation,
            *(
                v if a is None or v is None else mx.take(v, mx.array(i), a)
                for v, a in zip(values, axes, strict=True)
            ),
        )
        for i in range(B)
    ]
    return values, problems


def reverse_over_reverse(function, c, values, v):
    def along(*a):
        grads = mx.grad(lambda *b: (function(*b) * c).sum(), tuple(range(5)))(*a)
        return sum((g * d).sum() for g, d in zip(grads, v, strict=True))

    return mx.grad(along, tuple(range(5)))(*values)
