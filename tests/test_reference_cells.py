"""The reference of each cell with random optional terms, against loops and differences.

A new cell is one more entry of ``STEPS``: its formulas for one unit.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import reference
from tolerances import reference_close

CELLS = reference.CELLS
# Of a difference: so small that next to none is over relu's corner.
STEP = 1e-6


def _sigmoid(a):
    return 1 / (1 + math.exp(-a))


_FUNCTIONS = {
    "tanh": math.tanh,
    "relu": lambda a: max(a, 0.0),
    "sigmoid": _sigmoid,
    "identity": lambda a: a,
}


def _dot(row, p):
    return sum(w * v for w, v in zip(row, p, strict=True))


def _elman(cell, w, j, z, p, q):
    return (_FUNCTIONS[cell.activation](z[j] + _dot(w["Whh"][j], p)),)


def _gru(cell, w, j, z, p, q):
    H, Wh = len(p), w["Wh"]

    def r(k):
        return _sigmoid(z[k] + _dot(Wh[k], p))

    keep = _sigmoid(z[H + j] + _dot(Wh[H + j], p))
    if cell.reset_after:
        u = _dot(Wh[2 * H + j], p) + (0 if w["bhn"] is None else w["bhn"][j])
        n = math.tanh(z[2 * H + j] + r(j) * u)
    else:
        u = _dot(Wh[2 * H + j], [r(k) * p[k] for k in range(H)])
        n = math.tanh(z[2 * H + j] + u)
    return ((1 - keep) * n + keep * q[0][j],)


def _lstm(cell, w, j, z, p, q):
    H = len(p)
    i, f, g, o = (z[k * H + j] + _dot(w["Wh"][k * H + j], p) for k in range(4))
    c = _sigmoid(f) * q[1][j] + _sigmoid(i) * math.tanh(g)
    return _sigmoid(o) * math.tanh(c), c


STEPS = {reference.Elman: _elman, reference.GRU: _gru, reference.LSTM: _lstm}


@dataclass
class Drawn:
    """A small problem: a cell, its primals and terms."""

    cell: Any
    primals: list
    terms: reference.Terms
    lead: tuple
    L: int
    H: int

    def states(self, *primals):
        """All results in one array, with constants at the borders of blocks."""
        outputs, last = reference.recurrence(self.cell, primals, self.frozen)
        return np.concatenate([a.ravel() for a in (*outputs, *last)])

    @property
    def frozen(self):
        states = reference.border_states(self.cell, self.primals, self.terms)
        return replace(self.terms, frozen=states)

    def cotangents(self, rng):
        """Random ones of the outputs and of the last states, and both in one array."""
        S = range(len(self.cell.states))
        outputs = [rng.standard_normal((*self.lead, self.L, self.H)) for _ in S]
        last = [rng.standard_normal((*self.lead, self.H)) for _ in S]
        return outputs, last, np.concatenate([a.ravel() for a in (*outputs, *last)])


def drawn(name, seed, **fixed):
    """A problem with a random choice of optional terms."""
    cell, rng = CELLS[name], np.random.default_rng([seed, *name.encode()])

    def chance(part=0.5):
        return rng.random() < part

    lead = [(), (1,), (3,), (1, 2)][rng.integers(4)]
    L, D, H = (int(rng.integers(1, n)) for n in (7, 3, 4))
    S = len(cell.states)
    shapes = {"x": (*lead, L, D), **cell.shapes(D, H)}
    shapes |= dict.fromkeys(cell.states, (*lead, H)) | dict.fromkeys(cell.starts, (H,))
    # Without a bias a step with nothing to see is at relu's corner.
    bias = chance() or name == "relu"
    left_out = {n for n in (*cell.states, *cell.starts) if chance()}
    left_out |= set() if bias else set(cell.weights[2:])
    primals = [
        None if n in left_out or n not in shapes else 0.8 * rng.standard_normal(s)
        for n in cell.arguments
        for s in [shapes.get(n, (H,))]
    ]
    if cell == reference.GRU(reset_after=False):
        primals[cell.arguments.index("bhn")] = None
    if cell.leaks and chance():
        primals[-1] = np.clip(rng.uniform(0.2, 1.2, H), 0, 1)
    kept = tuple(rng.random((*lead, L, H)) < 0.3 if chance() else None for _ in "hc")
    terms = {
        "lengths": rng.integers(0, L + 1, lead) if chance() else None,
        "reset": rng.random((*lead, L)) < 0.3 if chance() else None,
        "mask": rng.random((*lead, L)) < 0.7 if chance() else None,
        "reverse": chance(),
        "kept": kept[:S] if chance() else None,
        "shares": (0.7, 0.9)[:S] if chance() else None,
        "m_x": rng.choice([0, 1.5], (*lead, D)) if chance() else None,
        "m_h": rng.choice([0, 1.5], (*lead, H)) if chance() else None,
        "truncate_every": int(rng.integers(1, 4)) if chance() else 0,
    }
    return Drawn(cell, primals, reference.Terms(**terms | fixed), lead, L, H)


def row_by_row(problem):
    """Outputs and last states of each row alone, unit by unit, in Python's numbers."""
    cell, terms, L, H = problem.cell, problem.terms, problem.L, problem.H
    w = dict(zip(cell.arguments, problem.primals, strict=True))
    rows, S = math.prod(problem.lead), range(len(cell.states))

    def of(a, n, *shape):
        return None if a is None else np.reshape(a, (rows, *shape))[n]

    def one_row(n):
        x, length = of(w["x"], n, L, w["x"].shape[-1]), of(terms.lengths, n)
        reset, mask = of(terms.reset, n, L), of(terms.mask, n, L)
        anew = [w[name] for name in cell.starts]
        q = [
            start if w[name] is None else of(w[name], n, H)
            for name, start in zip(cell.states, anew, strict=True)
        ]
        q = [np.zeros(H) if v is None else v for v in q]
        outputs = np.zeros((len(S), L, H))
        places = list(range(L if length is None else int(length)))
        for i, t in enumerate(places[::-1] if terms.reverse else places):
            border = t + 1 if terms.reverse else t
            if reset is not None and (i or not terms.reverse) and reset[border]:
                q = [np.zeros(H) if v is None else v for v in anew]
            if mask is None or mask[t]:
                q = one_step(n, x[t], t, q)
            outputs[:, t] = q
        return outputs, q

    def one_step(n, x, t, q):
        m_x, m_h = of(terms.m_x, n, len(x)), of(terms.m_h, n, H)
        x = x if m_x is None else x * m_x
        p = q[0] if m_h is None else q[0] * m_h
        bias = w[cell.weights[2]]
        z = [
            _dot(row, x) + (0 if bias is None else bias[i])
            for i, row in enumerate(w[cell.weights[0]])
        ]
        y = [STEPS[type(cell)](cell, w, j, z, p, q) for j in range(H)]
        new = np.zeros((len(S), H))
        for s in S:
            for j in range(H):
                k = 1.0 if terms.shares is None else terms.shares[s]
                if w.get("leak") is not None:
                    k *= w["leak"][j]
                kept = None if terms.kept is None else of(terms.kept[s], n, L, H)
                if kept is not None and kept[t, j]:
                    k = 0
                new[s, j] = (1 - k) * q[s][j] + k * y[j][s]
        return list(new)

    found = [one_row(n) for n in range(rows)]
    outputs = np.stack([f[0] for f in found], 1).reshape(-1, *problem.lead, L, H)
    last = np.stack([f[1] for f in found], 1).reshape(-1, *problem.lead, H)
    return [*outputs, *last]


