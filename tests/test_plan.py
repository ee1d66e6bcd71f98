"""plan() says which path a call takes and why, and that is the path it takes."""

import functools

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_recurrent
from conftest import NATIVE, draw, unreadable
from mlx_recurrent import RNN, Bidirectional, Stack, functional
from mlx_recurrent.interop import Reversed
from tolerances import LINEAR

NATIVE_CALLABLES = [
    None,
    nn.tanh,
    mx.tanh,
    nn.Tanh(),
    nn.relu,
    nn.ReLU(),
    nn.sigmoid,
    mx.sigmoid,
    nn.Sigmoid(),
    nn.Identity(),
]


def cumulative(a):
    return mx.cumsum(a, axis=-1)


TRACED_CALLABLES = {
    "<lambda>": lambda a: mx.tanh(a),
    "sin": mx.sin,
    "Sequential": nn.Sequential(nn.Tanh()),
    "Mine": type("Mine", (nn.Tanh,), {})(),
    "GELU": nn.GELU(),
}
COMPOSED_CALLABLES = {
    "<lambda>": unreadable(mx.tanh),
    "LayerNorm": nn.LayerNorm(6),
    "Softmax": nn.Softmax(),
    "PReLU": nn.PReLU(),
    "cumulative": cumulative,
    "Sequential": nn.Sequential(nn.Softmax()),
}


def operations(tmp_path, y):
    """The names of the operations in the graph of an array."""
    path = tmp_path / "graph.dot"
    mx.export_to_dot(str(path), y)
    lines = path.read_text().splitlines()
    return [line.split('"')[1] for line in lines if "shape=rectangle" in line]


@pytest.mark.parametrize("nonlinearity", NATIVE_CALLABLES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
def test_native(tmp_path, rng, dtype, nonlinearity):
    """One operation of this package, however long the sequence."""
    layer = RNN(3, 6, nonlinearity=nonlinearity)
    layer.set_dtype(dtype)
    graphs = []
    for L in (2, 100):
        x = draw(rng, (4, L, 3), dtype)
        assert layer.plan(x).path == "native"
        graphs.append(operations(tmp_path, layer(x)))
    assert graphs[0] == graphs[1]
    assert len([name for name in graphs[0] if "recurrent" in name.lower()]) == 1


@pytest.mark.parametrize("name", TRACED_CALLABLES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.float16, mx.bfloat16])
def test_traced(tmp_path, rng, dtype, name):
    """One operation of this package too; the reason lists those of the callable."""
    layer = RNN(3, 6, nonlinearity=TRACED_CALLABLES[name])
    layer.set_dtype(dtype)
    graphs = []
    for L in (2, 100):
        x = draw(rng, (4, L, 3), dtype)
        plan = layer.plan(x)
        assert plan.path == "traced" and plan.isa and plan.threads
        assert name in plan.reason and plan.reason in str(plan)
        assert any(op in plan.reason for op in ("tanh", "sin", "erf"))
        graphs.append(operations(tmp_path, layer(x)))
    assert graphs[0] == graphs[1]
    assert len([name for name in graphs[0] if "recurrent" in name.lower()]) == 1


@pytest.mark.parametrize("name", COMPOSED_CALLABLES)
def test_composed(tmp_path, rng, name):
    """Operations at each step, and the reason names the nonlinearity."""
    layer = RNN(3, 6, nonlinearity=COMPOSED_CALLABLES[name])
    mx.eval(layer.parameters())  # their drawing is not part of the graph then
    graphs = []
    for L in (4, 16):
        x = draw(rng, (4, L, 3), mx.float32)
        plan = layer.plan(x)
        assert plan.path == "composed"
        assert name in plan.reason and name in str(plan)
        graphs.append(operations(tmp_path, layer(x)))
    assert 2 * len(graphs[0]) < len(graphs[1]) <= 4 * LINEAR * len(graphs[0])


def test_reasons_tell_the_paths_apart():
    x = mx.zeros((4, 5, 3))
    reasons = {
        name: RNN(3, 6, nonlinearity=f).plan(x).reason
        for name, f in {"tanh": None, **COMPOSED_CALLABLES}.items()
    }
    assert "tanh" in reasons["tanh"]
    assert "parameters" in reasons["LayerNorm"]
    assert len(set(reasons.values())) == len(reasons)


@pytest.mark.parametrize("nonlinearity", [None, COMPOSED_CALLABLES["<lambda>"]])
@pytest.mark.parametrize(
    "shape", [(5, 3), (4, 5, 3), (2, 4, 1, 3), (0, 5, 3), (4, 0, 3)]
)
def test_is_one_paragraph(shape, nonlinearity):
    text = str(RNN(3, 6, nonlinearity=nonlinearity).plan(mx.zeros(shape)))
    assert text == text.strip() and "\n" not in text and text.endswith(".")
    assert len(text.split()) >= 12


