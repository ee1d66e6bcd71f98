"""Properties of every transformation, over random shapes, types and functions.

The same transformation of the same recurrence in plain MLX operations is the measure:
in the same type as upstream, in float64 as the truth. In float64 each derivative is
also held against differences of the next lower one.
"""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_recurrent
import reference
from callables import TRACED
from conftest import DTYPES, NATIVE, UPSTREAM, array, draw
from tolerances import DIFFERENCE, close, largest, wide

B = 3  # of vmap

ACTIVATIONS = {
    **{name: (f, UPSTREAM[name]) for name, f in NATIVE.items()},
    **{
        name: (TRACED[name].make(), TRACED[name].make())
        for name in (
            "leaky_relu gelu silu softsign square hard_tanh clip_tanh partial".split()
        )
    },
}
KINKED = {"relu", "leaky_relu", "hard_tanh", "clip_tanh", "softsign"}
# MLX computes exp and erf in float64 with the precision of float32.
EXACT = {"tanh", "relu", "sigmoid", "identity", "leaky_relu", "softsign", "square"}
EXACT |= {"hard_tanh", "clip_tanh", "partial"}


def plain(function, x, Wxh, Whh, bias=None, hidden=None, return_state=False):
    """The recurrence as MLX's users write it."""
    step = mx.zeros((*x.shape[:-2], Whh.shape[0]), x.dtype)
    states, h = [], hidden
    if x.shape[-2]:  # MLX's sum over no steps, in a derivative, may not end
        z = x @ Wxh.T if bias is None else x @ Wxh.T + bias
    for t in range(x.shape[-2]):
        a = z[..., t, :] if h is None else z[..., t, :] + h @ Whh.T
        h = function(a)
        states.append(h)
    # MLX itself cannot take some derivatives of empty arrays.
    outputs = mx.stack(states, -2) if states else mx.stack([step], -2)[..., :0, :]
    h = step if h is None else h
    return {False: [outputs], True: [outputs, h], "only": [h]}[return_state]


class Setting:
    """What a transformation is applied to: drawn by Hypothesis."""

    def __init__(self, data, order, dtypes=DTYPES, activations=tuple(ACTIVATIONS)):
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
        self.activation = data.draw(st.sampled_from(activations), "activation")
        if order > 1 or (order and self.activation in KINKED):
            # A rounding of a half type decides on which side of a kink it is, and
            # little is left of its second derivatives but roundings.
            dtypes = [d for d in dtypes if d in (mx.float32, mx.float64)]
        self.dtype = data.draw(st.sampled_from(dtypes), "dtype")
        self.lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2), "N"))
        self.L = data.draw(st.sampled_from([0, 1, 2, 3, 5, 9][: 6 - order]), "L")
        self.D = data.draw(st.sampled_from([1, 2, 5]), "D")
        self.H = data.draw(st.sampled_from([1, 3, 7, 9, 17, 33][: 6 - order]), "H")
        self.has_bias = data.draw(st.booleans(), "bias")
        self.has_hidden = data.draw(st.booleans(), "hidden")
        self.return_state = data.draw(st.sampled_from([False, True, "only"]), "state")
        self.stream = data.draw(st.sampled_from([None, mx.cpu]), "stream")
        # A square amplifies what is large, roundings too.
        self.gain = 0.3 if self.activation == "square" else 0.6
        self.values = self.draw_values()
        self.tangents = self.draw_values()
        self.axes = self.batched = None
        self.compile, self.vmap = mx.compile, mx.vmap

    def draw_values(self, batched=(), scale=1.0):
        N, L, D, H = self.lead, self.L, self.D, self.H
        shapes = {"x": (*N, L, D), "Wxh": (H, D), "Whh": (H, H)}
        if self.has_bias:
            shapes["bias"] = (H,)
        if self.has_hidden:
            shapes["hidden"] = (*N, H)
        self.names = list(shapes)
        std = {"Wxh": D**-0.5, "Whh": H**-0.5}
        return [
            draw(
                self.rng,
                (B, *shape) if name in batched else shape,
                self.dtype,
                scale * self.gain * std.get(name, 1),
            )
            for name, shape in shapes.items()
        ]

    def batch(self, data):
        """Also draw values with an axis for vmap."""
        chosen = [["x"], ["Wxh", "Whh"], self.names]
        if self.has_hidden:
            chosen += [["hidden"], ["x", "hidden"]]
        if self.has_bias:
            chosen.append(["bias"])
        names = data.draw(st.sampled_from(chosen), "vmap over")
        self.axes = tuple(0 if n in names else None for n in self.names)
        self.batched = self.draw_values(batched=names)
        return self

    def keywords(self, values):
        return dict(zip(self.names, values, strict=True))

    def ours(self, *values):
        got = mlx_recurrent.rnn(
            **self.keywords(values),
            nonlinearity=ACTIVATIONS[self.activation][0],
            return_state=self.return_state,
            stream=self.stream,
        )
        return list(got) if self.return_state is True else [got]

    def plain(self, *values):
        return plain(
            ACTIVATIONS[self.activation][1],
            **self.keywords(values),
            return_state=self.return_state,
        )

    def plainly(self, dtype):
        """The same values in another type, neither compiled nor mapped."""
        other = object.__new__(Setting)
        vars(other).update(vars(self))
        for name in ("values", "tangents", "batched"):
            if (values := getattr(self, name)) is not None:
                setattr(other, name, [v.astype(dtype) for v in values])
        other.compile, other.vmap = (lambda f: f), one_by_one
        return other

    def scores(self, f):
        """One number of all that f gives, neither linear nor even in it."""
        return lambda *values: sum((o + 0.5 * o * o).sum() for o in f(*values))

    @property
    def every(self):
        return tuple(range(len(self.values)))


