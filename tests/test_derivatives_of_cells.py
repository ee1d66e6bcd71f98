"""Derivatives of every cell, of every order, in both modes, with every option.

In float64, against the reference's: its gradients are by hand, and every further
derivative of those is by complex steps and, at last, by differences.
"""

import zlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

import reference
from mlx_recurrent import _native
from tolerances import DIFFERENCE, SECOND_DIFFERENCE, largest, wide

# What `_native` calls the weights of the reference.
NATIVE = {"Wx": "Wxh", "Wh": "Whh", "b": "bias"}
RESET = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0] * 5], bool)
MASK = np.array([[1, 0, 1, 1, 1], [0, 1, 0, 0, 1], [1] * 5], bool)
STATES = {"hidden", "cell"}
LEARNED = {"hidden0", "cell0"}
# What is left out of the operands, and the options.
OPTIONS = {
    "plain": (STATES | LEARNED | {"b", "bias", "bhn"}, {}),
    "states": (LEARNED, {}),
    "hidden alone": (LEARNED | {"cell"}, {}),
    "cell alone": (LEARNED | {"hidden"}, {"reverse": True}),
    "reverse": (LEARNED, {"reverse": True}),
    "lengths": (LEARNED, {"lengths": [5, 0, 3]}),
    "reset": (LEARNED, {"reset": RESET}),
    "learned": (STATES, {"reset": RESET, "lengths": [5, 4, 2]}),
    "one learned": (STATES | {"hidden0"}, {"reset": RESET, "reverse": True}),
    "skipped": (LEARNED, {"mask": MASK}),
    "skipped episodes": (STATES, {"mask": MASK, "reset": RESET, "reverse": True}),
    "truncated": (LEARNED, {"truncate_every": 2}),
    "dropout": (LEARNED, {"input_dropout": 0.4, "recurrent_dropout": 0.4}),
    "zoneout": (LEARNED, {"zoneout": 0.4, "zoneout_cell": 0.3}),
    "zoneout of cells": (STATES, {"zoneout_cell": 0.5, "reset": RESET}),
    "all": (
        set(),
        {
            "reverse": True,
            "lengths": [4, 5, 1],
            "reset": RESET,
            "mask": MASK,
            "truncate_every": 3,
            "input_dropout": 0.3,
            "recurrent_dropout": 0.3,
            "zoneout": 0.3,
            "zoneout_cell": 0.3,
        },
    ),
}
# What a call returns, by `return_state`.
RETURNS = {"states": False, "both": True, "last": "only"}
every_cell = pytest.mark.parametrize("name", ["sigmoid", "gru", "lstm"])
every_option = pytest.mark.parametrize("options", OPTIONS)
every_return = pytest.mark.parametrize("returns", RETURNS)


