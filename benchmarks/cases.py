"""What is measured: shapes as data, named by the use they stand for.

Letters: ``N`` rows of the batch, ``L`` steps, ``D`` input and ``H`` hidden features.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the command's options need the names alone
    import numpy as np


class Case(NamedTuple):
    """The shapes of one layer with a bias."""

    name: str
    N: int
    L: int
    D: int
    H: int

    @property
    def shape(self) -> str:
        """``N, L, D, H`` as text."""
        return ", ".join(map(str, self[1:]))


class Cell(NamedTuple):
    """What libraries know of a layer, by the name of its class and ONNX's operator.

    Args:
        shapes (callable): The shapes of its parameters, by MLX's names, for D and H.
        sides (callable): What the parameters are for others, given what joins arrays of
            their kind: the weights of the input and of the state, and the biases of
            both, the last of which may be ``None``, all gate by gate as PyTorch has
            them.
        of_sides (callable): The parameters' gradients, of those of the sides that
            PyTorch is asked for.
        learns_state_bias (bool): Whether the state's bias is one of these.
        step (callable): The states after a step, with the functions of a module, from
            the pre-activations of the input and of the state, and the states before.
            The first is the output.
        states (int): How many states it has.
        onnx_gates, openvino_gates (tuple of int): Which of the gates these have in each
            place.
        functions (int): The elementary functions of a unit at a step.
        kept (int): The arrays of the output's size that training may keep.
        lacks (tuple of str): The options that it does not have.
        upstream_length (int): The longest sequence that it is trained on by
            ``mlx.nn``, in time quadratic in L: half a minute above this.
    """

    shapes: "Callable[[int, int], dict[str, tuple[int, ...]]]"
    sides: "Callable[..., tuple[Any, Any, Any, Any]]"
    of_sides: "Callable[..., tuple[Any, ...]]"
    learns_state_bias: bool
    step: "Callable[..., tuple[Any, ...]]"
    states: int
    onnx_gates: tuple[int, ...]
    openvino_gates: tuple[int, ...]
    functions: int
    kept: int
    lacks: tuple[str, ...]
    upstream_length: int

    @property
    def gates(self) -> int:
        """How many gates there are, each with H rows of the weights."""
        return len(self.onnx_gates)


def _slabs(a: Any, gates: int) -> list[Any]:
    """The parts of an array's last axis, a gate's each."""
    H = a.shape[-1] // gates
    return [a[..., i * H : (i + 1) * H] for i in range(gates)]


def _gru_sides(
    join: "Callable[[list[Any]], Any]", Wx: Any, Wh: Any, b: Any, bhn: Any
) -> tuple[Any, Any, Any, Any]:
    """The state's bias is that of the new gate alone."""
    r, z, _ = _slabs(b, 3)
    return Wx, Wh, b, join([0 * r, 0 * z, bhn])