# Each takes a setting and the function of its arrays.


def gradient(s, f):
    return mx.grad(s.scores(f), s.every)


def tangent(s, f):
    return lambda *v: mx.jvp(f, list(v), s.tangents)[1]


def along(s, f):
    """The sum of what f gives, each with a tangent: its gradient is one order more."""
    return lambda *v: sum((g * t).sum() for g, t in zip(f(*v), s.tangents, strict=True))


def hessian_vector(s, f):
    return mx.grad(along(s, gradient(s, f)), s.every)


def third(s, f):
    return mx.grad(along(s, hessian_vector(s, f)), s.every)


def penalty(s, f):
    slope = mx.grad(s.scores(f))
    return mx.grad(lambda *v: slope(*v).square().sum(), s.every)


def flat(results):
    """Results of any nesting as a list of arrays."""
    if isinstance(results, mx.array):
        return [results]
    return [a for r in results for a in flat(r)]


def one_by_one(f, axes):
    """What vmap does, without it."""

    def mapped(*values):
        each = [
            flat(
                f(
                    *(
                        v if a is None else v[i]
                        for v, a in zip(values, axes, strict=True)
                    )
                )
            )
            for i in range(B)
        ]
        return [mx.stack(same) for same in zip(*each, strict=True)]

    return mapped


VALUES = {
    "value": lambda s, f: f(*s.values),
    "checkpoint": lambda s, f: mx.checkpoint(f)(*s.values),
    "vmap": lambda s, f: s.vmap(f, s.axes)(*s.batched),
}
FIRST = {
    "grad": lambda s, f: gradient(s, f)(*s.values),
    "value_and_grad": lambda s, f: mx.value_and_grad(s.scores(f), s.every)(*s.values),
    "jvp": lambda s, f: tangent(s, f)(*s.values),
    "checkpoint": lambda s, f: gradient(s, mx.checkpoint(f))(*s.values),
    "vmap of grad": lambda s, f: s.vmap(gradient(s, f), s.axes)(*s.batched),
    "grad of vmap": lambda s, f: gradient(s, s.vmap(f, s.axes))(*s.batched),
    "vmap of jvp": lambda s, f: s.vmap(tangent(s, f), s.axes)(*s.batched),
}
SECOND = {
    "grad of grad": lambda s, f: hessian_vector(s, f)(*s.values),
    "jvp of grad": lambda s, f: tangent(s, gradient(s, f))(*s.values),
    "grad of jvp": lambda s, f: gradient(s, tangent(s, f))(*s.values),
    "jvp of jvp": lambda s, f: tangent(s, tangent(s, f))(*s.values),
    "penalty": lambda s, f: penalty(s, f)(*s.values),
    "penalty of checkpoint": lambda s, f: penalty(s, mx.checkpoint(f))(*s.values),
    "vmap of grad of grad": lambda s, f: s.vmap(hessian_vector(s, f), s.axes)(
        *s.batched
    ),
    "grad of vmap of grad": lambda s, f: mx.grad(
        lambda *v: sum(g.square().sum() for g in s.vmap(gradient(s, f), s.axes)(*v)),
        s.every,
    )(*s.batched),
}
THIRD = {
    "grad of grad of grad": lambda s, f: third(s, f)(*s.values),
    "jvp of grad of grad": lambda s, f: tangent(s, hessian_vector(s, f))(*s.values),
    "grad of jvp of grad": lambda s, f: mx.grad(
        along(s, tangent(s, gradient(s, f))), s.every
    )(*s.values),
    "vmap of grad of grad of grad": lambda s, f: s.vmap(third(s, f), s.axes)(
        *s.batched
    ),
}
# A compiler runs for callables made of MLX's operations, so these are native.
COMPILED = {
    "value": lambda s, f: s.compile(f)(*s.values),
    "grad": lambda s, f: s.compile(gradient(s, f))(*s.values),
    "grad of compile": lambda s, f: gradient(s, s.compile(f))(*s.values),
    "vmap of grad": lambda s, f: s.compile(s.vmap(gradient(s, f), s.axes))(*s.batched),
    "penalty": lambda s, f: s.compile(penalty(s, f))(*s.values),
}