class Problem:
    """A cell, its operands and options; derivatives of what a call returns."""

    def __init__(self, name, options="plain", returns="states", N=3, L=5, D=2, H=3):
        left_out, self.options = OPTIONS[options]
        self.name, self.cell = name, reference.CELLS[name]
        self.return_state = RETURNS[returns]
        seed = zlib.crc32(f"{name} {options} {returns} {L}".encode())
        self.rng = np.random.default_rng(seed)
        shapes = {"x": (N, L, D), **self.cell.shapes(D, H)}
        shapes |= dict.fromkeys(self.cell.states, (N, H))
        shapes |= dict.fromkeys(self.cell.starts, (H,))
        self.names = [n for n in shapes if n not in left_out]
        self.lead, self.L, self.H = (N,), L, H
        self.values = [self.draw(shapes[n]) for n in self.names]
        # Steps that do not run have no part in anything.
        ends = np.array(self.options.get("lengths", [L] * N))[:, None]
        runs = self.options.get("mask", True) & (np.arange(L) < ends)
        self.values[0] = np.where(runs[..., None], self.values[0], np.nan)
        self.key = np.array([seed, 7], np.uint32)
        self.terms = self.terms_of(N, L, D, H)
        borders = reference.border_states(
            self.cell, self.primals(self.values), self.terms
        )
        self.frozen = self.terms
        if self.terms.truncate_every:
            self.frozen = replace(self.terms, frozen=borders)

    def draw(self, shape):
        return 0.8 * self.rng.standard_normal(shape)

    def terms_of(self, N, L, D, H):
        course = ("lengths", "reset", "mask", "reverse", "truncate_every")
        drawn = {}

        def hits(what, option, *shape):
            p = self.options.get(option, 0)
            return reference.hits(self.key, what, p, N, *shape) if p else None

        zoneouts = [
            hits(reference.ZONEOUT, "zoneout", L, H),
            hits(reference.ZONEOUT_CELL, "zoneout_cell", L, H),
        ]
        drawn["kept"] = tuple(zoneouts[: len(self.cell.states)])
        for m, what, option, size in (
            ("m_x", reference.INPUT_DROPOUT, "input_dropout", D),
            ("m_h", reference.RECURRENT_DROPOUT, "recurrent_dropout", H),
        ):
            hit = hits(what, option, 1, size)
            if hit is not None:
                factors = reference.factors(hit, self.options[option])
                drawn[m] = np.reshape(factors, (N, size))
        drawn |= {k: v for k, v in self.options.items() if k in course}
        return reference.Terms(**drawn)

    def primals(self, values):
        """As the reference has them: None where one is left out."""
        given = dict(zip(self.names, values, strict=True))
        return [given.get(n) for n in self.cell.arguments]

    def only_given(self, values):
        pairs = zip(self.cell.arguments, values, strict=True)
        return [v for n, v in pairs if n in self.names]

    def run(self, *values):
        """The primitive's results, of MLX arrays."""
        optional = ("bias", "bhn", "hidden", "cell", "hidden0", "cell0", "leak")
        given = dict.fromkeys(optional) | {
            NATIVE.get(n, n): v for n, v in zip(self.names, values, strict=True)
        }
        for state, start in zip(self.cell.states, self.cell.starts, strict=True):
            # The primitive takes learned states where episodes start, not at first.
            if given.get(state) is None and given[start] is not None:
                shape = (given["x"].shape[0], given[start].shape[0])
                given[state] = mx.broadcast_to(given[start], shape)
        options = {"reverse": False, "flips": -1, "truncate_every": 0}
        options |= {"checkpoint_every": 0, "lengths": None, "reset": None}
        options |= {"mask": None, "leak_cell": None}
        options |= dict.fromkeys(("zoneout", "zoneout_cell"), 0.0)
        options |= dict.fromkeys(("input_dropout", "recurrent_dropout"), 0.0)
        options |= self.options | {n: given[n] for n in optional[-3:]}
        if self.options.get("lengths") is not None:
            options["lengths"] = mx.array(self.options["lengths"], mx.int32)
        for name in ("reset", "mask"):
            if self.options.get(name) is not None:
                options[name] = mx.array(self.options[name])
        random = any("out" in n for n in self.options)
        options["key"] = mx.array(self.key) if random else None
        found = _native.recurrence(
            SimpleNamespace(states=(given["hidden"], given["cell"]), **given),
            self.name,
            SimpleNamespace(
                starts=(options["hidden0"], options["cell0"]),
                leaks=(options["leak"], options["leak_cell"]),
                zoneouts=(options["zoneout"], options["zoneout_cell"]),
                **options,
            ),
            self.return_state,
            mx.cpu,
        )
        return list(found) if isinstance(found, tuple) else [found]

    def results(self, outputs, last):
        """What a call returns of the reference's results, or of their tangents."""
        if self.return_state is False:
            return [*outputs]
        return [*last] if self.return_state == "only" else [outputs[0], *last]

    def cotangents(self):
        S = range(len(self.cell.states))
        return self.results(
            [self.draw((*self.lead, self.L, self.H)) for _ in S],
            [self.draw((*self.lead, self.H)) for _ in S],
        )

    def gradients(self, values, cotangents):
        """The reference's, of the operands that are given."""
        S = len(self.cell.states)
        d_outputs, d_last = [None] * S, [None] * S
        if self.return_state is False:
            d_outputs = cotangents
        elif self.return_state == "only":
            d_last = cotangents
        else:
            d_outputs, d_last = [cotangents[0], *d_outputs[1:]], cotangents[1:]
        found = reference.recurrence_grad(
            self.cell, self.primals(values), self.frozen, d_outputs, d_last
        )
        return self.only_given(found)

    def gradients_along(self, values, cotangents, direction):
        """Their derivative along a direction."""
        return reference.complex_step(
            lambda *v: tuple(self.gradients(v, cotangents)), values, direction
        )


def double(arrays):
    return [mx.array(a, mx.float64) for a in arrays]


def grad(f, values, cotangents):
    """The gradient of all results times cotangents, by all values."""
    return mx.vjp(f, double(values), double(cotangents))[1]