def test_native_names_instructions_threads_and_partition():
    plan = RNN(64, 256).plan(mx.zeros((64, 50, 64)))
    assert plan.isa and plan.isa in str(plan)
    assert plan.partition in ("none", "batch", "hidden")
    assert 1 <= plan.threads <= mlx_recurrent.get_num_threads()
    assert (plan.threads == 1) == (plan.partition == "none")


def test_composed_has_no_kernel():
    plan = RNN(3, 6, nonlinearity=mx.softmax).plan(mx.zeros((4, 5, 3)))
    assert plan.isa is None and plan.threads is None and plan.partition is None


def test_partition_follows_shapes_and_threads():
    """Many rows divide by rows; one row of many units by units; one thread not."""
    wide_layer = RNN(64, 1024)
    batch, row = mx.zeros((256, 50, 64)), mx.zeros((1, 50, 64))
    mlx_recurrent.set_num_threads(2)
    assert wide_layer.plan(batch).partition == "batch"
    assert wide_layer.plan(row).partition == "hidden"
    assert wide_layer.plan(batch).threads == wide_layer.plan(row).threads == 2
    mlx_recurrent.set_num_threads(1)
    for x in (batch, row):
        assert wide_layer.plan(x).partition == "none"
        assert wide_layer.plan(x).threads == 1


def test_plan_takes_the_arguments_of_the_call():
    layer = RNN(3, 6)
    x, hidden = mx.zeros((4, 5, 3)), mx.zeros((4, 6))
    assert layer.plan(x, hidden, return_state="only").path == "native"
    assert layer.plan(x, hidden=hidden, return_state=True).path == "native"
    with pytest.raises(ValueError, match="hidden"):
        layer.plan(x, mx.zeros((3, 6)))
    with pytest.raises(ValueError, match="return_state"):
        layer.plan(x, return_state="all")


def test_plan_computes_and_draws_nothing():
    layer = RNN(3, 6, nonlinearity=lambda a: a + mx.random.normal(a.shape))
    mx.random.seed(3)
    layer.plan(mx.zeros((4, 5, 3)))
    after = mx.random.normal((4,))
    mx.random.seed(3)
    assert mx.array_equal(after, mx.random.normal((4,)))


def test_the_functions_take_the_same_paths(tmp_path, rng):
    x, Wxh = draw(rng, (4, 30, 3), mx.float32), draw(rng, (6, 3), mx.float32)
    z, Whh = draw(rng, (4, 30, 6), mx.float32), draw(rng, (6, 6), mx.float32)
    for f in NATIVE.values():
        assert (
            len(operations(tmp_path, mlx_recurrent.rnn(x, Wxh, Whh, nonlinearity=f)))
            <= 2
        )
        assert (
            len(operations(tmp_path, mlx_recurrent.scan(z, Whh, nonlinearity=f))) <= 2
        )
    traced = mlx_recurrent.scan(z, Whh, nonlinearity=mx.sin)
    assert len(operations(tmp_path, traced)) == 1
    composed = mlx_recurrent.scan(z, Whh, nonlinearity=unreadable(mx.sin))
    assert operations(tmp_path, composed).count("Sin") == 30


def test_gpu_is_composed():
    """A plan computes nothing, so it can be had where there is no GPU."""
    layer = RNN(3, 6)
    plan = functional.plan(
        functional.rnn,
        mx.zeros((4, 5, 3)),
        layer.Wxh,
        layer.Whh,
        layer.bias,
        stream=mx.gpu,
    )
    assert plan.path == "composed" and "GPU" in plan.reason


def test_layer_norm_inside_the_nonlinearity():
    plan = RNN(3, 6, nonlinearity=nn.Sequential(nn.LayerNorm(6), nn.Tanh())).plan(
        mx.zeros((4, 5, 3))
    )
    assert plan.path == "composed"
    assert "module with parameters" in plan.reason and "weight" in plan.reason


def test_an_array_in_the_nonlinearity_is_not_shown():
    """To show it would evaluate it, which a traced function cannot."""
    scaled = functools.partial(mx.multiply, mx.ones((4, 6)))
    layer = RNN(3, 6, nonlinearity=scaled)
    texts = []
    mx.compile(lambda x: texts.append(str(layer.plan(x))) or x)(mx.zeros((4, 5, 3)))
    assert "partial" in texts[0] and "\n" not in texts[0]


def test_number_of_threads():
    mlx_recurrent.set_num_threads(3)
    assert mlx_recurrent.get_num_threads() == 3
    mlx_recurrent.set_num_threads(10**30)
    assert mlx_recurrent.get_num_threads() == 256
    # Memory is taken for the threads that there are, not for those asked for.
    mx.eval(RNN(64, 256)(mx.zeros((300, 20, 64))))


