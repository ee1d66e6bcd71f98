"""Both directions of a long call in one launch: which may run so, and all are right.

What one launch cannot hold is two calls: for each reason there are layers here, long
enough that nothing else keeps them apart.
"""

import mlx.core as mx
import numpy as np
import pytest

import mlx_recurrent
from conftest import DTYPES, NATIVE, TRACED, draw, name_of
from mlx_recurrent import RNN, Bidirectional
from networks import MERGES
from optional import draw_key, problem
from tolerances import agree, close, wide

N, L, D, H = 2, 8, 300, 400
RANDOM = ["zoneout", "input_dropout", "recurrent_dropout"]
STARTS = np.zeros((N, L), bool)
STARTS[0, [3, 6]] = STARTS[1, [0, 5]] = True
TAKEN = np.ones((N, L), bool)
TAKEN[0, [0, 2, 6]] = TAKEN[1, [4, 5, 7]] = False


@pytest.fixture(autouse=True)
def two_threads():
    """One for each direction."""
    mlx_recurrent.set_num_threads(2)


@pytest.fixture
def apart(monkeypatch):
    """The calls that were no launch of both."""
    found, run = [], Bidirectional._run

    def counted(*arguments):
        found.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(Bidirectional, "_run", counted)
    return found


class Doubled(RNN):
    """A layer of the user's."""

    def __call__(self, *args, **keywords):
        return 2 * super().__call__(*args, **keywords)


class Direction:
    """One of the two layers, and the problem that it is.

    Args:
        rng (Generator): Draws the numbers.
        x (array, optional): The sequence. ``None`` draws one.
        make (type): The layer's.
        nonlinearity (callable, optional): In place of the activation's own.
        bias (tuple, optional): The shape of a bias that is not ``(H,)``.
        options: What the problem has.
    """

    def __init__(self, rng, x=None, make=RNN, nonlinearity=None, bias=(H,), **options):
        given = {"D": D, "H": H, "hidden": False, "bias": bias is not None}
        p = self.problem = problem(rng, (N,), L, **given | options)
        p.arrays |= {} if x is None else {"x": x}
        if bias is not None:
            p.arrays["bias"] = draw(rng, bias, p.dtype, 0.5)
        masks = {name: p.get(name, 0.0) for name in RANDOM}
        function = NATIVE[p.activation] if nonlinearity is None else nonlinearity
        self.layer = make(
            p.D, p.H, bias is not None, function, leak=p.get("leak"), **masks
        )
        self.layer.train(p.get("training", True))
        self.draws = self.layer.training and any(masks.values())
        self.factor = 2 if make is Doubled else 1

    @property
    def values(self):
        return list(self.problem.arrays.values())[1:]

    def take(self, *values):
        """The layer with other values than the problem's; returns its first state."""
        arrays = dict(zip(self.problem.names[1:], values, strict=True))
        hidden = arrays.pop("hidden", None)
        for name, a in arrays.items():
            setattr(self.layer, name, a)
        return hidden


class Pair:
    """Two layers over a sequence, as the package runs them, by the reference and so on.

    Args:
        rng (Generator): Draws the numbers.
        forward (dict): The first layer.
        backward (dict): The second.
        merge (str): What is made of the outputs.
        call: The keywords of the call.
    """

    def __init__(self, rng, forward, backward, merge="concat", **call):
        self.forward = Direction(rng, **forward, **call)
        self.x = self.forward.problem.arrays["x"]
        self.backward = Direction(rng, self.x, **backward, **call, reverse=True)
        self.sides = self.forward, self.backward
        self.merge, self.call = merge, call
        self.seed = int(rng.integers(2**32))
        mx.random.seed(self.seed)
        for side in self.sides:
            side.problem.key = draw_key()
            if side.draws:  # the state moves by one draw
                mx.random.uniform()

    @property
    def values(self):
        return [self.x, *self.forward.values, *self.backward.values]

    def split(self, values):
        x, *others = values
        count = len(self.forward.values)
        return x, others[:count], others[count:]

    def ours(self, *values):
        x, first, second = self.split(values)
        hidden = self.forward.take(*first), self.backward.take(*second)
        model = Bidirectional(*(side.layer for side in self.sides), merge=self.merge)
        mx.random.seed(self.seed)
        return model(x, hidden, **self.call)

    def plain(self, *values):
        x, *each = self.split(values)
        outputs = [
            side.factor * side.problem.plain(x, *of)[0]
            for side, of in zip(self.sides, each, strict=True)
        ]
        return MERGES[self.merge](mx, *outputs)

    def truth(self, c):
        """The outputs, and the gradients for a cotangent."""
        f, b = (side.factor * side.problem.truth()[0] for side in self.sides)
        outputs = MERGES[self.merge](np, f, b)
        cotangents = {
            "concat": lambda: np.split(c, [f.shape[-1]], -1),
            "sum": lambda: (c, c),
            "mul": lambda: (c * b, c * f),
            "mean": lambda: (c / 2, c / 2),
        }[self.merge]()
        (dx, *first), (also, *second) = (
            side.problem.gradients(side.factor * d, np.zeros((N, d.shape[-1])))
            for side, d in zip(self.sides, cotangents, strict=True)
        )
        return outputs, [dx + also, *first, *second]

    def check(self, rounded_to=None):
        """Outputs and all gradients."""
        values = self.values
        like = self.plain(*values)
        # Not around zero: where a sum over all units cancels, luck decides its error.
        c = 1 + draw(self.forward.problem.rng, like.shape, like.dtype)
        results = [mx.vjp(run, values, [c]) for run in (self.ours, self.plain)]
        results.append(self.truth(wide(c)))
        (got, expected, truth), gradients = zip(*results, strict=True)
        close(got[0], expected[0], truth, "outputs", rounded_to)
        for i, each in enumerate(zip(*gradients, strict=True)):
            close(*each, f"gradient {i}", rounded_to)


