"""Presets for weights: each changes a layer and returns it.

They take a recurrent layer, or any module that holds some, such as a
:class:`~mlx_recurrent.Stack`, and set the weights of each in its own dtype. What they
say of ``Whh`` holds for every gate's rows of ``Wh``, which are such a matrix.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers import recurrent
from mlx.nn.layers.base import Module

from mlx_recurrent.functional.cells import ELMAN, GRU, LSTM, Cell
from mlx_recurrent.functional.judging import float_of, shown, type_name
from mlx_recurrent.functional.values import values_of
from mlx_recurrent.mlx_faults.drawing import draws

M = TypeVar("M", bound=Module)


def orthogonal_(layer: M) -> M:
    """Set ``Whh`` to a random orthogonal matrix.

    The matrix is uniformly distributed, and drawn from MLX's random state. The product
    with it keeps lengths, so neither signals nor gradients grow or vanish by it: Saxe,
    McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", 2013 (arXiv:1312.6120).

    Args:
        layer (Module): The layer, or a module that holds layers.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module.
        ValueError: If there is no recurrent layer in it, or a weight is not square.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN, init
        >>> Whh = init.orthogonal_(RNN(3, 8)).Whh
        >>> mx.allclose(Whh @ Whh.T, mx.eye(8), atol=1e-5).item()
        True
    """
    for found in _recurrent(layer):
        H = found.layer.hidden_size

        def drawn(_: _Matrix, H: int = H) -> _Matrix:
            # In float64, so that it is orthogonal to the last place of any dtype.
            draws()
            q, r = np.linalg.qr(values_of(mx.random.normal((H, H))).astype(np.float64))
            # Without the signs the distribution would be that of the algorithm.
            return q * np.where(np.diag(r) < 0, -1, 1)

        found.set(found.blocks(drawn))
    return layer


def identity_(layer: M) -> M:
    """Set ``Whh`` to the identity.

    With relu and a bias of zero a layer then keeps what it has seen until it learns
    otherwise: Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of
    rectified linear units", 2015 (arXiv:1504.00941).

    Args:
        layer (Module): The layer, or a module that holds layers.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module.
        ValueError: If there is no recurrent layer in it, or a weight is not square.

    Example:
        >>> import mlx.nn as nn
        >>> from mlx_recurrent import RNN, init
        >>> layer = init.identity_(RNN(3, 2, nonlinearity=nn.relu))
        >>> layer.Whh.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for found in _recurrent(layer):
        found.set(found.blocks(lambda block: np.eye(len(block))))
    return layer


def spectral_radius_(layer: M, r: float) -> M:
    """Scale ``Whh`` so that its largest eigenvalue has the magnitude ``r``.

    A reservoir whose weights are not trained usually takes one a little below 1, where
    the past fades, but slowly: Jaeger, "The 'echo state' approach to analysing and
    training recurrent neural networks", 2001 (GMD report 148).

    Args:
        layer (Module): The layer, or a module that holds layers.
        r (float): The spectral radius. Positive and finite.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module, or ``r`` no number.
        ValueError: If ``r`` is out of range, if there is no recurrent layer in it, or
            if a weight is not square, holds a number that is not finite, or has no
            eigenvalue other than zero.

    Example:
        >>> import numpy as np
        >>> from mlx_recurrent import RNN, init
        >>> reservoir = init.spectral_radius_(RNN(1, 100, leak=0.3), 0.95)
        >>> radius = np.abs(np.linalg.eigvals(np.array(reservoir.Whh))).max()
        >>> round(float(radius), 3)
        0.95
    """
    if not isinstance(r, Real):
        raise TypeError(f"r must be a number, but is {type_name(r)}")
    radius = float_of(r)
    if not (0 < radius < math.inf):
        raise ValueError(f"r must be positive and finite, but is {shown(r)}")
    scaled = []
    for found in _recurrent(layer):
        name = found.cell.Wh

        def scale(block: _Matrix, name: str = name) -> _Matrix:
            if not np.isfinite(block).all():
                raise ValueError(f"{name} must be finite, but holds NaN or infinity")
            if _nilpotent(block):
                raise ValueError(
                    f"{name} must have an eigenvalue other than zero to be scaled, but "
                    "a power of it is zero"
                )
            return block * (radius / np.abs(np.linalg.eigvals(block)).max())

        scaled.append((found, found.blocks(scale)))
    for found, Wh in scaled:
        found.set(Wh)
    return layer


def forget_bias_(layer: M, value: float = 1.0) -> M:
    """Set the bias of what keeps the state: of an LSTM's ``f``, of a GRU's ``z``.

    With 1 a layer remembers before it has learned to: Gers, Schmidhuber and Cummins,
    "Learning to forget: continual prediction with LSTM", 2000; Jozefowicz, Zaremba and
    Sutskever, "An empirical exploration of recurrent network architectures", 2015.

    Args:
        layer (Module): The layer, or a module that holds layers.
        value (float, optional): The bias. Default: ``1.0``.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module, or ``value`` no number.
        ValueError: If there is no GRU or LSTM in the layer, or one has no bias.

    Example:
        >>> from mlx_recurrent import LSTM, init
        >>> layer = init.forget_bias_(LSTM(3, 2))
        >>> layer.bias[2:4].tolist()
        [1.0, 1.0]
    """
    if not isinstance(value, Real):
        raise TypeError(f"value must be a number, but is {type_name(value)}")
    for found in _gated(layer):
        kept = np.full(found.layer.hidden_size, float_of(value))
        found.set_bias({_KEEPS[found.cell.name]: kept})
    return layer


