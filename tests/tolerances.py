"""Every number that decides whether a result is right, and the rule that uses them.

The error of a result is measured against the reference, and so is the error of what
``mlx.nn.RNN`` makes of the same inputs:

    max|ours - truth|  <=  OF_UPSTREAM max|upstream - truth| + ULPS eps max|truth|
"""

import mlx.core as mx
import numpy as np

OF_UPSTREAM = 2.0
# Half types round once from float32 sums: they have less to excuse.
ULPS = {mx.float64: 4.0, mx.float32: 4.0, mx.bfloat16: 2.0, mx.float16: 2.0}
# The root mean square of errors over many inputs, where luck cancels, of the largest
# value: so much of upstream's, and a part of a last place.
MEAN_OF_UPSTREAM = 1.25
MEAN_ULPS = 0.25
EPS = {
    mx.float64: 2.0**-52,
    mx.float32: 2.0**-23,
    mx.bfloat16: 2.0**-7,
    mx.float16: 2.0**-10,
}
# Explicit significand bits and the exponent of the smallest normal number.
FORMAT = {
    mx.float64: (52, -1022),
    mx.float32: (23, -126),
    mx.bfloat16: (7, -126),
    mx.float16: (10, -14),
}

# tanh against its true value, in units in the last place of the true value.
TANH_ULPS = 2.0

# The reference's own derivatives against differences of its forward, relative to the
# largest entry. The first is for longdouble with 64 bits of significand; where
# longdouble is float64 the difference itself loses that much.
REFERENCE = 1e-11 if np.finfo(np.longdouble).eps < 1e-18 else 1e-8

# A derivative in float64 against differences of the next lower one, or against plain
# MLX operations, relative to the largest entry.
DIFFERENCE = 1e-9
# A second one against mixed differences of the reference's values.
SECOND_DIFFERENCE = 1e-6
# A scan in float64 of a few steps and features, whose states may grow.
SCAN = 1e-12

# Two ways of the package to one result, a few steps and features on, in last places of
# the largest value.
WAYS = 16.0

# What a preset makes of Whh (H, H), rounded to the dtype, in H last places; more where
# that is the dtype it is computed in.
PRESET = 1.0
PRESET_COMPUTED = 4.0

# The demo: its scores are means of many float32 numbers, its n-gram models float64.
DEMO = 1e-5
DEMO_COUNTED = 1e-12
# The other examples: how far from the top a fitted curve may stop, in trials, and how
# far a mean of random draws may lie from its expectation, in standard errors.
FIT = 1e-3
STANDARD_ERRORS = 5.0
# A published model's probabilities against those of another library.
PUBLISHED = 1e-4
# Several processes against one, after some steps of Adam: the same float32 sums over
# rows in another order. Of the largest entry.
DISTRIBUTED = 1e-5

# The example in real time: energy of its plant after 500 steps of a method of second
# order, gains of recursions that end at 1e-12 a step, and what a short training leaves
# at most of the filter's error.
LINEARISED = 1e-4
REGULATOR = 1e-6
CLOSED_LOOP = 0.95

# Memory: a part of the output for odds and ends, and bytes that no length changes.
MEMORY_SLACK = 0.02
WORKSPACE = 4 * 2**20
# Scratch that stays for the next call, at most, in bytes.
SCRATCH_KEPT = 2**27
# What thousands of repetitions may add, in bytes: to MLX's arrays, which use buffers
# again that are a little larger; to the process, with its allocators and interpreter.
ACTIVE = 2**12
RESIDENT = 2**20
# How much more a step may cost where the sequence is 16 times as long: nothing, but
# for the depth of a tree over time. (Upstream's gradient: 16 times as much.)
LINEAR = 1.5


def wide(a):
    """An MLX array in NumPy, exactly: longdouble for float64, else float64."""
    a = mx.contiguous(a)  # NumPy takes no view with a negative stride from MLX
    if a.dtype == mx.float64:
        return np.array(a).astype(np.longdouble)
    if a.dtype == mx.bfloat16:
        a = a.astype(mx.float32)
    return np.array(a).astype(np.float64)


def largest(a):
    """max|a| over the finite entries, 0 if there is none."""
    a = np.abs(a)
    return np.max(a[np.isfinite(a)], initial=0)


def _error(a, truth):
    finite = np.isfinite(a) & np.isfinite(truth)
    return largest(np.where(finite, a, 0) - np.where(finite, truth, 0))