@pytest.fixture(params=CELLS)
def name(request):
    return request.param


@pytest.mark.parametrize("seed", range(8))
def test_forward_is_the_loop_over_rows_and_units(name, seed):
    problem = drawn(name, seed)
    outputs, last = reference.recurrence(problem.cell, problem.primals, problem.terms)
    for a, b in zip((*outputs, *last), row_by_row(problem), strict=True):
        reference_close(a, b)


@pytest.mark.parametrize("seed", range(12))
def test_gradients(rng, name, seed):
    """By complex steps; over a border of blocks nothing passes."""
    problem = drawn(name, seed)
    d_outputs, d_last, cotangent = problem.cotangents(rng)
    got = reference.recurrence_grad(
        problem.cell, problem.primals, problem.terms, d_outputs, d_last
    )
    expected = reference.gradient(problem.states, problem.primals, cotangent)
    for argument, a, b in zip(problem.cell.arguments, got, expected, strict=True):
        assert (a is None) == (b is None), argument
        if a is not None:
            reference_close(a, b, argument)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_differences(rng, name, seed):
    """Of order four in longdouble, along a direction for each argument."""
    problem = drawn(name, seed)
    d_outputs, d_last, cotangent = problem.cotangents(rng)
    got = reference.recurrence_grad(
        problem.cell, problem.primals, problem.terms, d_outputs, d_last
    )
    for i, gradient in enumerate(got):
        if gradient is None:
            continue
        along = [None] * len(got)
        along[i] = rng.standard_normal(gradient.shape)
        change = reference.finite_difference(
            problem.states, problem.primals, along, step=STEP
        )
        # Relative to the sizes of the terms, which may cancel.
        error = abs((gradient * along[i]).sum() - (change * cotangent).sum())
        size = np.abs(change * cotangent).sum() + np.abs(gradient * along[i]).sum()
        reference_close(np.asarray(size + error), np.asarray(size))


