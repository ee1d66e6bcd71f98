"""Parameters, inputs and the two implementations that tests compare."""

import os
import zlib
from dataclasses import dataclass, replace

# The reference's products are small: several threads of NumPy's would only wait.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_recurrent
import reference
from machines import TwoStreams
from mlx_recurrent.functional import devices
from tolerances import wide

DTYPES = [mx.float32, mx.float64, mx.float16, mx.bfloat16]
ACTIVATIONS = ["tanh", "relu", "sigmoid", "identity"]
ARGUMENTS = ["x", "Wxh", "Whh", "bias", "hidden"]


def sigmoid(a):
    # MLX's own has the precision of float32 also in float64.
    return 0.5 + 0.5 * mx.tanh(0.5 * a) if a.dtype == mx.float64 else mx.sigmoid(a)


# What is recognised by the native path. Upstream takes modules without parameters for
# false and runs tanh, so upstream gets a function of the same values.
NATIVE = {
    "tanh": None,
    "relu": nn.relu,
    "sigmoid": mx.sigmoid,
    "identity": nn.Identity(),
}
UPSTREAM = {
    "tanh": mx.tanh,
    "relu": lambda a: mx.maximum(a, 0),
    "sigmoid": sigmoid,
    "identity": lambda a: a,
}
# The same functions for the traced path, which the native path does not know.
TRACED = {name: (lambda a, f=f: f(a)) for name, f in UPSTREAM.items()}


def unreadable(f):
    """The same function for the composed path: an operation of it cannot be traced."""
    return lambda a: mx.squeeze(mx.expand_dims(f(a), 0), 0)


COMPOSED = {name: unreadable(f) for name, f in UPSTREAM.items()}

# N, L, D, H: every column has every size around the vector widths.
SHAPES = [
    (1, 257, 8, 100),
    (7, 64, 100, 15),
    (8, 33, 1, 64),
    (15, 31, 64, 33),
    (16, 100, 7, 8),
    (17, 17, 257, 31),
    (31, 16, 15, 257),
    (33, 15, 31, 16),
    (64, 7, 16, 17),
    (100, 8, 17, 7),
    (257, 1, 33, 1),
    (1, 1, 1, 1),
    (1, 33, 64, 257),
    (1, 7, 257, 100),
    (64, 1, 100, 100),
    (2, 9, 16, 16),
]


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=0, help="draw other inputs for every test"
    )
    parser.addoption(
        "--gpu",
        action="store_true",
        help="every call begins on the GPU, or a stream in its place, and moves",
    )


def name_of(value):
    """Test ids: a dtype by its name, a shape as 1-257-8-100."""
    if isinstance(value, mx.Dtype):
        return str(value).rpartition(".")[2]
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "scalar"
    return None


def pytest_make_parametrize_id(config, val, argname):
    return name_of(val)


def pytest_generate_tests(metafunc):
    """A test with the argument ``way`` runs for each cell on each of its paths."""
    if "way" in metafunc.fixturenames:
        from optional import WAYS

        metafunc.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(autouse=True)
def seed(request):
    """A seed of each test's own; pytest shows the line below when the test fails."""
    test = request.node.nodeid.rpartition("/")[2]
    number = zlib.crc32(f"{test} {request.config.getoption('seed')}".encode())
    print(f"seed {number} (NumPy and MLX)")
    mx.random.seed(number)
    return number


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def cpu_and_threads(request):
    """The kernels under test are the CPU's; a test may change the threads."""
    device, threads = mx.default_device(), mlx_recurrent.get_num_threads()
    mx.set_default_device(mx.cpu)
    if request.config.getoption("--gpu"):
        request.getfixturevalue("machine")
        mlx_recurrent.set_placement("cpu")
    yield
    mlx_recurrent.set_placement("auto")
    mx.set_default_device(device)
    mlx_recurrent.set_num_threads(threads)


@pytest.fixture
def machine(monkeypatch):
    """A machine whose default stream is not where the kernels run."""
    if mx.metal.is_available():
        mx.set_default_device(mx.gpu)
    else:
        monkeypatch.setattr(devices, "_here", TwoStreams())
    return devices.here()


