"""The block-linear scan: values and derivatives, in both directions, on every course.

The reference is a loop over steps, in float64; it is linear in what enters and of low
degree in the factors, so that its differences are nearly exact.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_recurrent import _native
from tolerances import DIFFERENCE, SCAN, SECOND_DIFFERENCE, largest

N, L, H = 3, 7, 5
double = partial(mx.array, dtype=mx.float64)


@dataclass
class Scan:
    """Operands by name, ``A (to, from)`` among them; paths, course and form."""

    arrays: dict
    states: int
    slabs: int
    A: list
    B: list
    course: dict = field(default_factory=dict)
    transposed: bool = False


def runs(course, n, length):
    """Of each step of a row's run: its place, and whether something comes to it."""
    reverse, reset = course.get("reverse", False), course.get("reset")
    every = course.get("truncate_every", 0)
    steps = []
    for i in range(length):
        t = length - 1 - i if reverse else i
        starts = reset is not None and not (reverse and i == 0)
        starts = bool(starts and reset[n, t + reverse])
        steps.append((t, starts, every > 0 and i > 0 and i % every == 0))
    return steps


def scanned(scan, arrays):
    """The states ``(states, N, L, H)``."""
    rows, steps, width = arrays["s", 0].shape
    V = arrays["V",].reshape(scan.slabs, width, width)
    y = np.zeros((scan.states, rows, steps, width))

    def factor(name, n, t):
        return arrays[name][n, t] if name in arrays else 1

    def terms(n, t, u):
        """What comes through the passage whose factors are at place t."""
        total = np.zeros((scan.states, width))
        if scan.transposed:
            for to, origin in scan.A:
                total[origin] += factor(("A", to, origin), n, t) * u[to]
            for to, slab in scan.B:
                by_V = (factor(("B", to, slab), n, t) * u[to]) @ V[slab]
                total[0] += factor(("gamma",), n, t) * by_V
            return total
        for to, origin in scan.A:
            total[to] += factor(("A", to, origin), n, t) * u[origin]
        for to, slab in scan.B:
            by_V = V[slab] @ (factor(("gamma",), n, t) * u[0])
            total[to] += factor(("B", to, slab), n, t) * by_V
        return total

    def given(name, index):
        zero = np.zeros(width)
        return np.stack(
            [
                arrays[name, k][index] if (name, k) in arrays else zero
                for k in range(scan.states)
            ]
        )

    lengths = scan.course.get("lengths", [steps] * rows)
    for n in range(rows):
        run = runs(scan.course, n, lengths[n])
        order = reversed(range(len(run))) if scan.transposed else range(len(run))
        for i in order:
            t = run[i][0]
            for k in range(scan.states):
                y[k, n, t] = arrays["s", k][n, t] if ("s", k) in arrays else 0
            if scan.transposed and i + 1 < len(run):
                later, starts, cut = run[i + 1]
                if not (starts or cut):
                    y[:, n, t] += terms(n, later, y[:, n, later])
            elif not scan.transposed:
                _, starts, cut = run[i]
                if starts:
                    y[:, n, t] += terms(n, t, given("hidden0", slice(None)))
                elif i == 0:
                    y[:, n, t] += terms(n, t, given("hidden", n))
                elif not cut:
                    y[:, n, t] += terms(n, t, y[:, n, run[i - 1][0]])
    return y


def native(scan, arrays):
    """The same by the primitive, of MLX arrays."""
    get, course = arrays.get, scan.course
    by_state = {
        name: [get((name, k)) for k in range(scan.states)]
        for name in ("s", "hidden", "hidden0")
    }
    return _native.linear_scan(
        V=arrays["V",],
        slabs=scan.slabs,
        A=[(*path, get(("A", *path))) for path in scan.A],
        B=[(*path, get(("B", *path))) for path in scan.B],
        gamma=get(("gamma",)),
        lengths=mx.array(course["lengths"], mx.int32) if "lengths" in course else None,
        reset=mx.array(course["reset"]) if "reset" in course else None,
        reverse=course.get("reverse", False),
        truncate_every=course.get("truncate_every", 0),
        transposed=scan.transposed,
        stream=mx.cpu,
        **by_state,
    )


