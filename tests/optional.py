"""Problems with optional terms: their inputs, keywords, truth and plain MLX twin.

The twin rounds as upstream's layer does, so its error is the measure of the product's
(``Problem.check``): nothing here asks the product what is right.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

import reference
from cells import CELLS, flat, kept_masks, of_states, wanted
from conftest import ACTIVATIONS, DTYPES, array, draw, neighbour
from tolerances import close, wide

# How many neighbours of the inputs the rule looks at, where it needs them.
NEIGHBOURS = 8
NO_TERMS = {
    "hidden0": False,
    "cell0": False,
    "leak": None,
    "lengths": False,
    "reset": False,
    "mask": False,
    "reverse": False,
    "zoneout": 0.0,
    "input_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "training": True,
    "truncate_every": None,
    "checkpoint_every": None,
    "stream": None,
}

# Options that are arrays, and have no derivative.
ARRAYS = ("lengths", "reset", "mask")


def draw_key():
    """The key that the next call takes from MLX's random state."""
    return np.array(mx.random.split(mx.random.state[0])[1])


class Problem:
    """One call.

    Args:
        choose (callable): Chooses one of a list, for a name.
        rng (Generator): Draws the values.
        of (str): Of which cell. Default: ``"rnn"``.
        fixed: What is not chosen, by name.
    """

    def __init__(self, choose, rng, of="rnn", **fixed):
        def pick(name, values):
            return fixed[name] if name in fixed else choose(name, values)

        self.rng, self.cell = rng, CELLS[of]
        self.activation = pick("activation", ACTIVATIONS) if of == "rnn" else "tanh"
        self.reference = self.cell.truth(self.activation)
        self.dtype = dtype = pick("dtype", DTYPES)
        self.lead = lead = pick("lead", [(), (1,), (3,), (2, 2), (0,)])
        self.L = L = pick("L", [0, 1, 2, 3, 5, 8])
        self.D = D = pick("D", [1, 3, 70])
        self.H = H = pick("H", [1, 4, 17, 70])
        self.return_state = True
        shapes = {"x": (*lead, L, D), **self.reference.shapes(D, H)}
        input_side, state_side, *biases = self.reference.weights
        for name in biases if not pick("bias", [True, False]) else ():
            del shapes[name]
        if of == "gru, reset before":
            shapes.pop("bhn", None)
        for name in self.reference.states:
            if pick(name, [True, False]):
                shapes[name] = (*lead, H)
        for name in self.reference.starts:
            if pick(name, [False, True]):
                shapes[name] = (H,)
        std = {input_side: D**-0.5, state_side: H**-0.5}
        self.arrays = {
            name: draw(rng, shape, dtype, 0.8 * std.get(name, 1))
            for name, shape in shapes.items()
        }
        self.keywords = {}
        leak = pick("leak", [None, 0.3, "array"]) if self.reference.leaks else None
        if leak == "array":
            values = np.clip(rng.uniform(0.2, 1.2, H), 0, 1)  # some of them 1
            self.arrays["leak"] = array(values, dtype)
        elif leak is not None:
            self.keywords["leak"] = leak
        if pick("lengths", [False, True]):
            self.keywords["lengths"] = rng.integers(0, L + 1, lead)
        if pick("reset", [False, True]):
            self.keywords["reset"] = rng.random((*lead, L)) < 0.3
        if pick("mask", [False, True]):
            self.keywords["mask"] = rng.random((*lead, L)) < 0.7
        for name, values in {
            "reverse": [False, True],
            "zoneout": [0.0, 0.3, (0.4, 0.2)][: len(self.cell.states) + 1],
            "input_dropout": [0.0, 0.4],
            "recurrent_dropout": [0.0, 0.25],
            "training": [True, False],
            "truncate_every": [None, 1, 2, 3, 100],
            "checkpoint_every": [None, 1, 3],
            "stream": [None, mx.cpu],
        }.items():
            if (value := pick(name, values)) is not values[0]:
                self.keywords[name] = value
        self.seed = int(rng.integers(2**32))
        mx.random.seed(self.seed)
        self.key = draw_key()

    @property
    def names(self):
        return list(self.arrays)

    @property
    def padding(self):
        """Where no row runs, (..., L)."""
        lengths = self.keywords.get("lengths", np.full(self.lead, self.L))
        return np.arange(self.L) >= np.asarray(lengths)[..., None]

    def in_padding(self, a, value=math.nan):
        """An array (..., L, features) with a number in the padding."""
        return mx.where(mx.array(self.padding)[..., None], value, a).astype(a.dtype)

    @property
    def unseen(self):
        """Where no input counts, (..., L): in the padding and at skipped steps."""
        mask = self.keywords.get("mask")
        return self.padding if mask is None else self.padding | ~np.asarray(mask, bool)

    def in_unseen(self, a, value=math.nan):
        """An array (..., L, features) with a number where no input counts."""
        return mx.where(mx.array(self.unseen)[..., None], value, a).astype(a.dtype)

    def __call__(self, path, *values, **others):
        """The product's results as a list, for arrays other than its own."""
        arrays = dict(zip(self.names, values, strict=True)) if values else self.arrays
        mx.random.seed(self.seed)
        keywords = {**self.keywords, "return_state": self.return_state, **others}
        return flat(path(self.activation, **arrays, **keywords))

    @property
    def shapes(self):
        """Of all results there are."""
        S = len(self.cell.states)
        return [(*self.lead, self.L, self.H)] * S + [(*self.lead, self.H)] * S

    def wanted(self, results):
        """Those of all results that the call returns."""
        return [results[i] for i in wanted(len(self.cell.states), self.return_state)]

    def get(self, name, default=None):
        return self.keywords.get(name, default)

    def masks(self):
        """The masks that the key gives: kept, m_x and m_h of the reference."""
        rows, lead = math.prod(self.lead), self.lead
        kept, m_x, m_h = [None for _ in self.cell.states], None, None
        if self.get("training", True):
            if p := self.get("zoneout"):
                kept = [
                    None if k is None else k.reshape(*lead, self.L, self.H)
                    for k in kept_masks(self.cell, self.key, p, rows, self.L, self.H)
                ]
            if p := self.get("recurrent_dropout"):
                hit = reference.hits(
                    self.key, reference.RECURRENT_DROPOUT, p, rows, 1, self.H
                )
                m_h = reference.factors(hit, p).reshape(*lead, self.H)
            if p := self.get("input_dropout"):
                hit = reference.hits(
                    self.key, reference.INPUT_DROPOUT, p, rows, 1, self.D
                )
                m_x = reference.factors(hit, p).reshape(*lead, self.D)
        return kept, m_x, m_h

    @property
    def shares(self):
        """What zoneout's expectation leaves of the rate of each state."""
        zoneout = 0.0 if self.get("training", True) else self.get("zoneout", 0.0)
        return tuple(1 - p for p in of_states(self.cell, zoneout))

    @property
    def terms(self):
        """The terms of the reference."""
        kept, m_x, m_h = self.masks()
        return reference.Terms(
            lengths=self.get("lengths"),
            reset=self.get("reset"),
            mask=self.get("mask"),
            reverse=self.get("reverse", False),
            shares=self.shares,
            kept=kept,
            m_x=m_x,
            m_h=m_h,
            truncate_every=self.get("truncate_every") or 0,
        )

    @property
    def primals(self):
        """What the reference takes, by its names."""
        values = [self.arrays.get(name) for name in self.reference.arguments]
        values = [None if a is None else wide(a) for a in values]
        if "leak" in self.keywords:
            values[-1] = np.full(self.H, self.keywords["leak"])
        return values

    def truth(self):
        outputs, last = reference.recurrence(self.reference, self.primals, self.terms)
        return self.wanted([*outputs, *last])

    def gradients(self, *cotangents):
        """The reference's, in the order of the arrays."""
        S = len(self.cell.states)
        places = wanted(S, self.return_state)
        every = [None] * (2 * S)
        for i, d in zip(places, cotangents, strict=True):
            every[i] = d if isinstance(d, np.ndarray) else wide(without_nan(d))
        found = reference.recurrence_grad(
            self.reference, self.primals, self.terms, every[:S], every[S:]
        )
        by_name = dict(zip(self.reference.arguments, found, strict=True))
        return [by_name[name] for name in self.names]

    def tangents(self, tangents):
        """The reference's tangents, for tangents in the order of the arrays."""
        by_name = dict(zip(self.names, tangents, strict=True))
        values = [by_name.get(name) for name in self.reference.arguments]
        values = [None if v is None else wide(without_nan(v)) for v in values]
        outputs, last = reference.recurrence_tangent(
            self.reference, self.primals, values, self.terms
        )
        return self.wanted([*outputs, *last])

    def check(self, got):
        """The results are right."""
        results = zip(got, self.plain(), self.truth(), strict=True)
        for i, each in enumerate(results):
            nearby = self.nearby(i, lambda p: p.plain(), lambda p: p.truth())
            close(*each, f"result {i}", neighbours=nearby)

    def nearby(self, i, plain, truth):
        """A result of the twin and its truth, for arrays that differ a little."""

        def neighbours():
            for _ in range(NEIGHBOURS):
                other = copy.copy(self)
                other.arrays = {
                    n: neighbour(self.rng, a) for n, a in self.arrays.items()
                }
                yield plain(other)[i], np.asarray(truth(other)[i])

        return neighbours

    def check_gradients(self, run, cotangents):
        """The gradients of what ``run`` makes of the arrays are right, of each array.

        NaN may stand in the padding of the cotangents.
        """
        clean = [without_nan(d) for d in cotangents]

        def plain(p):
            return grads(p.plain, p.arrays.values(), clean)

        def truth(p):
            return p.gradients(*cotangents)

        got = grads(run, self.arrays.values(), cotangents)
        results = zip(self.names, got, plain(self), truth(self), strict=True)
        for i, (name, *each) in enumerate(results):
            nearby = self.nearby(i, plain, truth)
            close(*each, f"gradient of {name}", neighbours=nearby)

    def check_tangents(self, run, tangents):
        """The tangents of what ``run`` makes of the arrays are right."""
        clean = [without_nan(t) for t in tangents]

        def plain(p):
            return mx.jvp(p.plain, list(p.arrays.values()), clean)[1]

        def truth(p):
            return p.tangents(tangents)

        got = mx.jvp(run, list(self.arrays.values()), tangents)[1]
        results = zip(got, plain(self), truth(self), strict=True)
        for i, each in enumerate(results):
            nearby = self.nearby(i, plain, truth)
            close(*each, f"tangent {i}", neighbours=nearby)

    def cotangents(self):
        """Random ones of the results."""
        return [draw(self.rng, s, self.dtype) for s in self.wanted(self.shapes)]

    def directions(self):
        """Random tangents of the arrays."""
        return [draw(self.rng, a.shape, self.dtype) for a in self.arrays.values()]

    def plain(self, *values):
        """What users write: a loop over rows and steps in MLX's own operations."""
        arrays = dict(zip(self.names, values, strict=True)) if values else self.arrays
        S, rows = range(len(self.cell.states)), math.prod(self.lead)
        twin = _Twin(self, arrays)
        found = [twin.row(n) for n in range(rows)]

        def together(pieces, *shape):
            if not pieces:
                return mx.zeros((*self.lead, *shape), twin.dtype)
            return mx.stack(pieces).reshape(*self.lead, *shape)

        return self.wanted(
            [
                *(
                    together([h for row, _ in found for h in row[s]], self.L, self.H)
                    for s in S
                ),
                *(together([last[s] for _, last in found], self.H) for s in S),
            ]
        )


