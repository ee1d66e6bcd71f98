"""What all cells share: the steps of each row, the optional terms, back-propagation.

At step i of its run every row is somewhere else in time, and some have none:

    z   = Wx (m_x x) + b        m_x: input dropout
    p   = m_h h                 m_h: recurrent dropout, in the product only
    y   = the cell's states after the step, of z, p and the states q before
    q' <- (1 - k) q + k y       k: leak, or 0 where zoneout keeps the unit

where q is what an episode starts from, if it starts there. A term whose factor is zero
is absent.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .arrays import sum_to, wide
from .differences import complex_step


@dataclass(frozen=True)
class Terms:
    """The optional terms, but for the arrays that have a derivative.

    Args:
        lengths (array, optional): The steps of each row, of the leading axes' shape.
        reset (array, optional): Where episodes start, leading axes + (L,).
        mask (array, optional): Which steps are not skipped, leading axes + (L,).
        reverse (bool): Whether time runs backwards.
        shares (tuple of float, optional): What zoneout's expectation leaves of the rate
            of each state.
        kept (tuple, optional): Where zoneout keeps a unit of each state: leading axes
            + (L, H), or None.
        m_x (array, optional): The factors of the inputs, leading axes + (D,).
        m_h (array, optional): The factors of the states, leading axes + (H,).
        truncate_every (int): The steps of a block. 0 is one block.
        frozen (list, optional): The states at the borders of blocks, by step: taken
            instead of those that come about.
    """

    lengths: Any = None
    reset: Any = None
    mask: Any = None
    reverse: bool = False
    shares: Any = None
    kept: Any = None
    m_x: Any = None
    m_h: Any = None
    truncate_every: int = 0
    frozen: Any = None


# Whence a row has a state: from nowhere, or given, learned, or of the step before.
NOWHERE, GIVEN, LEARNED, BEFORE = range(4)


class _Step(NamedTuple):
    """One step of all rows: where, from what states and whence, and what it made.

    Lists have an entry for each state.
    """

    at: Any  # the place of each row in time
    runs: Any  # rows that have the step
    updates: Any  # those of them that do not skip it
    cut: Any  # rows where nothing passes back from here
    q: list
    sources: list
    p: Any
    saved: Any
    y: list
    k: list
    after: list


def _masked(values, factors):
    """The product, absent where a factor is zero."""
    if factors is None:
        return values
    return np.where(factors == 0, 0, np.where(factors == 0, 0, values) * factors)


def _rows(which):
    return which[:, None]


class _Batch:
    """The rows of a call side by side, as (N, ...)."""

    def __init__(self, cell, primals, terms):
        self.cell, self.terms = cell, terms or Terms()
        x, *values = wide(*primals)
        given = dict(zip(cell.arguments[1:], values, strict=True))
        self.weights = {name: given[name] for name in cell.weights}
        self.Wx, self.Wh, self.bias = (given[name] for name in cell.weights[:3])
        self.states = [given[name] for name in cell.states]
        self.starts = [given[name] for name in cell.starts]
        self.leak = given.get("leak")
        self.dtype = x.dtype
        leads = [a.shape[:-1] for a in self.states if a is not None]
        self.lead = np.broadcast_shapes(x.shape[:-2], *leads)
        (L, D), H = x.shape[-2:], self.Wx.shape[0] // cell.gates
        self.N, self.L, self.D, self.H = math.prod(self.lead), L, D, H
        self.x_shape = x.shape
        lengths = self.terms.lengths
        self.lengths = np.full(self.N, L) if lengths is None else self.rows(lengths)
        self.lengths = self.lengths.astype(int)
        self.updated = np.arange(L) < _rows(self.lengths)
        if self.terms.mask is not None:
            self.updated = self.updated & (self.rows(self.terms.mask, L) != 0)
        self.resets = self.rows(self.terms.reset, L)
        self.m_x, self.m_h = self.rows(self.terms.m_x, D), self.rows(self.terms.m_h, H)
        S = len(cell.states)
        self.shares = self.terms.shares or (1.0,) * S
        self.kept = [self.rows(k, L, H) for k in self.terms.kept or (None,) * S]
        x = np.broadcast_to(x, (*self.lead, L, D)).reshape(self.N, L, D)
        # Nothing of a step that does not update reaches a result, NaN included.
        self.seen = self.dropped(np.where(self.updated[..., None], x, 0))
        self.z = self.seen @ self.Wx.T
        if self.bias is not None:
            self.z = self.z + self.bias

    def rows(self, a, *shape):
        return None if a is None else np.reshape(a, (self.N, *shape))

    def dropped(self, a):
        """An array of the inputs' shape behind the input dropout."""
        return _masked(a, None if self.m_x is None else self.m_x[:, None])

    def zeros(self, *shape):
        return np.zeros(shape, self.dtype)

    def start(self, s):
        """State s before the first step, and whence each row has it."""
        if self.states[s] is not None:
            state = np.broadcast_to(self.states[s], (*self.lead, self.H))
            return state.reshape(self.N, self.H), np.full(self.N, GIVEN)
        return self.anew(s)

    def anew(self, s):
        """State s where an episode starts, and whence it is."""
        shape = (self.N, self.H)
        if self.starts[s] is None:
            return self.zeros(*shape), np.full(self.N, NOWHERE)
        return np.broadcast_to(self.starts[s], shape), np.full(self.N, LEARNED)

    def of(self, table, at):
        """The entries of a table (N, L, ...) where each row is."""
        return table[np.arange(self.N), at]

    def episodes(self, i, at, runs):
        """The rows where an episode starts with step i of their run."""
        if self.resets is None:
            return np.zeros(self.N, bool)
        if not self.terms.reverse:
            return runs & (self.of(self.resets, at) != 0)
        if i == 0:
            return np.zeros(self.N, bool)
        later = np.minimum(at + 1, self.L - 1)
        return runs & (self.of(self.resets, later) != 0)

    def rate(self, s, at):
        """What a step leaves of the new state."""
        leak = 1 if s or self.leak is None else self.leak
        k = np.asarray(self.shares[s] * leak, self.dtype)
        k = np.broadcast_to(k, (self.N, self.H))
        return k if self.kept[s] is None else np.where(self.of(self.kept[s], at), 0, k)

    def run(self):
        """The steps, in the order in which they run."""
        steps, every = [], self.terms.truncate_every
        S = range(len(self.cell.states))
        q, sources = map(list, zip(*map(self.start, S), strict=True))
        for i in range(max(self.lengths, default=0)):
            runs = i < self.lengths
            at = self.lengths - 1 - i if self.terms.reverse else np.full(self.N, i)
            at = np.where(runs, at, 0)
            starts = self.episodes(i, at, runs)
            for s in S:
                fresh, whence = self.anew(s)
                q[s] = np.where(_rows(starts), fresh, q[s])
                sources[s] = np.where(starts, whence, sources[s])
            border = every > 0 and i > 0 and i % every == 0
            cut = runs & ~starts & border
            if self.terms.frozen is not None:
                q = [
                    np.where(_rows(cut), f, v)
                    for f, v in zip(self.terms.frozen[i], q, strict=True)
                ]
            updates = runs & self.of(self.updated, at)
            known = _rows(updates & (sources[0] != NOWHERE))
            p = np.where(known, _masked(q[0], self.m_h), 0)
            before = [np.where(_rows(updates), v, 0) for v in q]
            z = np.where(_rows(updates), self.of(self.z, at), 0)
            y, saved = self.cell.step(self.weights, z, p, before)
            k = [self.rate(s, at) for s in S]
            after = [
                np.where(_rows(updates), self.blend(k[s], q[s], y[s]), q[s]) for s in S
            ]
            steps.append(
                _Step(at, runs, updates, cut, q, sources, p, saved, y, k, after)
            )
            q, sources = (
                list(after),
                [np.where(runs, BEFORE, whence) for whence in sources],
            )
        return steps

    def blend(self, k, q, y):
        return np.where(k == 1, y, np.where(k == 0, q, (1 - k) * q + k * y))