def array(values, dtype):
    """An evaluated MLX array of rounded values."""
    values = np.array(values, np.float64, order="C")  # MLX takes no negative stride
    a = mx.array(values, dtype=mx.float64).astype(dtype, stream=mx.cpu)
    mx.eval(a)
    return a


def draw(rng, shape, dtype, std=1.0):
    return array(std * rng.standard_normal(shape), dtype)


def neighbour(rng, a):
    """Nearly the same numbers: as well conditioned, and all roundings are others."""
    with np.errstate(invalid="ignore"):  # padding may hold NaN of every kind
        return array(wide(a) * (1 + rng.uniform(-0.01, 0.01, a.shape)), a.dtype)


@dataclass(frozen=True)
class Case:
    """The inputs of one call; bias and hidden may be None."""

    activation: str
    x: mx.array
    Wxh: mx.array
    Whh: mx.array
    bias: mx.array | None
    hidden: mx.array | None

    @property
    def arrays(self):
        """The arrays that are given, by name."""
        values = {name: getattr(self, name) for name in ARGUMENTS}
        return {name: a for name, a in values.items() if a is not None}

    @property
    def truth(self):
        """The five inputs of the reference."""
        return [
            None if a is None else wide(a)
            for a in (getattr(self, name) for name in ARGUMENTS)
        ]

    def states(self):
        return reference.rnn(*self.truth, self.activation)

    def gradients(self, d_states=None, d_last=None):
        """The reference's gradients, by name."""
        grads = reference.rnn_grad(
            *self.truth,
            self.activation,
            None if d_states is None else wide(d_states),
            None if d_last is None else wide(d_last),
        )
        return {n: g for n, g in zip(ARGUMENTS, grads, strict=True) if g is not None}

    def of(self, **arrays):
        return replace(self, **arrays)


def case(
    rng,
    shape=(3, 6, 5, 8),
    dtype=mx.float32,
    activation="tanh",
    bias=True,
    hidden=True,
    std=1.0,
    gain=1.0,
):
    """Inputs for shape (*lead, L, D, H): weights of spectral radius about ``gain``."""
    *lead, L, D, H = shape
    return Case(
        activation,
        draw(rng, (*lead, L, D), dtype, std),
        draw(rng, (H, D), dtype, gain / np.sqrt(D)),
        draw(rng, (H, H), dtype, gain / np.sqrt(H)),
        draw(rng, (H,), dtype, 0.5) if bias else None,
        draw(rng, (*lead, H), dtype, 0.5) if hidden else None,
    )


def smooth(rng, *args, **kwargs):
    """A case without a relu near zero, where a rounding decides the derivative.

    The first feature turns the units on and off, by many times what the others do.
    """
    problem = case(rng, *args, **kwargs)
    if problem.activation != "relu":
        return problem
    x, Wxh = wide(problem.x), 0.3 * wide(problem.Wxh)
    x[..., 0] = np.sign(x[..., 0] + 1e-9)
    Wxh[:, 0] = 4 * np.sign(Wxh[:, 0] + 1e-9)
    return problem.of(
        x=array(x, problem.x.dtype),
        Wxh=array(Wxh, problem.x.dtype),
        **{
            name: problem.arrays[name] * 0.3
            for name in ("Whh", "bias", "hidden")
            if name in problem.arrays
        },
    )


def ours(activation, x, Wxh, Whh, bias=None, hidden=None, **keywords):
    """The product on the native path."""
    return mlx_recurrent.rnn(
        x, Wxh, Whh, bias, hidden, nonlinearity=NATIVE[activation], **keywords
    )


def traced(activation, x, Wxh, Whh, bias=None, hidden=None, **keywords):
    """The product on the traced path."""
    return mlx_recurrent.rnn(
        x, Wxh, Whh, bias, hidden, nonlinearity=TRACED[activation], **keywords
    )