# Of each layer and of the call.
ONE = {
    "plain": {},
    "states": {"hidden": True},
    "no biases": {"bias": None},
    "relu": {"activation": "relu"},
    "sigmoid": {"activation": "sigmoid", "hidden": True},
    "identity": {"activation": "identity"},
    "evaluation": {"training": False},
    "lengths": {"lengths": np.array([8, 5]), "hidden": True},
    "a row without steps": {"lengths": np.array([0, 8])},
    "episodes": {"reset": STARTS, "hidden": True},
    "skipped steps": {"mask": TAKEN, "hidden": True},
    "blocks": {"truncate_every": 3},
    "few states kept": {"checkpoint_every": 3},
    "much at once": {
        "lengths": np.array([6, 8]), "reset": STARTS, "mask": TAKEN,
        "truncate_every": 2, "hidden": True,
    },
}  # fmt: skip
CALL = ("lengths", "reset", "mask", "truncate_every", "checkpoint_every")


def pair_of(rng, options, **others):
    """Two layers with the same options, some of which are the call's."""
    call = {name: value for name, value in options.items() if name in CALL}
    layer = {name: value for name, value in options.items() if name not in CALL}
    return Pair(rng, layer, layer, **others, **call)


@pytest.mark.parametrize("options", ONE.values(), ids=ONE)
def test_one_launch(rng, apart, options):
    pair_of(rng, options).check()
    assert not apart


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("merge", [merge for merge in MERGES if merge])
def test_merges_and_dtypes(rng, apart, merge, dtype):
    pair_of(rng, {"hidden": True, "dtype": dtype}, merge=merge).check()
    assert not apart


def test_a_sequence_for_several_states(rng, apart):
    pair = pair_of(rng, {"hidden": True, "D": 600, "H": 640, "bias": (640,)})
    pair.x = pair.x[0]
    for side in pair.sides:
        side.problem.arrays["x"] = pair.x
    pair.check()
    assert not apart


OF_EITHER = {
    "leak": {"leak": 0.5},
    "learned leak": {"leak": "array"},
    "learned state": {"hidden0": True},
    "learned state of episodes": {"hidden0": True, "hidden": True},
    "zoneout": {"zoneout": 0.3},
    "zoneout in evaluation": {"zoneout": 0.3, "training": False},
    "input dropout": {"input_dropout": 0.4},
    "recurrent dropout": {"recurrent_dropout": 0.25},
    "state": {"hidden": True},
    "no bias": {"bias": None},
    "bias of a row": {"bias": (1, H)},
    "bias of each step": {"bias": (L, H)},
    "bias of all units": {"bias": (1,)},
    "activation": {"activation": "sigmoid"},
    "callable": {"nonlinearity": TRACED["tanh"]},
    "size": {"H": H + 16, "bias": (H + 16,)},
    "layer of the user": {"make": Doubled},
}
# These two layers may have alike.
ALIKE = ("state", "no bias", "activation", "size")


