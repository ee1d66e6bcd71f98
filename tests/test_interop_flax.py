"""Layers made of Flax's parameters, and those parameters of layers."""

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from conftest import DTYPES, draw
from interchange import check, equal_weights, states_for
from mlx_recurrent import GRU, LSTM, RNN, Bidirectional, Stack
from mlx_recurrent.interop import from_flax, to_flax
from networks import in_dtype
from tolerances import agree

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("flax", reason="Flax is not installed")

import flax.linen as nn  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

N, L, D, H = 3, 7, 5, 6


def rnn(size=H, cell=nn.SimpleCell, **options):
    return nn.RNN(cell(size, **options))


def shapes_of(module):
    """What the module would be initialised with, without XLA's taking its time."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.ones((N, L, D)))


def drawn(rng, shape, dtype):
    return jnp.asarray((0.4 * rng.standard_normal(shape)).astype(dtype))


def initial(rng, module):
    return jax.tree_util.tree_map(
        lambda a: drawn(rng, a.shape, a.dtype), shapes_of(module)
    )["params"]


def runner(module, params, layer, lengths=None):
    """The module with its parameters, as `check` calls it."""
    lengths = None if lengths is None else jnp.array(lengths)
    both = isinstance(module, nn.Bidirectional)
    one = layer.forward if both else layer

    def carried(states):
        """A cell's carry of our states, or back: an LSTM's are (c, h)."""
        if not isinstance(one, LSTM):
            return tuple(states) if both else states[0]
        pairs = [tuple(states[i : i + 2][::-1]) for i in range(0, len(states), 2)]
        return tuple(pairs) if both else pairs[0]

    def run(x, hidden, c, last):
        def total(params, x, hidden):
            states, outputs = module.apply(
                {"params": params},
                x,
                initial_carry=carried(hidden),
                seq_lengths=lengths,
                return_carry=True,
            )
            states = states if both else (states,)
            if isinstance(one, LSTM):
                states = [a for c, h in states for a in (h, c)]
            loss = (outputs * c).sum()
            for state, factor in zip(states, last, strict=True):
                loss = loss + (state * factor).sum()
            return loss, (outputs, states)

        run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
        gradients, (outputs, states) = run(params, x, tuple(hidden))
        # The gradients have the tree of the parameters: so they can be read alike.
        named = dict(tree_flatten(from_flax(gradients[0]).parameters()))
        return (
            np.array(outputs),
            [np.array(s) for s in states],
            {name: np.array(a) for name, a in {"x": gradients[1], **named}.items()},
        )

    return run


ACTIVATIONS = {
    "tanh": ({}, None),
    "relu": ({"activation_fn": nn.relu}, mlx_nn.relu),
    "identity": ({"activation_fn": lambda a: a}, mlx_nn.Identity()),
}


@pytest.mark.parametrize(
    "lengths, std",
    [(None, 1.0), ([7, 1, 4], 1.0), ([7, 1, 4], 10.0)],
    ids=["random", "seq_lengths", "saturating"],
)
@pytest.mark.parametrize(
    "both, activation",
    [
        *((False, "tanh"), (False, "relu"), (True, "identity"), (False, nn.GRUCell)),
        *((True, nn.GRUCell), (False, nn.LSTMCell), (True, nn.OptimizedLSTMCell)),
    ],
)
def test_agreement(rng, both, activation, lengths, std):
    options, nonlinearity = {"cell": activation}, None
    if isinstance(activation, str):
        options, nonlinearity = ACTIVATIONS[activation]
    activation = activation if isinstance(activation, str) else "tanh"
    module = rnn(**options)
    if both:
        module = nn.Bidirectional(module, rnn(**options))
    params = initial(rng, module)
    layer = from_flax(params, nonlinearity=nonlinearity)
    x = draw(rng, (N, L, D), mx.float32, std)
    hidden = states_for(rng, layer, N)
    run = runner(module, params, layer, lengths)
    check(rng, layer, x, hidden, run, lengths, activation=activation)


@pytest.mark.parametrize("cell", [nn.SimpleCell, nn.GRUCell, nn.LSTMCell])
def test_float64(rng, cell):
    with jax.enable_x64(True):
        module = rnn(cell=cell, param_dtype=jnp.float64)
        params = initial(rng, module)
        layer = from_flax(params)
        assert {a.dtype for _, a in tree_flatten(layer.parameters())} == {mx.float64}
        x = draw(rng, (N, L, D), mx.float64)
        hidden = states_for(rng, layer, N, mx.float64)
        check(rng, layer, x, hidden, runner(module, params, layer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: RNN(D, H),
        lambda: Bidirectional(RNN(D, H)),
        lambda: Stack([RNN(D, 4), Bidirectional(RNN(4, H))]),
        lambda: GRU(D, H),
        lambda: LSTM(D, H),
        lambda: Stack([Bidirectional(LSTM(D, 4)), GRU(8, H)]),
    ],
    ids=["one", "both ways", "stack", "GRU", "LSTM", "stack of both"],
)
@pytest.mark.parametrize("names", ["linen", "nnx"])
def test_round_trip(layer, names, dtype):
    layer = in_dtype(layer(), dtype)
    if names == "nnx":
        without_bhn(layer)
    tree = to_flax(layer, nnx=names == "nnx")
    equal_weights(from_flax(tree), layer)
    equal_weights(from_flax({"params": tree}), layer)
    if dtype == mx.bfloat16:  # NumPy's through JAX
        equal_weights(from_flax(jax.tree_util.tree_map(jnp.asarray, tree)), layer)


def without_bhn(model):
    """What the GRU of nnx does not have is zero."""
    for layer in model.modules():
        if isinstance(layer, GRU):
            layer.bhn = mx.zeros_like(layer.bhn)
    return model


def applied(module, params, x):
    return mx.array(np.array(jax.jit(module.apply)({"params": params}, x)))


def test_linen_runs_what_is_written(rng):
    x = draw(rng, (N, L, D), mx.float32)
    theirs = np.array(x)
    layer = RNN(D, H, bias=False)
    tree = to_flax(layer)
    agree(layer(x), applied(rnn(), tree, theirs))
    step = nn.SimpleCell(H).apply(
        {"params": tree["cell"]}, np.zeros((N, H), np.float32), theirs[:, 0]
    )
    agree(layer.step(x[:, 0]), mx.array(np.array(step[1])))
    for one, module in (
        (GRU(D, H), rnn(cell=nn.GRUCell)),
        (GRU(D, H, bias=False), rnn(cell=nn.GRUCell)),
        (LSTM(D, H), rnn(cell=nn.LSTMCell)),
        (LSTM(D, H, bias=False), rnn(cell=nn.OptimizedLSTMCell)),
    ):
        outputs, _ = one(x, return_state=True)
        agree(outputs, applied(module, to_flax(one), theirs))
        assert not isinstance(one, LSTM) or sorted(to_flax(one)["cell"]["hf"]) == [
            "bias",
            "kernel",
        ]
    stack = Stack([LSTM(D, 4), Bidirectional(RNN(4, H))])
    module = nn.Sequential([rnn(4, nn.LSTMCell), nn.Bidirectional(rnn(), rnn())])
    agree(stack(x), applied(module, to_flax(stack), theirs))
    shapes = jax.tree_util.tree_map(lambda a: a.shape, shapes_of(module))
    assert shapes == {
        "params": jax.tree_util.tree_map(lambda a: a.shape, to_flax(stack))
    }


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = rnn(4)(x)
        x = nn.Bidirectional(rnn(), rnn())(x)
        return nn.Dense(2)(x)


def test_cells_of_a_model(rng):
    """Flax names them in the order of their making."""
    model = Model()
    params = initial(rng, model)
    stack = Stack(
        [
            from_flax(params["SimpleCell_0"]),
            Bidirectional(
                from_flax(params["SimpleCell_1"]), from_flax(params["SimpleCell_2"])
            ),
        ]
    )
    x = draw(rng, (N, L, D), mx.float32)
    mine = stack(x) @ mx.array(np.array(params["Dense_0"]["kernel"]))
    mine = mine + mx.array(np.array(params["Dense_0"]["bias"]))
    agree(mine, applied(model, params, np.array(x)))
    two = from_flax([params["SimpleCell_0"], params["SimpleCell_1"]])
    assert isinstance(two, Stack) and len(two.layers) == 2


def simple(features=D, size=H, kind=nnx.SimpleCell, **options):
    def init(key, shape, dtype):
        return drawn(np.random.default_rng(shape), shape, dtype)

    return kind(
        features,
        size,
        kernel_init=init,
        recurrent_kernel_init=init,
        bias_init=init,
        rngs=nnx.Rngs(0),
        **options,
    )


def outputs_of(module, x):
    return mx.array(np.array(nnx.jit(lambda m, x: m(x))(module, np.array(x))))


def test_nnx_activations():
    x = mx.ones((1, D))
    for theirs, ours in (
        (jnp.tanh, mx.tanh),
        (nnx.relu, mlx_nn.relu),
        (nnx.sigmoid, mx.sigmoid),
        (nnx.identity, lambda a: a),
    ):
        layer = from_flax(simple(activation_fn=theirs))
        agree(layer.step(x), ours(x @ layer.Wxh.T + layer.bias))


def test_nnx_cells(rng):
    module = nnx.RNN(simple(activation_fn=nnx.relu))
    x = draw(rng, (N, L, D), mx.float32)
    layer = from_flax(module)
    equal_weights(from_flax(module.cell), layer)
    agree(layer(x), outputs_of(module, x))
    # Its state, with that of random numbers, and plain dictionaries.
    for state in (nnx.state(module), nnx.to_pure_dict(nnx.state(module, nnx.Param))):
        equal_weights(from_flax(state), layer)


@pytest.mark.parametrize("kind", [nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_gated_nnx_cells(rng, kind):
    module = nnx.RNN(simple(kind=kind))
    x = draw(rng, (N, L, D), mx.float32)
    layer = from_flax(module)
    outputs, _ = layer(x, return_state=True)
    agree(outputs, outputs_of(module, x))
    equal_weights(from_flax(nnx.state(module)), layer)
    if kind is nnx.GRUCell:
        assert not layer.bhn.any()
    again = without_bhn(type(layer)(D, H))
    if kind is not nnx.OptimizedLSTMCell:  # of which LSTMCell's names are not
        nnx.update(module, to_flax(again, nnx=True))
        agree(again(x, return_state=True)[0], outputs_of(module, x))


def test_trained_cells(rng):
    """Some steps of training in Flax, and the same numbers here."""
    module = rnn(cell=nn.LSTMCell)
    params = initial(rng, module)
    x, y = (jnp.asarray(draw(rng, (N, L, n), mx.float32)) for n in (D, H))
    loss = jax.jit(
        jax.grad(lambda p: ((module.apply({"params": p}, x) - y) ** 2).sum())
    )
    for _ in range(3):
        params = jax.tree_util.tree_map(lambda p, g: p - 0.1 * g, params, loss(params))
    layer = from_flax(params)
    outputs, _ = layer(mx.array(np.array(x)), return_state=True)
    agree(outputs, applied(module, params, x))
    equal_weights(from_flax(to_flax(layer)), layer)


def test_nnx_modules(rng):
    def both(**options):
        return nnx.Bidirectional(
            nnx.RNN(simple(4)), nnx.RNN(simple(4), reverse=True), **options
        )

    x = draw(rng, (N, L, D), mx.float32)
    module = nnx.Sequential(nnx.RNN(simple(D, 4)), both())
    layer = from_flax(module)
    agree(layer(x), outputs_of(module, x))
    equal_weights(from_flax(nnx.state(module)), layer)
    layer = Stack([RNN(D, 4), Bidirectional(RNN(4, H))])
    nnx.update(module, to_flax(layer, nnx=True))
    agree(layer(x), outputs_of(module, x))
    summed = both(merge_fn=jnp.add)
    z = draw(rng, (N, L, 4), mx.float32)
    agree(from_flax(summed, merge="sum")(z), outputs_of(summed, z))
    own = nnx.RNN(simple(activation_fn=nnx.softplus))
    mine = from_flax(own, nonlinearity=mlx_nn.softplus)
    agree(mine(x), outputs_of(own, x))


def cell(**changes):
    tree = to_flax(RNN(D, H))["cell"]
    for path, value in changes.items():
        part, _, leaf = path.partition("_")
        tree[part][leaf] = value
    return tree


def rngs():
    return nnx.Rngs(0)


def starting(init):
    """A cell with what `nnx` warns of."""
    with pytest.warns(UserWarning, match="carry_init is provided"):
        return simple(carry_init=init)


def adapted(**parts):
    made = simple()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def test_carry_init_of_zeros():
    made = starting(nnx.initializers.zeros_init())
    equal_weights(from_flax(made), from_flax(nnx.state(made)))


class Other(nnx.SimpleCell):
    pass


@pytest.mark.parametrize(
    "params, error, message",
    [
        (
            lambda: nnx.RNN(simple(kind=nnx.GRUCell, gate_fn=nnx.tanh)),
            ValueError,
            r"params\.cell has the gate_fn tanh, where a layer of that kind has s",
        ),
        (
            lambda: nnx.RNN(simple(kind=nnx.LSTMCell, activation_fn=nnx.relu)),
            ValueError,
            r"params\.cell has the activation_fn relu, where a layer of that kind",
        ),
        (
            lambda: nnx.eval_shape(lambda: Other(D, H, rngs=nnx.Rngs(0))),
            TypeError,
            r"but is \S+\.Other \(",
        ),
        (
            lambda: nn.SimpleCell(H),
            TypeError,
            r"but is flax\.linen\S+\.SimpleCell \(a module of flax\.linen does not",
        ),
        (lambda: "params.msgpack", TypeError, r"params must be .* but is str"),
        (
            lambda: nnx.Bidirectional(simple(), simple()),
            TypeError,
            r"params\.forward_rnn must be a flax\.nnx\.RNN, but is flax\S+\.SimpleCell",
        ),
        (
            lambda: nnx.RNN(simple(residual=True)),
            ValueError,
            r"params\.cell has residual=True, which a layer does not have",
        ),
        (
            lambda: nnx.RNN(starting(nnx.initializers.ones)),
            ValueError,
            r"params\.cell has the carry_init ones, but a layer starts from zeros",
        ),
        (
            lambda: adapted(dense_h=nnx.LoRALinear(H, H, lora_rank=2, rngs=rngs())),
            TypeError,
            r"params\.dense_h must be a flax\.nnx\.Linear, but is \S+\.LoRALinear$",
        ),
        (
            lambda: adapted(dense_h=nnx.Linear(H, H, rngs=rngs())),
            ValueError,
            r"params\.dense_h must hold kernel as in Flax's SimpleCell",
        ),
        (
            lambda: nnx.Sequential(twice := nnx.RNN(simple(H, H)), twice),
            ValueError,
            r"params\.layers\[1\]\.cell\.dense_i\.kernel must belong to one layer, but "
            r"is params\.layers\[0\]\.cell\.dense_i\.kernel too",
        ),
        (
            lambda: nnx.Bidirectional(twice := nnx.RNN(simple()), twice),
            ValueError,
            r"params\.backward_rnn\.cell\.dense_i\.kernel must belong to one layer",
        ),
        (
            lambda: nnx.RNN(simple(), reverse=True),
            ValueError,
            r"params has reverse=True, which is an argument of the call here",
        ),
        (
            lambda: simple(activation_fn=nnx.gelu),
            ValueError,
            r"params has the activation_fn gelu, which is not tanh, relu, sigmoid or",
        ),
        (
            lambda: nnx.Bidirectional(
                nnx.RNN(simple()), nnx.RNN(simple()), merge_fn=jnp.add
            ),
            ValueError,
            r"params has the merge_fn add, which has no name here: give a",
        ),
        (
            lambda: shapes_of(nn.RNN(nn.MGUCell(H))),
            ValueError,
            r"params\['params'\]\['cell'\] must be the parameters of Flax's "
            r"SimpleCell, .* but holds 'hf', 'hn'",
        ),
        (
            lambda: to_flax(LSTM(D, H))["cell"] | {"ig": {"kernel": np.ones((D, 4))}},
            ValueError,
            r"params\['ig'\]\['kernel'\] must be \(5, 6\), but is \(5, 4\)",
        ),
        (
            lambda: to_flax(GRU(D, H))["cell"] | {"hz": {"bias": np.ones(H)}},
            ValueError,
            r"params\['hz'\] must hold kernel as in Flax's GRUCell, but",
        ),
        (
            lambda: shapes_of(Model()),
            ValueError,
            r"params\['params'\] must be .* but holds 'Dense_0', 'SimpleCell_0'",
        ),
        (lambda: {}, ValueError, "but holds nothing"),
        (lambda: {"layers_1": cell()}, ValueError, "but holds 'layers_1'"),
        (lambda: {"layers": {1: cell()}}, ValueError, "but holds 'layers'"),
        (lambda: {"layers": {"a": cell()}}, ValueError, "but holds 'layers'"),
        (
            lambda: {"cell": np.ones(3)},
            TypeError,
            r"params\['cell'\] must be a tree of",
        ),
        (lambda: [], ValueError, "layers must hold at least one layer"),
        (
            lambda: cell(h_bias=np.ones(H)),
            ValueError,
            r"params\['h'\] must hold kernel as in Flax's SimpleCell",
        ),
        (
            lambda: cell(h_kernel=np.ones((H, 4), np.float32)),
            ValueError,
            r"params\['h'\]\['kernel'\] must be \(6, 6\), but is \(6, 4\)",
        ),
        (
            lambda: cell(i_bias=np.ones(4, np.float32)),
            ValueError,
            r"params\['i'\]\['bias'\] must be \(6,\), but is \(4,\)",
        ),
        (
            lambda: cell(i_kernel=np.ones(4, np.float32)),
            ValueError,
            r"params\['i'\]\['kernel'\] must have two axes, but is \(4,\)",
        ),
        (
            lambda: cell(i_kernel=np.ones((D, H), np.int8)),
            ValueError,
            r"params\['i'\]\['kernel'\] must be float32, .* but is int8",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(params, error, message):
    with pytest.raises(error, match=message):
        from_flax(params())


def test_refused_nonlinearity():
    with pytest.raises(ValueError, match="nonlinearity must be None where every layer"):
        from_flax(simple(), nonlinearity=mlx_nn.gelu)


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (
            RNN(D, H, leak=0.5),
            ValueError,
            "layer has leak, which Flax's SimpleCell does not have",
        ),
        (
            Bidirectional(RNN(D, H), RNN(D, H, zoneout=0.5)),
            ValueError,
            r"layer\.backward has zoneout",
        ),
        (
            Stack([RNN(D, H), RNN(H, H, input_dropout=0.5)]),
            ValueError,
            r"layers\[1\] has input_dropout",
        ),
        (RNN(D, H, learn_hidden=True), ValueError, "layer has learn_hidden"),
        (
            Stack.build(D, H, 2, residual=True),
            ValueError,
            "layer has residual, which Flax's Sequential does not have",
        ),
        (Stack.build(D, H, 2, dropout=0.5), ValueError, "layer has dropout, which"),
        (mlx_nn.RNN(D, H), TypeError, r"layer must be an mlx_recurrent\.RNN, GRU or"),
        (
            GRU(D, H, reset_after=False),
            ValueError,
            "layer has reset_after=False, which Flax's GRUCell does not have",
        ),
        (LSTM(D, H, learn_hidden=True), ValueError, "which Flax's LSTMCell does not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_flax_does_not_have(layer, error, message):
    with pytest.raises(error, match=message):
        to_flax(layer)


def test_a_gru_that_nnx_does_not_have():
    with pytest.raises(
        ValueError, match=r"layer has bhn, which .* of flax.nnx does not"
    ):
        to_flax(GRU(D, H), nnx=True)


def test_refused_arguments():
    with pytest.raises(TypeError, match="nnx must be"):
        to_flax(RNN(D, H), nnx="yes")