@pytest.mark.parametrize("seed", range(6))
def test_tangents(rng, name, seed):
    problem = drawn(name, seed)
    along = [
        None if p is None else rng.standard_normal(p.shape) for p in problem.primals
    ]
    outputs, last = reference.recurrence_tangent(
        problem.cell, problem.primals, along, problem.terms
    )
    got = np.concatenate([a.ravel() for a in (*outputs, *last)])
    expected = reference.finite_difference(
        problem.states, problem.primals, along, step=STEP
    )
    reference_close(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_second_derivatives(rng, name, seed):
    """The gradient is analytic too: its derivative is a complex step."""
    problem = drawn(name, seed)
    d_outputs, d_last, _ = problem.cotangents(rng)
    along = [
        None if p is None else rng.standard_normal(p.shape) for p in problem.primals
    ]
    terms = problem.frozen

    def gradients(*primals):
        found = reference.recurrence_grad(
            problem.cell, primals, terms, d_outputs, d_last
        )
        return tuple(found)

    got = reference.complex_step(gradients, problem.primals, along)
    expected = reference.finite_difference(gradients, problem.primals, along, step=STEP)
    # Relative to the gradients, where all of these are next to nothing.
    for a, b, first in zip(got, expected, gradients(*problem.primals), strict=True):
        if a is not None:
            reference_close(a + first, b + first)


@pytest.mark.parametrize("reverse", [False, True])
def test_skipped_steps_are_not_there(rng, name, reverse):
    problem = drawn(name, 1, reset=None, mask=None, lengths=None, reverse=reverse)
    cell, (x, *others), H = problem.cell, problem.primals, problem.H
    terms = replace(problem.terms, truncate_every=0, kept=None, m_x=None, m_h=None)
    x = rng.standard_normal((7, x.shape[-1]))
    others = [
        None if a is None else a.reshape(-1, H)[0] if n in cell.states else a
        for n, a in zip(cell.arguments[1:], others, strict=True)
    ]
    mask = np.array([1, 0, 0, 1, 1, 0, 1], bool)
    outputs, last = reference.recurrence(
        cell, [np.where(mask[:, None], x, np.nan), *others], replace(terms, mask=mask)
    )
    alone, last_alone = reference.recurrence(cell, [x[mask], *others], terms)
    for a, b in zip((*outputs, *last), (*alone, *last_alone), strict=True):
        reference_close(a[mask] if a.ndim == 2 else a, b)
    # A skipped step shows the state that it holds.
    shown = [3, 3, 6] if reverse else [0, 0, 4]
    reference_close(outputs[0][~mask], outputs[0][shown])


def test_longdouble_and_float64_stay(name):
    problem = drawn(name, 0)
    for dtype in (np.float64, np.longdouble):
        primals = [None if p is None else dtype(p) for p in problem.primals]
        outputs, last = reference.recurrence(problem.cell, primals, problem.terms)
        assert {a.dtype for a in (*outputs, *last)} == {np.dtype(dtype)}