@pytest.mark.parametrize("which", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", OF_EITHER)
def test_what_one_launch_cannot_hold(rng, apart, name, which):
    special = OF_EITHER[name]
    call = {"reset": STARTS} if name == "learned state of episodes" else {}
    other = {"hidden": True} if call else {}
    Pair(
        rng,
        other if which == "backward" else special,
        other if which == "forward" else special,
        **call,
    ).check()
    assert bool(apart) == (which != "both" or name not in ALIKE)


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_two_dtypes(rng, apart, half):
    """Each layer's own, where x has the narrower one."""
    dtypes = {"forward": mx.float32, "backward": mx.float32, half: mx.float16}
    pair = Pair(rng, *({"dtype": dtype} for dtype in dtypes.values()))
    pair.x = pair.x.astype(mx.float16)
    for side in pair.sides:
        side.problem.arrays["x"] = pair.x
    pair.check(rounded_to=mx.float16)
    assert apart


@pytest.mark.parametrize("return_state", [True, "only"])
def test_states(rng, apart, return_state):
    """They are given by two calls."""
    pair = pair_of(rng, {"hidden": True, "lengths": np.array([0, 5])})
    pair.ours(*pair.values)
    pair.call |= {"return_state": return_state}
    got = pair.ours(*pair.values)
    for state, side in zip(
        got if return_state == "only" else got[1], pair.sides, strict=True
    ):
        close(state, side.problem.plain()[1], side.problem.truth()[1])
    assert len(apart) == 1


def test_nan_of_one_direction_stays_there(rng, apart):
    pair = pair_of(rng, {"hidden": True})
    pair.backward.problem.arrays["hidden"] *= mx.nan
    found = mx.grad(lambda *v: pair.ours(*v)[..., :H].sum(), range(5))(*pair.values)
    assert not apart
    for a in found[1:]:
        assert mx.isfinite(a).all()


def test_shapeless(rng, apart):
    """Another number of steps, as long as one launch is worth it; gradients too."""
    pair = pair_of(rng, {"hidden": True})

    def both(c, *values):
        return [pair.ours(*values), *mx.vjp(pair.ours, values, [c])[1]]

    shapeless = mx.compile(both, shapeless=True)
    for steps in (8, 10):
        pair.x = draw(rng, (N, steps, D), mx.float32)
        for side in pair.sides:
            side.problem.arrays["x"], side.problem.L = pair.x, steps
        c, values = draw(rng, (N, steps, 2 * H), mx.float32), pair.values
        truth, gradients = pair.truth(wide(c))
        expected = [pair.plain(*values), *mx.vjp(pair.plain, values, [c])[1]]
        got = shapeless(c, *values)
        for each in zip(got, expected, [truth, *gradients], strict=True):
            close(*each)
    assert not apart


def test_where_it_would_save_nothing(rng, apart):
    """One thread, or little to do."""
    pair = pair_of(rng, {})
    mlx_recurrent.set_num_threads(1)
    pair.check()
    assert len(apart) == 1
    mlx_recurrent.set_num_threads(2)
    pair_of(rng, {"D": 3, "H": 5, "bias": (5,)}).check()
    assert len(apart) == 2


# Of a function, its values, tangents and a cotangent: in parts along a new axis.
MAPPED = {
    "jvp": lambda f, v, t, c: mx.vmap(lambda *t: mx.jvp(f, v, t)[1][0])(*t),
    "grad of jvp": lambda f, v, t, c: mx.vmap(
        lambda *t: mx.vjp(lambda x: mx.jvp(f, [x, *v[1:]], t)[1][0], v[:1], [c])[1][0]
    )(*t),
    "jvp of many weights": lambda f, v, t, c: mx.vmap(
        lambda *v: mx.jvp(f, v, [a[0] for a in t])[1][0]
    )(*(mx.stack([a, 0.9 * a]) for a in v)),
    "grad": lambda f, v, t, c: mx.vmap(lambda x: mx.vjp(f, [x, *v[1:]], [c])[1][1])(
        t[0]
    ),
}


@pytest.mark.parametrize("derivative", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("options", [{}, {"lengths": np.array([8, 5])}], ids=str)
def test_mapped_derivatives(rng, apart, options, derivative):
    """The axis of the directions is another one there."""
    pair = pair_of(rng, options)
    values, c = pair.values, draw(rng, (N, L, 2 * H), mx.float32)
    tangents = [draw(rng, (3, *a.shape), a.dtype) for a in values]
    results = (derivative(run, values, tangents, c) for run in (pair.ours, pair.plain))
    agree(*results)
    assert not apart