# A derivative along the tangents, after what it is the derivative of.
DIFFERENCES = {
    "jvp": (lambda s, v: s.ours(*v), lambda s, v: tangent(s, s.ours)(*v)),
    "grad": (
        lambda s, v: [s.scores(s.ours)(*v)],
        lambda s, v: [along(s, gradient(s, s.ours))(*v)],
    ),
    "grad of grad": (
        lambda s, v: gradient(s, s.ours)(*v),
        lambda s, v: hessian_vector(s, s.ours)(*v),
    ),
    "jvp of grad": (
        lambda s, v: gradient(s, s.ours)(*v),
        lambda s, v: tangent(s, gradient(s, s.ours))(*v),
    ),
    "jvp of jvp": (
        lambda s, v: tangent(s, s.ours)(*v),
        lambda s, v: tangent(s, tangent(s, s.ours))(*v),
    ),
    "grad of grad of grad": (
        lambda s, v: hessian_vector(s, s.ours)(*v),
        lambda s, v: third(s, s.ours)(*v),
    ),
    "jvp of grad of grad": (
        lambda s, v: hessian_vector(s, s.ours)(*v),
        lambda s, v: tangent(s, hessian_vector(s, s.ours))(*v),
    ),
}


def joined(results, s):
    """All entries of all results in one array of the setting's type: one judgement."""
    return mx.concatenate([a.astype(s.dtype).reshape(-1) for a in flat(results)])


def check(s, transform):
    got = transform(s, s.ours)
    same, exact = s.plainly(s.dtype), s.plainly(mx.float64)
    expected = transform(same, same.plain)
    truth = transform(exact, exact.plain)
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    got, expected = joined(got, s), joined(expected, s)
    truth = np.concatenate([wide(a).reshape(-1) for a in flat(truth)])
    if s.dtype != mx.float64:
        close(got, expected, truth)
    elif s.activation in EXACT:
        assert largest(wide(got) - truth) <= DIFFERENCE * largest(truth)
    else:
        close(got, expected, truth, rounded_to=mx.float32)


def examples(count):
    def decorate(test):
        @settings(derandomize=True, deadline=None, max_examples=count, database=None)
        @given(data=st.data())
        def run(data):
            test(data)

        run()

    return decorate


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    @examples(80)
    def run(data):
        check(Setting(data, 0).batch(data), VALUES[name])


@pytest.mark.parametrize("name", FIRST)
def test_first_order(name):
    @examples(60)
    def run(data):
        check(Setting(data, 1).batch(data), FIRST[name])


@pytest.mark.parametrize("name", SECOND)
def test_second_order(name):
    @examples(50)
    def run(data):
        check(Setting(data, 2).batch(data), SECOND[name])


@pytest.mark.parametrize("name", THIRD)
def test_third_order(name):
    @examples(40)
    def run(data):
        check(Setting(data, 3).batch(data), THIRD[name])


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    @examples(5)
    def run(data):
        s = Setting(data, 2, activations=list(NATIVE)).batch(data)
        check(s, COMPILED[name])


@pytest.mark.parametrize("name", ["value", "grad"])
def test_compiled_shapeless(name):
    """One trace serves another N and L."""

    @examples(5)
    def run(data):
        s = Setting(data, 2, activations=list(NATIVE))
        made = []

        def once(f):
            made[:] = made or [mx.compile(f, shapeless=True)]
            return made[0]

        s.compile = once
        for more, L in ((0, 3), (2, 1), (1, 6)):
            s.lead, s.L = tuple(n + more for n in s.lead), L
            s.values = s.draw_values()
            check(s, COMPILED[name])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences(name):
    """In float64, against central differences of the next lower derivative."""
    lower, higher = DIFFERENCES[name]

    @examples(12)
    def run(data):
        s = Setting(data, 2, [mx.float64], sorted(EXACT - KINKED))
        s.tangents = s.draw_values(scale=0.3)  # the differences' step

        def at(*values):
            values = [array(v, mx.float64) for v in values]
            return np.concatenate([wide(a).reshape(-1) for a in lower(s, values)])

        got = np.concatenate([wide(a).reshape(-1) for a in higher(s, s.values)])
        truth = reference.finite_difference(
            at, [wide(v) for v in s.values], [wide(t) for t in s.tangents]
        )
        assert got.shape == truth.shape
        assert largest(got - truth) <= DIFFERENCE * largest(truth)