class _Twin:
    """A problem's rows, each alone, in MLX's own operations."""

    def __init__(self, problem, arrays):
        self.problem, self.arrays, self.dtype = problem, arrays, arrays["x"].dtype
        self.cell = problem.cell
        rows, L, H = math.prod(problem.lead), problem.L, problem.H
        self.kept, m_x, m_h = problem.masks()
        lengths, reset = problem.get("lengths"), problem.get("reset")
        self.lengths = [L] * rows if lengths is None else np.reshape(lengths, rows)
        self.reset = None if reset is None else np.reshape(reset, (rows, L))
        self.skips = problem.unseen.reshape(rows, L)
        self.kept = [
            None if kept is None else mx.array(kept.reshape(rows, L, H))
            for kept in self.kept
        ]
        self.zeros = mx.zeros((H,), self.dtype)
        leak = arrays.get("leak", problem.get("leak"))
        self.rates = [
            self._rate(leak if s == 0 else None, share)
            for s, share in enumerate(problem.shares)
        ]
        # Not by indexing, whose gradient MLX cannot differentiate forwards.
        zs = self._projected(None if m_x is None else self._factors(m_x))
        self.zs = [_unstacked(row, L, zs[0].shape[-1]) for row in zs]
        self.first = {
            name: _unstacked(arrays[name], rows, H)
            for name in self.cell.states
            if name in arrays
        }
        self.m_h = None if m_h is None else _unstacked(self._factors(m_h), rows, H)

    def row(self, n):
        """The states of one row at all places, and its last ones, by state."""
        problem, S = self.problem, range(len(self.cell.states))
        anew = [self.arrays.get(f"{name}0") for name in self.cell.states]
        q = [
            self.first[name][n] if name in self.first else start
            for name, start in zip(self.cell.states, anew, strict=True)
        ]
        every, reverse = problem.get("truncate_every"), problem.get("reverse", False)
        places = range(int(self.lengths[n]))
        outputs = [[self.zeros] * problem.L for _ in S]
        for i, t in enumerate(reversed(places) if reverse else places):
            if i and every and i % every == 0:
                q = [mx.stop_gradient(state) for state in q]
            border = t + 1 if reverse else t
            starts = self.reset is not None and (border == t or i > 0)
            if starts and self.reset[n, border]:
                q = anew
            if self.skips[n, t]:
                q = [self.zeros if state is None else state for state in q]
            else:
                q = self._step(n, t, q)
            for s in S:
                outputs[s][t] = q[s]
        return outputs, [self.zeros if state is None else state for state in q]

    def _step(self, n, t, q):
        p = q[0]
        if p is not None and self.m_h is not None:
            p = p * self.m_h[n]
        q = [self.zeros if state is None else state for state in q]
        new = self.cell.step(self.problem.activation, self.arrays, self.zs[n][t], p, q)
        for s, rate in enumerate(self.rates):
            if rate is not None:
                new[s] = (1 - rate) * q[s] + rate * new[s]
            if self.kept[s] is not None:
                new[s] = mx.where(self.kept[s][n, t], q[s], new[s])
        return new

    def _factors(self, m):
        return mx.array(m, mx.float64).astype(self.dtype)

    def _rate(self, leak, share):
        if share != 1:
            leak = (1.0 if leak is None else leak) * share
        if leak is None or isinstance(leak, mx.array):
            return leak
        return mx.array(leak, self.dtype)

    def _projected(self, m_x):
        """The projection of all steps at once, as upstream's: a list of rows."""
        problem, x = self.problem, self.arrays["x"]
        if x.size == 0 or math.prod(problem.lead) == 0:
            return []  # MLX's sum of an empty cotangent may not end
        if problem.unseen.any():
            x = problem.in_unseen(x, 0)
        if m_x is not None:
            x = x * m_x[..., None, :]
        input_side, _, bias, *_ = self.cell.weights
        z = x @ self.arrays[input_side].T
        if bias in self.arrays:
            z = z + self.arrays[bias]
        features = z.shape[-1]
        z = mx.broadcast_to(z, (*problem.lead, problem.L, features))
        return _unstacked(z, math.prod(problem.lead), problem.L, features)


