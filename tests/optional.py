"""Problems with optional terms: their inputs, keywords, truth and plain MLX twin.

The twin rounds as upstream's layer does, so its error is the measure of the product's
(``Problem.check``): nothing here asks the product what is right.
"""

import math

import mlx.core as mx
import numpy as np

import reference
from conftest import ACTIVATIONS, DTYPES, UPSTREAM, draw
from tolerances import close, wide

ARGUMENTS = reference.Elman().arguments
NO_TERMS = {
    "hidden0": False,
    "leak": None,
    "lengths": False,
    "reset": False,
    "reverse": False,
    "zoneout": 0.0,
    "input_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "training": True,
    "truncate_every": None,
    "checkpoint_every": None,
    "stream": None,
}


def draw_key():
    """The key that the next call takes from MLX's random state."""
    return np.array(mx.random.split(mx.random.state[0])[1])


class Problem:
    """One call.

    Args:
        choose (callable): Chooses one of a list, for a name.
        rng (Generator): Draws the values.
        fixed: What is not chosen, by name.
    """

    def __init__(self, choose, rng, **fixed):
        def pick(name, values):
            return fixed[name] if name in fixed else choose(name, values)

        self.rng = rng
        self.activation = pick("activation", ACTIVATIONS)
        self.dtype = dtype = pick("dtype", DTYPES)
        self.lead = lead = pick("lead", [(), (1,), (3,), (2, 2), (0,)])
        self.L = L = pick("L", [0, 1, 2, 3, 5, 8])
        self.D = D = pick("D", [1, 3, 70])
        self.H = H = pick("H", [1, 4, 17, 70])
        shapes = {
            "x": (*lead, L, D),
            "Wxh": (H, D),
            "Whh": (H, H),
            "bias": (H,) if pick("bias", [True, False]) else None,
            "hidden": (*lead, H) if pick("hidden", [True, False]) else None,
            "hidden0": (H,) if pick("hidden0", [False, True]) else None,
        }
        std = {"Wxh": D**-0.5, "Whh": H**-0.5}
        self.arrays = {
            name: draw(rng, shape, dtype, 0.8 * std.get(name, 1))
            for name, shape in shapes.items()
            if shape is not None
        }
        self.keywords = {}
        leak = pick("leak", [None, 0.3, "array"])
        if leak == "array":
            values = np.clip(rng.uniform(0.2, 1.2, H), 0, 1)  # some of them 1
            self.arrays["leak"] = mx.array(values, mx.float64).astype(dtype)
        elif leak is not None:
            self.keywords["leak"] = leak
        if pick("lengths", [False, True]):
            self.keywords["lengths"] = rng.integers(0, L + 1, lead)
        if pick("reset", [False, True]):
            self.keywords["reset"] = rng.random((*lead, L)) < 0.3
        for name, values in {
            "reverse": [False, True],
            "zoneout": [0.0, 0.3],
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

    def __call__(self, path, *values, **others):
        """The product's outputs and last states, for arrays other than its own."""
        arrays = dict(zip(self.names, values, strict=True)) if values else self.arrays
        mx.random.seed(self.seed)
        keywords = {**self.keywords, "return_state": True, **others}
        return list(path(self.activation, **arrays, **keywords))

    def get(self, name, default=None):
        return self.keywords.get(name, default)

    def masks(self):
        """The masks that the key gives: kept, m_x and m_h of the reference."""
        rows, lead = math.prod(self.lead), self.lead
        kept = m_x = m_h = None
        if self.get("training", True):
            if p := self.get("zoneout"):
                kept = reference.hits(
                    self.key, reference.ZONEOUT, p, rows, self.L, self.H
                )
                kept = kept.reshape(*lead, self.L, self.H)
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
    def terms(self):
        """The terms of the reference."""
        kept, m_x, m_h = self.masks()
        zoneout = 0.0 if self.get("training", True) else self.get("zoneout", 0.0)
        return reference.Terms(
            lengths=self.get("lengths"),
            reset=self.get("reset"),
            reverse=self.get("reverse", False),
            shares=(1 - zoneout,),
            kept=(kept,),
            m_x=m_x,
            m_h=m_h,
            truncate_every=self.get("truncate_every") or 0,
        )

    @property
    def primals(self):
        """What the reference takes, by its names."""
        values = [self.arrays.get(name) for name in ARGUMENTS]
        values = [None if a is None else wide(a) for a in values]
        if "leak" in self.keywords:
            values[-1] = np.full(self.H, self.keywords["leak"])
        return values

    @property
    def cell(self):
        return reference.Elman(self.activation)

    def truth(self):
        outputs, last = reference.recurrence(self.cell, self.primals, self.terms)
        return [*outputs, *last]

    def gradients(self, d_outputs, d_last):
        """The reference's, in the order of the arrays."""
        cotangents = [
            [d if isinstance(d, np.ndarray) else wide(without_nan(d))]
            for d in (d_outputs, d_last)
        ]
        found = reference.recurrence_grad(
            self.cell, self.primals, self.terms, *cotangents
        )
        by_name = dict(zip(ARGUMENTS, found, strict=True))
        return [by_name[name] for name in self.names]

    def tangents(self, tangents):
        """The reference's tangents, for tangents in the order of the arrays."""
        by_name = dict(zip(self.names, tangents, strict=True))
        values = [by_name.get(name) for name in ARGUMENTS]
        values = [None if v is None else wide(without_nan(v)) for v in values]
        outputs, last = reference.recurrence_tangent(
            self.cell, self.primals, values, self.terms
        )
        return [*outputs, *last]

    def check(self, got):
        """Outputs and last states are right."""
        labels = ["outputs", "state"]
        for label, *each in zip(labels, got, self.plain(), self.truth(), strict=True):
            close(*each, label)

    def check_gradients(self, run, cotangents):
        """The gradients of what ``run`` makes of the arrays are right, of each array.

        NaN may stand in the padding of the cotangents.
        """
        values = self.arrays.values()
        got = grads(run, values, cotangents)
        expected = grads(self.plain, values, [without_nan(d) for d in cotangents])
        truth = self.gradients(*cotangents)
        for name, *each in zip(self.names, got, expected, truth, strict=True):
            close(*each, f"gradient of {name}")

    def check_tangents(self, run, tangents):
        """The tangents of what ``run`` makes of the arrays are right."""
        values = list(self.arrays.values())
        got = mx.jvp(run, values, tangents)[1]
        clean = [without_nan(t) for t in tangents]
        expected = mx.jvp(self.plain, values, clean)[1]
        for each in zip(got, expected, self.tangents(tangents), strict=True):
            close(*each, "tangent")

    def cotangents(self):
        """Random ones of the outputs and the last states."""
        shapes = (*self.lead, self.L, self.H), (*self.lead, self.H)
        return [draw(self.rng, shape, self.dtype) for shape in shapes]

    def directions(self):
        """Random tangents of the arrays."""
        return [draw(self.rng, a.shape, self.dtype) for a in self.arrays.values()]

    def plain(self, *values):
        """What users write: a loop over rows and steps in MLX's own operations."""
        arrays = dict(zip(self.names, values, strict=True)) if values else self.arrays
        dtype = arrays["x"].dtype
        kept, m_x, m_h = self.masks()
        rows = math.prod(self.lead)
        lengths, reset = self.get("lengths"), self.get("reset")
        lengths = [self.L] * rows if lengths is None else np.reshape(lengths, rows)
        reset = None if reset is None else np.reshape(reset, (rows, self.L))
        kept = None if kept is None else mx.array(kept.reshape(rows, self.L, self.H))
        zeros = mx.zeros((self.H,), dtype)
        every = self.get("truncate_every")

        def factors(m):
            return mx.array(m, mx.float64).astype(dtype)

        leak = arrays.get("leak", self.get("leak"))
        if not self.get("training", True) and self.get("zoneout"):
            leak = (1.0 if leak is None else leak) * (1 - self.get("zoneout"))
        if leak is not None and not isinstance(leak, mx.array):
            leak = mx.array(leak, dtype)

        # Not by indexing, whose gradient MLX cannot differentiate forwards.
        zs = self._projected(arrays, None if m_x is None else factors(m_x))
        zs = [_unstacked(row, self.L, self.H) for row in zs]
        if "hidden" in arrays:
            hiddens = _unstacked(arrays["hidden"], rows, self.H)
        if m_h is not None:
            m_h = _unstacked(factors(m_h), rows, self.H)

        outputs, last = [], []
        for n in range(rows):
            q = arrays.get("hidden0")
            if "hidden" in arrays:
                q = hiddens[n]
            places = range(int(lengths[n]))
            row = [zeros] * self.L
            for i, t in enumerate(
                reversed(places) if self.get("reverse", False) else places
            ):
                if i and every and i % every == 0:
                    q = mx.stop_gradient(q)
                border = t + 1 if self.get("reverse", False) else t
                if reset is not None and (border == t or i > 0) and reset[n, border]:
                    q = arrays.get("hidden0")
                a = zs[n][t]
                if q is not None:
                    p = q if m_h is None else q * m_h[n]
                    a = a + p @ arrays["Whh"].T
                h = UPSTREAM[self.activation](a)
                q = zeros if q is None else q
                if leak is not None:
                    h = (1 - leak) * q + leak * h
                if kept is not None:
                    h = mx.where(kept[n, t], q, h)
                row[t] = q = h
            last.append(zeros if q is None else q)
            outputs += row
        if not outputs:
            outputs = mx.zeros((*self.lead, self.L, self.H), dtype)
        else:
            outputs = mx.stack(outputs).reshape(*self.lead, self.L, self.H)
        if not last:
            return [outputs, mx.zeros((*self.lead, self.H), dtype)]
        return [outputs, mx.stack(last).reshape(*self.lead, self.H)]

    def _projected(self, arrays, m_x):
        """The projection of all steps at once, as upstream's: a list of rows."""
        x = arrays["x"]
        if x.size == 0 or math.prod(self.lead) == 0:
            return []  # MLX's sum of an empty cotangent may not end
        if "lengths" in self.keywords:
            x = self.in_padding(x, 0)
        if m_x is not None:
            x = x * m_x[..., None, :]
        z = x @ arrays["Wxh"].T
        if "bias" in arrays:
            z = z + arrays["bias"]
        z = mx.broadcast_to(z, (*self.lead, self.L, self.H))
        return _unstacked(z, math.prod(self.lead), self.L, self.H)


def _unstacked(a, count, *shape):
    if count == 0:
        return []
    return [piece.reshape(shape) for piece in mx.split(a.reshape(count, *shape), count)]


def without_nan(a):
    return mx.where(mx.isnan(a), 0, a).astype(a.dtype)


def problem(rng, lead=(3,), L=6, D=3, H=5, **fixed):
    """A problem with the terms that are given, and no others."""
    values = {"activation": "tanh", "dtype": mx.float32, "bias": True, "hidden": True}
    values |= {**NO_TERMS, **fixed, "lead": lead, "L": L, "D": D, "H": H}
    keywords = {
        name: values.pop(name)
        for name in ("lengths", "reset")
        if not isinstance(values[name], bool)
    }
    made = Problem(None, rng, **{"lengths": False, "reset": False, **values})
    made.keywords |= keywords
    return made


def grads(f, arrays, cotangents):
    """The gradients of what f gives, by all arrays."""
    return mx.vjp(f, list(arrays), list(cotangents))[1]