@pytest.mark.parametrize(
    "n, error", [(0, ValueError), (-2, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_number_of_threads_that_is_none(n, error):
    with pytest.raises(error, match=r"^n must be"):
        mlx_recurrent.set_num_threads(n)


class TestSeveralLayers:
    def test_each_has_its_own(self, rng):
        layers = [RNN(4, 6), RNN(6, 6, nonlinearity=mx.sin), RNN(6, 6)]
        model, x = Stack(layers), draw(rng, (2, 9, 4), mx.float32)
        plan, h = model.plan(x, lengths=[9, 2]), x
        assert plan.path == "traced" and plan.isa is plan.threads is None
        for i, layer in enumerate(layers):
            expected = layer.plan(h, lengths=[9, 2])
            assert plan.parts[f"layers[{i}]"] == expected
            assert f"layers[{i}]: {expected}" in str(plan).split("\n")
            assert f"layers[{i}]: {expected.reason}" in plan.reason
            h = layer(h)
        assert Stack(layers[::2]).plan(x).path == "native"
        layers[1].nonlinearity = nn.Softmax()
        assert model.plan(x).path == "composed"
        with mlx_recurrent.exporting():
            assert Stack(layers[::2]).plan(x).path == "composed"

    def test_what_a_layer_gives_is_what_the_next_is_asked(self, monkeypatch):
        """Its rows, its length and its dtype, also with residual and dropout."""
        given = []
        found = RNN.plan

        def plan(self, x, *rest, **keywords):
            given.append((x.shape, x.dtype, keywords))
            return found(self, x, *rest, **keywords)

        monkeypatch.setattr(RNN, "plan", plan)
        model = Stack.build(4, 4, 3, dropout=0.5, residual=True)
        model.layers[1].set_dtype(mx.float16)
        for L in (0, 1, 7):
            given.clear()
            x = mx.zeros((L, 4), mx.float16)
            hidden = [mx.zeros((5, 4)), None, None]
            model.plan(x, hidden, reverse=True, return_state="only", return_all=True)
            shapes = [(L, 4), (5, L, 4), (5, L, 4)]
            assert [shape for shape, _, _ in given] == shapes
            assert [d for _, d, _ in given] == [mx.float16, mx.float32, mx.float32]
            assert [k["return_state"] for _, _, k in given] == [True, True, "only"]
            assert all(k["reverse"] is True for _, _, k in given)

    def test_both_directions_and_nested(self, rng):
        both = Bidirectional(RNN(4, 3), RNN(4, 3, nonlinearity=nn.Softmax()))
        model = Stack([both, Stack([Reversed(RNN(6, 6)), RNN(6, 5)])])
        x = draw(rng, (2, 7, 4), mx.float32)
        plan = model.plan(x, lengths=[7, 0])
        assert plan.path == "composed"
        lines = str(plan).split("\n")
        names = ["layers[0].forward", "layers[0].backward"]
        names += ["layers[1].layers[0]", "layers[1].layers[1]"]
        assert [line.split(": ")[0] for line in lines] == names
        paths = ["Native", "Composed", "Native", "Native"]
        assert [line.split(": ")[1].split()[0] for line in lines] == paths
        one = both.plan(x, (None, mx.zeros((2, 3))), return_state=True)
        assert one.parts["forward"].path == "native" and one.path == "composed"
        assert hash(one.parts["forward"]) == hash(both.forward.plan(x))

    def test_it_draws_and_changes_nothing(self, rng):
        f = lambda a: a + mx.random.normal(a.shape)  # noqa: E731
        model = Stack([RNN(4, 4, nonlinearity=f), RNN(4, 4, zoneout=0.5)], dropout=0.5)
        x = draw(rng, (2, 7, 4), mx.float32)
        before = model.plan(x)
        mx.random.seed(3)
        expected = model(x)
        mx.random.seed(3)
        assert model.plan(x) == before and model.training
        assert mx.array_equal(model(x), expected)

    def test_errors(self):
        model, x = Stack.build(4, 6, 2), mx.zeros((2, 7, 4))
        for keywords, error, words in (
            ({"hidden": mx.zeros(6)}, TypeError, "hidden must be a list"),
            ({"hidden": [None, mx.zeros(5)]}, ValueError, "hidden must have shape"),
            ({"lengths": [8, 1]}, ValueError, "lengths must be from 0 to L = 7"),
            ({"return_state": "all"}, ValueError, "return_state must be"),
            ({"return_all": 1}, TypeError, "return_all must be a bool"),
        ):
            with pytest.raises(error, match=words):
                model.plan(x, **keywords)
        with pytest.raises(ValueError, match="x must have shape"):
            model.plan(x[..., 1:])
        for both in (Bidirectional(RNN(4, 6)), Stack([Bidirectional(RNN(4, 6))])):
            with pytest.raises((TypeError, ValueError), match="reverse"):
                both.plan(x, reverse=True)
        with pytest.raises(TypeError, match="forward must have the method plan"):
            Bidirectional(nn.RNN(4, 6), RNN(4, 6)).plan(x)