def _gru_step(math: Any, z: Any, u: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
    (zr, zk, zn), (ur, uk, un) = _slabs(z, 3), _slabs(u, 3)
    keep = math.sigmoid(zk + uk)
    new = math.tanh(zn + math.sigmoid(zr + ur) * un)
    return ((1 - keep) * new + keep * states[0],)


def _lstm_step(math: Any, z: Any, u: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
    i, f, g, o = _slabs(z + u, 4)
    c = math.sigmoid(f) * states[1] + math.sigmoid(i) * math.tanh(g)
    return math.sigmoid(o) * math.tanh(c), c


# A new cell is an entry here, and one of the reference (tests/reference/cells.py).
CELLS = {
    "RNN": Cell(
        shapes=lambda D, H: {"Wxh": (H, D), "Whh": (H, H), "bias": (H,)},
        sides=lambda join, Wxh, Whh, bias: (Wxh, Whh, bias, None),
        of_sides=lambda dWx, dWh, dbx: (dWx, dWh, dbx),
        learns_state_bias=False,
        step=lambda math, z, u, states: (math.tanh(z + u),),
        states=1,
        onnx_gates=(0,),
        openvino_gates=(0,),
        functions=1,
        kept=1,
        lacks=(),
        upstream_length=10_000,
    ),
    # Gates r, z, n in MLX and PyTorch; z, r, n in ONNX and OpenVINO.
    "GRU": Cell(
        shapes=lambda D, H: {
            "Wx": (3 * H, D),
            "Wh": (3 * H, H),
            "b": (3 * H,),
            "bhn": (H,),
        },
        sides=_gru_sides,
        of_sides=lambda dWx, dWh, dbx, dbh: (dWx, dWh, dbx, _slabs(dbh, 3)[2]),
        learns_state_bias=True,
        step=_gru_step,
        states=1,
        onnx_gates=(1, 0, 2),
        openvino_gates=(1, 0, 2),
        functions=3,
        kept=4,
        lacks=("leak",),
        upstream_length=3_000,
    ),
    # Gates i, f, g, o in MLX and PyTorch; i, o, f, g in ONNX; f, i, g, o in OpenVINO.
    "LSTM": Cell(
        shapes=lambda D, H: {"Wx": (4 * H, D), "Wh": (4 * H, H), "bias": (4 * H,)},
        sides=lambda join, Wx, Wh, bias: (Wx, Wh, bias, None),
        of_sides=lambda dWx, dWh, dbx: (dWx, dWh, dbx),
        learns_state_bias=False,
        step=_lstm_step,
        states=2,
        onnx_gates=(0, 3, 1, 2),
        openvino_gates=(1, 0, 2, 3),
        functions=5,
        # Its gates, and the cell state of every step.
        kept=5,
        lacks=("leak",),
        upstream_length=3_000,
    ),
}
RNN = "RNN"


class Work(NamedTuple):
    """One thing that is timed.

    Args:
        kind (str): ``"forward"``; ``"training"``, the vector-Jacobian product with
            respect to the weights; ``"kept"``, the same with the outputs held to its
            end; ``"call"``, the forward pass never evaluated;
            ``"matmul"`` or ``"linear"`` of ``(L, D)`` and ``(H, D)``; ``"addition"``;
            ``"stream"``, the next step, from the state that the last one left, or
            ``"step"``, the same by ``layer.step``; or one of ``TRANSFORMS``.
        case (Case): The shapes.
        dtype (str, optional): The type of every array. Default: ``"float32"``.
        tiny (str, optional): ``"states"`` or ``"deltas"`` are below the least normal
            number. Default: ``""``.
        threads (int, optional): Threads of this package's kernels; 0 leaves them.
            Default: ``0``.
        nonlinearity (str, optional): One of ``CALLABLES``. Default: ``"tanh"``.
        quantile (float, optional): Of the times of the calls of a turn: which one
            counts. Default: ``0.5``.
        option (str, optional): What sets it apart from one plain layer: ``"lengths"``,
            rows that end early; ``SKIPPING``, steps that do not count; one of
            ``NETWORKS``, ``REGULARISERS`` or ``WAYS``. Default: ``""``.
        cell (str, optional): One of ``CELLS``. Default: ``"RNN"``.
    """

    kind: str
    case: Case
    dtype: str = "float32"
    tiny: str = ""
    threads: int = 0
    nonlinearity: str = "tanh"
    quantile: float = 0.5
    option: str = ""
    cell: str = "RNN"

    @property
    def layer(self) -> Cell:
        """What the libraries know of the cell."""
        return CELLS[self.cell]

    def features(self) -> list[int]:
        """The input features of each layer."""
        D, H = self.case.D, self.case.H
        further = D if self.option == "bidirectional" else H
        return [D, *[further] * (self.layers - 1)]

    def parameters(self) -> list[str]:
        """The names of all layers' parameters: ``Wxh1`` is of the second one."""
        names = self.layer.shapes(1, 1)
        return [f"{name}{i or ''}" for i in range(self.layers) for name in names]

    def arrays(self) -> "dict[str, np.ndarray]":
        """Input, parameters and a cotangent of the result: equal in every process."""
        import numpy as np

        _, N, L, D, H = self.case
        rng = np.random.default_rng(0)
        bound = H**-0.5
        draw = {"x": rng.standard_normal((N, L, D))}
        for i, features in enumerate(self.features()):
            for name, shape in self.layer.shapes(features, H).items():
                draw[f"{name}{i or ''}"] = rng.uniform(-bound, bound, shape)
        if self.state_only:
            result = (N, H)
        else:
            result = (N, L, 2 * H if self.option == "bidirectional" else H)
        draw["cotangent"] = rng.standard_normal(result)
        if self.tiny == "states":
            draw["x"] *= 1e-39
            for name in self.parameters():
                if draw[name].ndim == 1:
                    draw[name] *= 0
        if self.tiny == "deltas":
            draw["cotangent"] *= 1e-39
        return {name: a.astype(np.float32) for name, a in draw.items()}

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return NETWORKS.get(self.option, 1)

    def weights(self) -> "list[list[np.ndarray]]":
        """The parameters of each layer."""
        arrays, count = self.arrays(), len(self.layer.shapes(1, 1))
        values = [arrays[name] for name in self.parameters()]
        return [values[i : i + count] for i in range(0, len(values), count)]

    def layer_arguments(self) -> dict[str, float]:
        """What the layer is made with, beside its sizes."""
        return REGULARISERS.get(self.option, {})

    def call_arguments(self) -> dict[str, Any]:
        """What the layer is called with, beside its input."""
        if self.option == "lengths":
            return {"lengths": self.lengths()}
        if self.option == SKIPPING:
            return {"mask": self.mask()}
        return WAYS.get(self.option, {})

    @property
    def state_only(self) -> bool:
        """Whether the result is the state after the last step alone."""
        return self.call_arguments().get("return_state") == "only"

    def lengths(self) -> "np.ndarray":
        """Steps of each row, from 1 on: a quarter of L on average, the longest L."""
        import numpy as np

        _, N, L, _, _ = self.case
        order = np.random.default_rng(3).permutation(N) + 1
        return np.ceil(L * (order / N) ** 3).astype(np.int32)

    def mask(self) -> "np.ndarray":
        """Which steps are not skipped: about three in four."""
        import numpy as np

        _, N, L, _, _ = self.case
        return np.random.default_rng(4).random((N, L)) < 0.75

    def directions(self) -> "dict[str, np.ndarray]":
        """What the Hessian of the weights is multiplied by."""
        import numpy as np

        rng = np.random.default_rng(1)
        return {
            name: rng.standard_normal(a.shape).astype(np.float32)
            for name, a in self.arrays().items()
            if name not in ("x", "cotangent")
        }

    def ensemble(self) -> "dict[str, np.ndarray]":
        """The weights of ``MEMBERS`` layers, stacked."""
        import numpy as np

        rng = np.random.default_rng(2)
        bound = self.case.H**-0.5
        return {
            name: rng.uniform(-bound, bound, (MEMBERS, *a.shape)).astype(np.float32)
            for name, a in self.directions().items()
        }


CASES = [
    Case("streaming control", 1, 128, 64, 64),
    Case("sensor stream", 1, 512, 256, 256),
    Case("small batch", 8, 256, 128, 128),
    Case("character model", 32, 128, 128, 256),
    Case("speech", 64, 256, 256, 512),
    Case("long, narrow", 16, 1024, 64, 64),
    Case("wide", 128, 64, 512, 1024),
    Case("wide, alone", 1, 2048, 512, 1024),
]
QUICK_CASES = [CASES[0], CASES[2]]

# Beside CASES: a batch of one with 512 hidden units, where the units are divided.
ALONE = Case("medium, alone", 1, 512, 256, 512)
# Half types against float32, and numbers below the least normal one.
TYPE_CASES = [ALONE, CASES[7]._replace(L=512), CASES[2], CASES[3]]

SIDES = [64, 128, 256, 512, 1024, 2048]
DECODE = Case("one step", 1, 1, 16, 64)
# A step of the first takes what a call does, of the second its weights' reading too.
STREAM_CALL = Case("stream, call", 1, 64, 4, 8)
STREAM_WEIGHTS = Case("stream, square", 1, 64, 128, 128)
STREAMING = [
    STREAM_CALL,
    Case("stream", 1, 64, 16, 64),
    STREAM_WEIGHTS,
    Case("stream, wider", 1, 64, 16, 256),
]

# A training step's time over these lengths shows whether it is linear in L.
LENGTH_CASE = Case("length", 1, 1, 32, 64)
LENGTHS = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000]

# What is done, by kind of work: derivatives, for the loss that is the sum of the states
# times the cotangent, and layers with weights of their own on one input.
DERIVATIVES = {
    "penalty": "gradient penalty: of the squared norm of the gradient of x",
    "hessian": "Hessian-vector product",
    "examples": "a gradient for each row: vmap of grad",
}
ENSEMBLES = {
    "ensemble": "8 layers: vmap over the weights",
    "calls": "8 layers: 8 calls",
}
TRANSFORMS = {**DERIVATIVES, **ENSEMBLES}
MEMBERS = 8
DERIVATIVE_CASE = Case("transforms", 16, 256, 128, 128)
ENSEMBLE_CASES = [
    Case("ensemble, alone", 1, 128, 64, 128),
    Case("ensemble", 32, 128, 64, 128),
]

# Functions that users write, as the tests name them, relative to tanh.
CALLABLES = [
    "tanh",
    "leaky_relu",
    "hard_tanh",
    "softsign",
    "silu",
    "gelu",
    "softplus",
    "sin",
    "clip_tanh",
]
CALLABLE_CASES = [
    Case("narrow, alone", 1, 128, 128, 128),
    Case("narrow", 32, 128, 128, 128),
    Case("broad, alone", 1, 128, 256, 256),
    Case("broad", 32, 128, 256, 256),
]

# Rows of different lengths in one batch.
LENGTHS_CASES = [
    Case("sentences", 64, 256, 128, 128),
    Case("recordings", 64, 256, 64, 256),
]

# The row of ours that runs every step.
PADDED = "padded"

# Several layers in one, with how many there are.
NETWORKS = {"bidirectional": 2, "depth": 3}
NETWORK_CASES = [
    Case("network, alone", 1, 256, 128, 128),
    Case("network", 32, 128, 128, 256),
]

# What a layer in training mode is made with, by name.
REGULARISERS = {
    "leak": {"leak": 0.5},
    "zoneout": {"zoneout": 0.1},
    "input dropout": {"input_dropout": 0.2},
    "recurrent dropout": {"recurrent_dropout": 0.2},
}
# Beside them: steps that are skipped, in any mode.
SKIPPING = "mask"
# The row without any.
PLAIN = "none"
REGULARISER_CASES = [CASES[3], CASES[5], CASES[1]]
# Of MLX's random state before the first call, from which masks are drawn.
SEED = 0

# Training on a sequence that is long, by what of it is used and how it is called.
EVERY = 1000
LONG_WAYS: dict[str, dict[str, Any]] = {
    "outputs": {},
    f"outputs, checkpoint_every={EVERY}": {"checkpoint_every": EVERY},
    "state": {"return_state": "only"},
    f"state, checkpoint_every={EVERY}": {
        "return_state": "only",
        "checkpoint_every": EVERY,
    },
    f"state, truncate_every={EVERY}": {
        "return_state": "only",
        "truncate_every": EVERY,
    },
}
# What is kept where a state in so many is, in sequences of so many steps and more: so
# much of what is kept where all are.
CHECKPOINTED, CHECKPOINTED_LENGTH, CHECKPOINTED_SHARE = "checkpoint_every=32", 1024, 0.1
# How a layer is called, by name.
WAYS: dict[str, dict[str, Any]] = {**LONG_WAYS, CHECKPOINTED: {"checkpoint_every": 32}}
LONG_CASE = Case("long", 1, 1_000_000, 32, 64)
LONG_LENGTHS = [100_000, 1_000_000]
# What is compared with the reference, which runs a step at a time: a few blocks.
LONG_JUDGED = 3_500

SECTIONS = {
    "forward": "the forward pass beside every peer",
    "training": "the vector-Jacobian product with respect to the weights",
    "threads": "one thread against all",
    "matmul": "the matrix product beside MLX's with OpenBLAS",
    "decode": "one evaluated step beside an evaluated addition",
    "streaming": "one step after another in real time, with its 99th percentile",
    "memory": "extra memory of the forward pass and of training",
    "call": "from Python to the primitive",
    "length": "training over the length, beside mlx.nn",
    "types": "half types and denormal numbers relative to float32",
    "transforms": "derivatives of derivatives, gradients of each row, ensembles",
    "callables": "other nonlinearities relative to tanh",
    "lengths": "rows that end early, beside the whole batch and every peer",
    "bidirectional": "both directions, beside every peer",
    "depth": "three layers, beside every peer",
    "regularisers": "leak, zoneout, dropouts and skipped steps relative to none",
    "long": "training over a million steps: time and memory",
}
PASSES = ("forward", "training")
# All others are of every cell.
RNN_ALONE = ("matmul", "callables")


def cells_of(section: str, cells: list[str]) -> list[str]:
    """Return those of some cells that a section measures."""
    return [cell for cell in cells if cell == RNN or section not in RNN_ALONE]


def named_case(text: str) -> Case:
    """Return the case that ``text`` names, or the shape ``N,L,D,H`` that it is.

    Raises:
        ValueError: If it is neither.
    """
    for case in CASES:
        if text == case.name:
            return case
    sizes = [part.strip() for part in text.split(",")]
    if len(sizes) != 4 or not all(s.isdecimal() and int(s) > 0 for s in sizes):
        names = ", ".join(f'"{case.name}"' for case in CASES)
        raise ValueError(
            f"must be four integers N,L,D,H from 1 on, or one of {names}, not {text!r}"
        )
    return Case("chosen", *map(int, sizes))