class Way(NamedTuple):
    """A cell on one of its paths: called as the path, with problems of the cell."""

    name: str
    path: Callable

    def __call__(self, *args, **keywords):
        return self.path(*args, **keywords)

    def problem(self, rng, *args, **fixed):
        return problem(rng, *args, of=self.name, **fixed)


# What the argument `way` of a test is, each in turn.
WAYS = {
    f"{name}-{path}": Way(name, run)
    for name, cell in CELLS.items()
    for path, run in cell.paths.items()
}


def _unstacked(a, count, *shape):
    if count == 0:
        return []
    return [piece.reshape(shape) for piece in mx.split(a.reshape(count, *shape), count)]


def without_nan(a):
    return mx.where(mx.isnan(a), 0, a).astype(a.dtype)


def problem(rng, lead=(3,), L=6, D=3, H=5, **fixed):
    """A problem with the terms that are given, and no others."""
    values = {"activation": "tanh", "dtype": mx.float32}
    values |= {"bias": True, "hidden": True, "cell": True}
    values |= {**NO_TERMS, **fixed, "lead": lead, "L": L, "D": D, "H": H}
    keywords = {
        name: values.pop(name) for name in ARRAYS if not isinstance(values[name], bool)
    }
    made = Problem(None, rng, **{**dict.fromkeys(ARRAYS, False), **values})
    made.keywords |= keywords
    return made


def grads(f, arrays, cotangents):
    """The gradients of what f gives, by all arrays."""
    return mx.vjp(f, list(arrays), list(cotangents))[1]