def near(ours, right, tolerance=DIFFERENCE):
    for a, b in zip(ours, right, strict=True):
        assert a.shape == b.shape
        error = np.abs(wide(a) - b)
        assert np.max(error, initial=0) <= tolerance * (1 + largest(b))


@every_cell
@every_option
@every_return
def test_tangents(name, options, returns):
    p = Problem(name, options, returns)
    along = [p.draw(v.shape) for v in p.values]
    found = mx.jvp(lambda *v: p.run(*v), double(p.values), double(along))[1]
    tangents = reference.recurrence_tangent(
        p.cell, p.primals(p.values), p.primals(along), p.terms
    )
    near(found, p.results(*tangents))


@every_cell
@every_option
@every_return
def test_second_derivatives(name, options, returns):
    p = Problem(name, options, returns)
    c = p.cotangents()
    along = [p.draw(v.shape) for v in p.values]

    def first(*values):
        return mx.vjp(lambda *v: p.run(*v), list(values), double(c))[1]

    near(first(*double(p.values)), p.gradients(p.values, c))
    right = p.gradients_along(p.values, c, along)
    near(mx.jvp(first, double(p.values), double(along))[1], right)
    # Back through the gradient, tried by the derivatives along single operands.
    w = [p.draw(v.shape) for v in p.values]
    back = grad(first, p.values, w)
    for k, d in enumerate(along):
        single = [d if i == k else np.zeros_like(v) for i, v in enumerate(p.values)]
        moved = p.gradients_along(p.values, c, single)
        expected = sum((m * v).sum() for m, v in zip(moved, w, strict=True))
        near([mx.sum(back[k] * mx.array(d, mx.float64))], [np.array(expected)])


@every_cell
@every_option
def test_third_derivatives(name, options):
    p = Problem(name, options, "both")
    c = p.cotangents()
    u, v = ([p.draw(a.shape) for a in p.values] for _ in range(2))

    def first(*values):
        return mx.vjp(lambda *v: p.run(*v), list(values), double(c))[1]

    def second(*values):
        return mx.jvp(first, list(values), double(u))[1]

    right = reference.finite_difference(
        lambda *a: p.gradients_along(a, c, u), p.values, v
    )
    near(mx.jvp(second, double(p.values), double(v))[1], right, SECOND_DIFFERENCE)
    slope = sum((a * b).sum() for a, b in zip(right, v, strict=True))
    back = zip(grad(second, p.values, v), double(v), strict=True)
    along = sum((a * b).sum() for a, b in back)
    near([along], [np.array(slope)], SECOND_DIFFERENCE)


@every_cell
@pytest.mark.parametrize("over", ["rows", "weights"])
def test_mapped_second_derivatives(name, over):
    """For each of several examples, or of several sets of weights."""
    problems = [Problem(name, "learned") for _ in range(2)]
    p, c = problems[0], problems[0].cotangents()
    of_rows = {"x", *p.cell.states}
    mapped = [over == "weights" or n in of_rows for n in p.names]
    for i, moves in enumerate(mapped):
        problems[1].values[i] = p.draw(p.values[i].shape) if moves else p.values[i]
    along = [p.draw(v.shape) for v in p.values]

    def second(*values):
        def first(*a):
            return mx.vjp(lambda *b: p.run(*b), list(a), double(c))[1]

        return mx.jvp(first, list(values), double(along))[1]

    values = [
        np.stack([q.values[i] for q in problems]) if moves else p.values[i]
        for i, moves in enumerate(mapped)
    ]
    axes = tuple(0 if moves else None for moves in mapped)
    found = mx.vmap(second, in_axes=axes)(*double(values))
    for k, q in enumerate(problems):
        near([a[k] for a in found], p.gradients_along(q.values, c, along))


def squared_gradient(p, *values):
    """By the reference, of the sum of squared states."""
    outputs, _ = reference.recurrence(p.cell, p.primals(values), p.terms)
    found = p.gradients(values, [2 * y for y in outputs])
    return sum((g * g).sum() for g in found)


@every_cell
def test_compiled_for_any_length(name):
    p = Problem(name, "states")

    def squares(a):
        return sum(mx.square(y).sum() for y in p.run(*a))

    def squared(a):
        return sum(mx.square(g).sum() for g in mx.grad(squares)(a))

    compiled = mx.compile(lambda *a: mx.grad(squared)(list(a)), shapeless=True)
    for L in (5, 2, 9):
        q = Problem(name, "states", L=L)
        right = reference.gradient(partial(squared_gradient, q), q.values, 1.0)
        near(compiled(*double(q.values)), right)