# Paths of A and of B as (to, from): what the derivatives of cells are made of.
FORMS = {
    "elman": (1, 1, [(0, 0)], [(0, 0)]),
    "gru": (1, 3, [(0, 0)], [(0, 0), (0, 1), (0, 2)]),
    "lstm": (
        2,
        4,
        [(0, 0), (1, 1), (0, 1)],
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)],
    ),
    "wide": (3, 2, [(0, 2), (2, 1), (1, 0)], [(2, 0), (1, 1), (1, 0)]),
    "one slab": (2, 1, [(1, 0), (0, 1)], [(0, 0), (1, 0)]),
}
RESET = np.array([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0, 0], [0] * 7], bool)
COURSES = {
    "plain": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": [7, 0, 4]},
    "reset": {"reset": RESET},
    "truncated": {"truncate_every": 2},
    "all": {
        "reverse": True,
        "lengths": [6, 7, 1],
        "reset": RESET,
        "truncate_every": 3,
    },
}
every_form = pytest.mark.parametrize("form", FORMS)
every_course = pytest.mark.parametrize("course", COURSES)
both_ways = pytest.mark.parametrize("transposed", [False, True], ids=["scan", "back"])


def drawn(rng, form, course=None, transposed=False, *, steps=L, leave=()):
    """A scan with factors of which some are zero; without some operands."""
    states, slabs, A, B = FORMS[form]
    shapes = {("V",): (slabs * H, H), ("gamma",): (N, steps, H)}
    shapes |= {("s", k): (N, steps, H) for k in range(states)}
    shapes |= {("A", *path): (N, steps, H) for path in A}
    shapes |= {("B", *path): (N, steps, H) for path in B}
    if not transposed:
        shapes |= {("hidden", k): (N, H) for k in range(states)}
        if "reset" in (course or {}):
            shapes |= {("hidden0", k): (H,) for k in range(states)}
    arrays = {}
    for name, shape in shapes.items():
        if name in leave:
            continue
        arrays[name] = 0.7 * rng.standard_normal(shape)
        if name[0] in ("A", "B", "gamma"):
            arrays[name][rng.random(shape) < 0.2] = 0
    return Scan(arrays, states, slabs, A, B, course or {}, transposed)


def arrays_of(arrays):
    return {name: double(a) for name, a in arrays.items()}


def near(ours, right, tolerance):
    ours = np.asarray(ours)
    assert np.abs(ours - right).max() <= tolerance * (1 + largest(right))


@every_form
@every_course
@both_ways
def test_values(rng, form, course, transposed):
    scan = drawn(rng, form, COURSES[course], transposed)
    for y, right in zip(
        native(scan, arrays_of(scan.arrays)), scanned(scan, scan.arrays), strict=True
    ):
        near(y, right, SCAN)


@every_form
@both_ways
def test_absent_operands(rng, form, transposed):
    states = FORMS[form][0]
    leave = [("gamma",), ("B", *FORMS[form][3][0]), ("A", *FORMS[form][2][0])]
    leave += [("s", k) for k in range(1, states)] + [("hidden", 0), ("hidden0", 0)]
    scan = drawn(rng, form, COURSES["reset"], transposed, leave=leave)
    for y, right in zip(
        native(scan, arrays_of(scan.arrays)), scanned(scan, scan.arrays), strict=True
    ):
        near(y, right, SCAN)


def names_and(values):
    return list(values), list(values.values())


def loss(scan, names, c, values):
    """The sum of results times c, by the reference and by the primitive."""
    if isinstance(values[0], np.ndarray):
        return (scanned(scan, dict(zip(names, values, strict=True))) * c).sum()
    results = native(scan, dict(zip(names, values, strict=True)))
    return sum((y * double(part)).sum() for y, part in zip(results, c, strict=True))


def cotangent(rng, scan):
    return rng.standard_normal((scan.states, *scan.arrays["s", 0].shape))


def moved(values, direction, by):
    return [v + by * d for v, d in zip(values, direction, strict=True)]


def dot(a, b):
    return sum(float((x * double(y)).sum()) for x, y in zip(a, b, strict=True))


@every_form
@every_course
@both_ways
def test_first_derivatives(rng, form, course, transposed):
    scan = drawn(rng, form, COURSES[course], transposed)
    names, values = names_and(scan.arrays)
    f = partial(loss, scan, names, cotangent(rng, scan))
    given = list(arrays_of(scan.arrays).values())
    grads = mx.grad(lambda a: f(a))(given)
    for k, name in enumerate(names):
        # Factors that are zero are absent: they stay where they are.
        direction = [np.zeros_like(v) for v in values]
        direction[k] = rng.standard_normal(values[k].shape)
        e = 1e-3
        ahead, behind = (f(moved(values, direction, by)) for by in (e, -e))
        further, before = (f(moved(values, direction, 2 * by)) for by in (e, -e))
        slope = (8 * (ahead - behind) - (further - before)) / (12 * e)
        near(dot(grads, direction), slope, DIFFERENCE)
        along = [double(d) for d in direction]
        (tangent,) = mx.jvp(lambda *a: f(list(a)), given, along)[1]
        near(tangent.item(), slope, DIFFERENCE)
        assert grads[k].shape == given[k].shape, name