def recurrence(cell, primals, terms=None):
    """The states after each step (..., L, H) and after each row's last (..., H).

    Both are lists of the cell's states. ``primals`` are those of ``cell.arguments``:
    all but the first three may be None.
    """
    batch = _Batch(cell, primals, terms)
    N, L, H = batch.N, batch.L, batch.H
    S = range(len(cell.states))
    outputs = [batch.zeros(N, L, H) for _ in S]
    last = [np.array(batch.start(s)[0]) for s in S]
    for step in batch.run():
        rows = np.flatnonzero(step.runs)
        for s in S:
            outputs[s][rows, step.at[rows]] = last[s][rows] = step.after[s][rows]
    return (
        [a.reshape(*batch.lead, L, H) for a in outputs],
        [a.reshape(*batch.lead, H) for a in last],
    )


def border_states(cell, primals, terms):
    """The states at the borders of blocks, for ``Terms.frozen``."""
    return [step.q for step in _Batch(cell, primals, terms).run()]


class _Adjoint:
    """Back-propagation through a batch: the cotangents of everything."""

    def __init__(self, batch, d_outputs, d_last):
        N, L, H, S = batch.N, batch.L, batch.H, range(len(batch.cell.states))
        self.batch, self.S = batch, S

        def given(cotangents, *shape):
            return [
                batch.zeros(*shape) if d is None else np.reshape(d, shape)
                for d in cotangents or [None for _ in S]
            ]

        self.d_outputs = given(d_outputs, N, L, H)
        self.d = given(d_last, N, H)  # of the states after a step
        self.dz = batch.zeros(N, L, batch.cell.gates * H)
        self.states = [batch.zeros(N, H) for _ in S]
        self.starts = [batch.zeros(H) for _ in S]
        self.weights = {}
        self.leak = batch.zeros(H)

    def run(self):
        for step in reversed(self.batch.run()):
            self.back(step)
        for s in self.S:  # what no step took is of the first state
            self.pass_on(s, self.d[s], self.batch.start(s)[1])
        return self

    def back(self, step):
        """Back over a step."""
        batch, rows = self.batch, _rows(step.runs)
        d, dy, dq = [], [], []
        for s in self.S:
            total = self.d[s] + np.where(rows, batch.of(self.d_outputs[s], step.at), 0)
            k = np.where(_rows(step.updates), step.k[s], 0)
            d.append(total)
            dy.append(np.where(k == 0, 0, total * k))
            dq.append(np.where(k == 1, 0, total * (1 - k)))
        if batch.leak is not None:
            dk = d[0] * (step.y[0] - step.q[0]) * batch.shares[0]
            if batch.kept[0] is not None:
                dk = np.where(batch.of(batch.kept[0], step.at), 0, dk)
            self.leak += np.where(_rows(step.updates), dk, 0).sum(0)
        before = [np.where(_rows(step.updates), q, 0) for q in step.q]
        dz, dp, dbefore, dweights = batch.cell.pull(
            batch.weights, step.saved, step.p, before, dy
        )
        ran = np.flatnonzero(step.updates)
        self.dz[ran, step.at[ran]] = dz[ran]
        for name, value in dweights.items():
            if value is not None:
                self.weights[name] = self.weights.get(name, 0) + value
        dbefore = [dbefore[0] + _masked(dp, batch.m_h), *dbefore[1:]]
        for s in self.S:
            dq[s] = dq[s] + np.where(_rows(step.updates), dbefore[s], 0)
            passed = np.where(_rows(step.cut) | ~rows, 0, dq[s])
            stays = np.where(rows, 0, d[s])
            whence = np.where(step.runs, step.sources[s], BEFORE)
            before_it = np.where(_rows(whence == BEFORE), passed, 0)
            self.pass_on(s, passed, whence)
            self.d[s] = stays + before_it

    def pass_on(self, s, d, whence):
        """What a row's first state, or that of an episode, is asked."""
        self.states[s] = self.states[s] + np.where(_rows(whence == GIVEN), d, 0)
        self.starts[s] = self.starts[s] + np.where(_rows(whence == LEARNED), d, 0).sum(
            0
        )


