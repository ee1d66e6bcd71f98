from typing import ClassVar

import mlx.core as mx
import numpy as np
from mlx.nn.layers import recurrent

from mlx_recurrent import functional
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.foreign import names_ways_out
from mlx_recurrent.functional.judging import ReturnState, judge_nonlinearity
from mlx_recurrent.functional.options import judge_leaks
from mlx_recurrent.layers.one_state import OneState
from mlx_recurrent.layers.recurrent_layer import judge_own, judge_sizes
from mlx_recurrent.mlx_faults.drawing import draws


class RNN(OneState, recurrent.RNN):
    r"""An Elman recurrent layer: :class:`mlx.nn.RNN` on a native core.

    The input is a sequence of shape ``NLD`` or ``LD`` where:

    * ``N`` is the optional batch dimension (any number of leading axes)
    * ``L`` is the sequence length
    * ``D`` is the input's feature dimension

    For each element along the sequence length axis, the layer applies the function:

    .. math::

        h_t = f(W_{xh} x_t + b + W_{hh} h_{t-1})

    or, with a leak :math:`k`, :math:`h_t = (1 - k) h_{t-1} + k f(\ldots)`.

    The hidden state :math:`h` has shape ``NH`` or ``H``. The parameters are those of
    :class:`mlx.nn.RNN`: ``Wxh`` (H, D), ``Whh`` (H, H) and ``bias`` (H,), with the same
    values from the same seed; weights load both ways.

    Args:
        input_size (int): Dimension of the input, ``D``. At least 0.
        hidden_size (int): Dimension of the hidden state, ``H``. At least 1.
        bias (bool, optional): Whether to use a bias. Default: ``True``.
        nonlinearity (callable, optional): The function :math:`f` of an array
            ``(..., H)``. A module joins its parameters to the layer's. Only ``None`` is
            tanh, also where MLX takes an empty module such as ``nn.ReLU()`` for it.
            Default: ``None``.
        leak (float or array, optional): In (0, 1]: a number, or an array ``(H,)``,
            which becomes the parameter ``leak``. ``None`` is 1. Default: ``None``.
        zoneout (float, optional): The probability that a unit keeps its state at a
            step. In evaluation the expectation is used. Default: ``0``.
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Whh``, for a whole sequence. Default: ``0``.
        learn_hidden (bool, optional): Whether to learn the state that episodes start
            from: the parameter ``hidden0`` (H,), zero at first. Default: ``False``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size, a probability or a leak is out of range, or the
            nonlinearity is not callable.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN
        >>> layer = RNN(3, 8)
        >>> outputs, state = layer(mx.zeros((2, 5, 3)), return_state=True)
        >>> outputs.shape, state.shape
        ((2, 5, 8), (2, 8))
    """

    _function: ClassVar[functional.Function] = staticmethod(functional.rnn)
    _own = ("nonlinearity", "leak")

    @names_ways_out
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity | None = None,
        *,
        leak: float | mx.array | np.ndarray | None = None,
        zoneout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        learn_hidden: bool = False,
    ) -> None:
        bias = judge_sizes(input_size, hidden_size, bias)
        if nonlinearity is not None:
            judge_nonlinearity(nonlinearity)
        own = judge_own(
            self._start_names(),
            hidden_size,
            zoneout=zoneout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            learn_hidden=learn_hidden,
        )
        if leak is not None:
            own["leak"] = judge_leaks(leak, hidden_size)
        draws()
        super().__init__(input_size, hidden_size, bias, nonlinearity)
        if nonlinearity is not None and self.nonlinearity is not nonlinearity:
            self.nonlinearity = nonlinearity
        for name, value in own.items():
            setattr(self, name, value)

    def _described(self) -> str:
        if (leak := self.leak) is None:
            return ""
        return f", leak={'learned' if 'leak' in self else leak}"

    def _plain(
        self, x: mx.array, hidden: mx.array | None, return_state: ReturnState
    ) -> mx.array | tuple[mx.array, mx.array]:
        # A parameter is an item of the module; as an attribute it takes five times as
        # long to find.
        return functional.rnn(
            x,
            self["Wxh"] if "Wxh" in self else self.Wxh,
            self["Whh"] if "Whh" in self else self.Whh,
            self["bias"] if "bias" in self else self.bias,
            hidden,
            nonlinearity=self.nonlinearity,
            return_state=return_state,
        )