@every_form
@every_course
@both_ways
def test_second_derivatives(rng, form, course, transposed):
    scan = drawn(rng, form, COURSES[course], transposed)
    names, values = names_and(scan.arrays)
    f = partial(loss, scan, names, cotangent(rng, scan))
    given = list(arrays_of(scan.arrays).values())
    v, w = ([rng.standard_normal(a.shape) for a in values] for _ in range(2))
    e = 1e-3

    def mixed(e):
        corners = [
            a * b * f(moved(moved(values, v, a * e), w, b * e))
            for a in (1, -1)
            for b in (1, -1)
        ]
        return sum(corners) / (4 * e * e)

    right = (4 * mixed(e) - mixed(2 * e)) / 3
    along_v, along_w = ([double(d) for d in along] for along in (v, w))

    def slope(a):
        return sum((g * d).sum() for g, d in zip(mx.grad(f)(a), along_v, strict=True))

    near(dot(mx.grad(slope)(given), w), right, SECOND_DIFFERENCE)
    forward = mx.jvp(lambda *a: slope(list(a)), given, along_w)[1][0]
    near(forward.item(), right, SECOND_DIFFERENCE)

    def tangent(*a):
        return mx.jvp(lambda *b: f(list(b)), list(a), along_v)[1][0]

    near(dot(mx.grad(lambda a: tangent(*a))(given), w), right, SECOND_DIFFERENCE)
    near(mx.jvp(tangent, given, along_w)[1][0].item(), right, SECOND_DIFFERENCE)


@every_form
@both_ways
@pytest.mark.parametrize("weights", [False, True], ids=["rows", "weights"])
def test_mapped(rng, form, transposed, weights):
    course = {"reset": RESET}
    scans = [drawn(rng, form, course, transposed) for _ in range(2)]
    names = list(scans[0].arrays)
    shared = set() if weights else {n for n in names if n[0] in ("V", "hidden0")}
    for scan in scans:
        scan.arrays |= {n: scans[0].arrays[n] for n in shared}
    stacked = [
        scans[0].arrays[n]
        if n in shared
        else np.stack([scan.arrays[n] for scan in scans])
        for n in names
    ]
    found = mx.vmap(
        lambda *a: native(scans[0], dict(zip(names, a, strict=True))),
        in_axes=tuple(None if n in shared else 0 for n in names),
    )(*map(double, stacked))
    for i, scan in enumerate(scans):
        for y, right in zip(found, scanned(scan, scan.arrays), strict=True):
            near(y[i], right, SCAN)


@every_form
@both_ways
def test_compiled_for_any_shape(rng, form, transposed):
    scan = drawn(rng, form, {}, transposed)
    names = list(scan.arrays)

    def slope(*a):
        def f(a):
            results = native(scan, dict(zip(names, a, strict=True)))
            return sum(mx.square(y).sum() for y in results)

        def squared(a):
            return sum(mx.square(g).sum() for g in mx.grad(f)(a))

        return mx.grad(squared)(list(a))

    compiled = mx.compile(slope, shapeless=True)
    for steps in (L, 2, 11):
        other = drawn(rng, form, {}, transposed, steps=steps)
        given = list(arrays_of(other.arrays).values())
        for ours, right in zip(compiled(*given), slope(*given), strict=True):
            near(ours, np.asarray(right), SCAN)


@every_form
@both_ways
def test_zero_factors_hide_anything(rng, form, transposed):
    scan = drawn(rng, form, COURSES["all"], transposed)
    zeros = {n: 0 * a for n, a in scan.arrays.items() if n[0] in ("A", "B", "gamma")}
    arrays = scan.arrays | zeros
    for k in range(scan.states):
        arrays["s", k] = arrays["s", k].copy()
        # A step of the first row, whose neighbours must not see it.
        arrays["s", k][0, 3] = np.nan
    others = np.arange(L) != 3
    for y, right in zip(
        native(scan, arrays_of(arrays)),
        scanned(replace(scan, A=[], B=[]), arrays),
        strict=True,
    ):
        near(np.asarray(y)[:, others], right[:, others], SCAN)