def composed(activation, x, Wxh, Whh, bias=None, hidden=None, **keywords):
    """The product on the composed path."""
    return mlx_recurrent.rnn(
        x, Wxh, Whh, bias, hidden, nonlinearity=COMPOSED[activation], **keywords
    )


@pytest.fixture(params=[ours, traced, composed], ids=lambda run: run.__name__)
def path(request):
    """The product on each path: a function of the name of an activation and arrays."""
    return request.param


def upstream_layer(x, Wxh, Whh, bias=None, nonlinearity=None):
    """An ``mlx.nn.RNN`` with these weights, made without drawing random numbers."""
    layer = nn.RNN.__new__(nn.RNN)
    nn.Module.__init__(layer)
    layer.nonlinearity = mx.tanh if nonlinearity is None else nonlinearity
    layer.hidden_size = Whh.shape[0]
    layer.Wxh, layer.Whh, layer.bias = Wxh, Whh, bias
    return layer


def upstream(activation, x, Wxh, Whh, bias=None, hidden=None):
    """``mlx.nn.RNN`` as installed."""
    return upstream_layer(x, Wxh, Whh, bias, UPSTREAM[activation])(x, hidden)


def call(run, case, **keywords):
    """Run ours, traced, composed or upstream on a case."""
    return run(case.activation, **case.arrays, **keywords)


def gradients(run, case, cotangent, names=None, last=None, **keywords):
    """Gradients by name of sum(cotangent * states) + sum(last * final state)."""
    names = list(case.arrays) if names is None else names

    def function(*values):
        states = run(
            case.activation,
            **{**case.arrays, **dict(zip(names, values, strict=True))},
            **keywords,
        )
        return states if last is None else [states, states[..., -1, :]]

    cotangents = [cotangent] if last is None else [cotangent, last]
    _, grads = mx.vjp(function, [case.arrays[n] for n in names], cotangents)
    mx.eval(grads)
    return dict(zip(names, grads, strict=True))


def poison(*arrays):
    """Leave NaN in freed buffers of these arrays' sizes, for the next call to reuse."""
    mx.clear_cache()
    nans = [mx.full(a.shape, float("nan"), a.dtype) for a in arrays for _ in range(3)]
    mx.eval(nans)


def _padded(v):
    """v inside a larger array of NaN."""
    return np.pad(v, [(2, 1)] * v.ndim, constant_values=np.nan)


def _time_major(v, dtype):
    if v.ndim < 3:
        return array(v, dtype)
    return array(v.swapaxes(-3, -2), dtype).swapaxes(-3, -2)


def _gaps(v):
    """v at every second place of an array of NaN."""
    wide_v = np.full([2 * n for n in v.shape], np.nan)
    wide_v[tuple(slice(None, None, 2) for _ in v.shape)] = v
    return wide_v


# Each takes values of at least one axis and gives an array that is a view.
LAYOUTS = {
    "time_major": _time_major,
    "features_first": lambda v, d: array(v.T, d).T,
    "inside": lambda v, d: array(_padded(v), d)[(slice(2, -1),) * v.ndim],
    "gaps": lambda v, d: array(_gaps(v), d)[(slice(None, None, 2),) * v.ndim],
    "steps_reversed": lambda v, d: (
        array(v[..., ::-1, :], d)[..., ::-1, :] if v.ndim > 1 else array(v, d)
    ),
    "features_reversed": lambda v, d: array(v[..., ::-1], d)[..., ::-1],
    "rows_reversed": lambda v, d: array(v[::-1], d)[::-1],
    "one_row": lambda v, d: mx.broadcast_to(array(v[:1], d), v.shape),
    "one_column": lambda v, d: mx.broadcast_to(array(v[..., :1], d), v.shape),
    "one_step": lambda v, d: (
        mx.broadcast_to(array(v[..., :1, :], d), v.shape) if v.ndim > 1 else array(v, d)
    ),
}


def laid_out(layout, a):
    """The values of an MLX array in another layout (a broadcast repeats some)."""
    view = LAYOUTS[layout](wide(a).astype(np.float64), a.dtype)
    mx.eval(view)
    return view