def recurrence_grad(cell, primals, terms=None, d_outputs=None, d_last=None):
    """Back-propagation by hand: gradients by ``cell.arguments`` of

    sum(d_outputs * outputs) + sum(d_last * last), both by state; None is zero.
    """
    batch = _Batch(cell, primals, terms)
    N, L, D, H = batch.N, batch.L, batch.D, batch.H
    found = _Adjoint(batch, d_outputs, d_last).run()
    lead, input_side, bias = batch.lead, cell.weights[0], cell.weights[2]
    dx = batch.dropped(np.where(batch.updated[..., None], found.dz @ batch.Wx, 0))
    gradients = {
        "x": sum_to(dx.reshape(*lead, L, D), batch.x_shape),
        **{n: np.zeros_like(w) for n, w in batch.weights.items() if w is not None},
    }
    dz = found.dz.reshape(N * L, batch.cell.gates * H)
    gradients |= {input_side: dz.T @ batch.seen.reshape(N * L, D), **found.weights}
    if batch.bias is not None:
        dz = dz.reshape(*lead, L, batch.cell.gates * H)
        gradients[bias] = sum_to(dz, batch.bias.shape)
    for s, (name, start) in enumerate(zip(cell.states, cell.starts, strict=True)):
        if batch.states[s] is not None:
            d = found.states[s].reshape(*lead, H)
            gradients[name] = sum_to(d, batch.states[s].shape)
        if batch.starts[s] is not None:
            gradients[start] = found.starts[s]
    if batch.leak is not None:
        gradients["leak"] = sum_to(found.leak, batch.leak.shape)
    return [
        None if primal is None else gradients[name]
        for name, primal in zip(cell.arguments, primals, strict=True)
    ]


def recurrence_tangent(cell, primals, tangents, terms=None):
    """The tangents of the outputs and of the last states, lists by state.

    A tangent of None is zero. Nothing passes a border of blocks in this mode either.
    """
    terms = terms or Terms()
    if terms.truncate_every:
        terms = replace(terms, frozen=border_states(cell, primals, terms))
    batch = _Batch(cell, primals, terms)
    updated = batch.updated.reshape(*batch.lead, batch.L, 1)
    (x, *primals), (dx, *tangents) = primals, tangents
    x, dx = (None if a is None else np.where(updated, a, 0) for a in (x, dx))
    S = len(cell.states)

    def flat(*values):
        outputs, last = recurrence(cell, values, terms)
        return (*outputs, *last)

    found = complex_step(flat, [x, *primals], [dx, *tangents])
    return list(found[:S]), list(found[S:])