def same_places(ours, upstream, label="result"):
    """The same shape, dtype and places of NaN and of either infinity."""
    assert isinstance(ours, mx.array), f"{label}: {type(ours)} is no array"
    assert ours.shape == upstream.shape, f"{label}: {ours.shape} != {upstream.shape}"
    assert ours.dtype == upstream.dtype, f"{label}: {ours.dtype} != {upstream.dtype}"
    a, b = wide(ours), wide(upstream)
    for what, test in (
        ("NaN", np.isnan),
        ("inf", np.isposinf),
        ("-inf", np.isneginf),
    ):
        wrong = np.argwhere(test(a) != test(b))
        assert not len(wrong), (
            f"{label}: {what} differs at {len(wrong)} places, first {wrong[0]}: "
            f"{a[tuple(wrong[0])]} but upstream {b[tuple(wrong[0])]}"
        )


def close(ours, upstream, truth, label="result", rounded_to=None, neighbours=None):
    """Ours agrees with the truth by the rule above.

    ``rounded_to`` is a coarser dtype that something on the way is rounded to. Of many
    thousand cases upstream is lucky in some: ``neighbours``, which is called if need
    be, gives results of upstream and truths for inputs that differ a little, and the
    largest error of these counts as upstream's.
    """
    dtype = rounded_to or ours.dtype
    same_places(ours, upstream, label)
    assert truth.shape == tuple(ours.shape), f"{label}: truth is {truth.shape}"
    a, b = wide(ours), wide(upstream)
    error, base = _error(a, truth), _error(b, truth)
    last_places = ULPS[dtype] * EPS[dtype] * largest(truth)
    if error > OF_UPSTREAM * base + last_places and neighbours is not None:
        base = max(base, *(_error(wide(b), t) for b, t in neighbours()))
    bound = OF_UPSTREAM * base + last_places
    if error > bound:
        # A finite truth may lie beyond the dtype's range: both are then infinite.
        worst = np.unravel_index(np.nanargmax(np.abs(a - truth)), a.shape)
        raise AssertionError(
            f"{label}: error {error:.3g} > {bound:.3g} (upstream's error {base:.3g}, "
            f"largest value {largest(truth):.3g}) at {tuple(map(int, worst))}: "
            f"{a[worst]:.9g} but the truth is {truth[worst]:.9g}"
        )


def all_close(ours, upstream, truth):
    """``close`` for each entry of three dictionaries with equal keys."""
    assert ours.keys() == upstream.keys() == truth.keys()
    for name in ours:
        close(ours[name], upstream[name], truth[name], name)


def equal(ours, theirs, label="result"):
    """The same shape, dtype and bits, where every NaN counts as one value."""
    same_places(ours, theirs, label)
    assert mx.array_equal(ours, theirs, equal_nan=True), f"{label}: values differ"


def agree(a, b, label="result"):
    """Two ways to one result agree."""
    same_places(a, b, label)
    error, bound = _error(wide(a), wide(b)), WAYS * EPS[b.dtype] * largest(wide(b))
    assert error <= bound, f"{label}: {error:.3g} > {bound:.3g}"


def reference_close(a, b, label="reference"):
    """Two values of the reference agree."""
    assert a.shape == b.shape, f"{label}: {a.shape} != {b.shape}"
    error = _error(a, b)
    assert error <= REFERENCE * largest(b), (
        f"{label}: error {error:.3g} of {largest(b):.3g}"
    )


def ulps(ours, truth):
    """|ours - truth| in units in the last place of the truth, in the dtype of ours.

    Where the truth is below the smallest normal number of the dtype that is computed
    with, zero is right as well: kernels flush denormal numbers.
    """
    bits, least = FORMAT[ours.dtype]
    _, exponent = np.frexp(truth)
    unit = np.ldexp(
        np.ones_like(truth), np.maximum(exponent.astype(int) - 1, least) - bits
    )
    got = wide(ours)
    computed = mx.float64 if ours.dtype == mx.float64 else mx.float32
    flushed = (got == 0) & (np.abs(truth) < 2.0 ** FORMAT[computed][1])
    return np.where(flushed, 0, np.abs(got - truth) / unit)


def mean_close(error, base, dtype, label="result"):
    """Root mean squares of errors, relative to the largest value, by the rule above."""
    bound = MEAN_OF_UPSTREAM * base + MEAN_ULPS * EPS[dtype]
    assert error <= bound, f"{label}: {error:.3g} > {bound:.3g} (upstream {base:.3g})"