def chrono_(layer: M, longest: float) -> M:
    """Set biases so that states last from 1 to ``longest`` steps.

    For u uniform from 1 to ``longest`` - 1, drawn from MLX's random state for each
    unit, an LSTM's bias of ``f`` is log u and that of ``i`` is -log u; a GRU's bias of
    ``z`` is log u: Tallec and Ollivier, "Can recurrent neural networks warp time?",
    2018 (arXiv:1804.11188).

    Args:
        layer (Module): The layer, or a module that holds layers.
        longest (float): The longest dependency, in steps. At least 2, and finite.

    Returns:
        Module: The same object.

    Raises:
        TypeError: If ``layer`` is no module, or ``longest`` no number.
        ValueError: If ``longest`` is out of range, if there is no GRU or LSTM in the
            layer, or one has no bias.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import LSTM, init
        >>> layer = init.chrono_(LSTM(3, 8), 100)
        >>> i, f, g, o = mx.split(layer.bias, 4)
        >>> mx.array_equal(i, -f).item(), (f <= mx.log(99)).all().item()
        (True, True)
    """
    if not isinstance(longest, Real):
        raise TypeError(f"longest must be a number, but is {type_name(longest)}")
    most = float_of(longest)
    if not (2 <= most < math.inf):
        raise ValueError(f"longest must be at least 2, but is {shown(longest)}")
    for found in _gated(layer):
        draws()
        drawn = values_of(mx.random.uniform(1, most - 1, (found.layer.hidden_size,)))
        kept = np.log(drawn.astype(np.float64))
        entered = {"i": -kept} if found.cell is LSTM else {}
        found.set_bias({_KEEPS[found.cell.name]: kept, **entered})
    return layer


_Matrix = npt.NDArray[np.float64]

_CELLS: dict[type[Module], Cell] = {
    recurrent.RNN: ELMAN,
    recurrent.GRU: GRU,
    recurrent.LSTM: LSTM,
}
# The gate whose sigmoid is what a unit keeps of its state.
_KEEPS = {"gru": "z", "lstm": "f"}


class _Found(NamedTuple):
    """A recurrent layer in a module."""

    layer: Module
    cell: Cell

    def blocks(self, change: Callable[[_Matrix], _Matrix]) -> _Matrix:
        """Return the recurrent weight with every gate's matrix changed."""
        # float64 arrays live on the CPU alone.
        Wh = values_of(self.layer[self.cell.Wh].astype(mx.float64, stream=mx.cpu))
        return np.concatenate([change(a) for a in np.split(Wh, self.cell.hidden_rows)])

    def set(self, values: _Matrix) -> None:
        """Set the recurrent weight."""
        self._set(self.cell.Wh, values)

    def set_bias(self, gates: dict[str, npt.NDArray[np.float64]]) -> None:
        """Set the bias of some gates."""
        name, order = self.cell.bias, (*self.cell.gates, *self.cell.input_gates)
        wide = values_of(self.layer[name].astype(mx.float64, stream=mx.cpu))
        slabs = dict(zip(order, np.split(wide, len(order)), strict=True))
        self._set(name, np.concatenate(list((slabs | gates).values())))

    def _set(self, name: str, values: npt.NDArray[np.float64]) -> None:
        new = mx.array(values, dtype=mx.float64)
        self.layer[name] = new.astype(self.layer[name].dtype, stream=mx.cpu)


def _found(layer: Module, kinds: Sequence[type[Module]], what: str) -> list[_Found]:
    """Return the layers of these kinds in a module, each once."""
    if not isinstance(layer, Module):
        raise TypeError(f"layer must be a module, but is {type_name(layer)}")
    found = {
        id(module): _Found(module, _CELLS[kind])
        for module in layer.modules()  # type: ignore[no-untyped-call]
        for kind in kinds
        if isinstance(module, kind)
    }
    if not found:
        raise ValueError(
            f"layer must be or hold {what}, but is {type_name(layer)} without one"
        )
    return list(found.values())


def _recurrent(layer: Module) -> list[_Found]:
    found = _found(layer, list(_CELLS), "an RNN, a GRU or an LSTM")
    for module, cell in found:
        Wh, rows = module[cell.Wh], cell.hidden_rows
        if Wh.ndim != 2 or Wh.shape[0] != rows * Wh.shape[1]:
            times = "H" if rows == 1 else f"{rows}H"
            raise ValueError(
                f"{cell.Wh} must have shape ({times}, H), but has shape {Wh.shape}"
            )
    return found


def _gated(layer: Module) -> list[_Found]:
    found = _found(layer, (recurrent.GRU, recurrent.LSTM), "a GRU or an LSTM")
    for module, cell in found:
        if cell.bias not in module:
            raise ValueError(
                f"{cell.bias} must be there to be set, but {type(module).__name__} was "
                "made with bias=False"
            )
    return found


def _nilpotent(a: npt.NDArray[np.float64]) -> bool:
    """Return whether a power of a square matrix is zero.

    The computed eigenvalues cannot tell: rounding moves those of such a matrix by much
    more than themselves. If any power is zero, the one of the matrix's size is.
    """
    power = 1
    while a.any():
        if power >= len(a):
            return False
        # Scaled by powers of two, which round nothing.
        a = a / 2.0 ** np.frexp(np.abs(a).max())[1]
        a, power = a @ a, 2 * power
    return True
