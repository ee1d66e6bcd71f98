from typing import ClassVar

import mlx.core as mx
from mlx.nn.layers import recurrent

from mlx_recurrent import functional
from mlx_recurrent.functional.foreign import names_ways_out
from mlx_recurrent.functional.judging import ReturnState, judge_flag
from mlx_recurrent.layers.one_state import OneState
from mlx_recurrent.layers.recurrent_layer import judge_own, judge_sizes
from mlx_recurrent.mlx_faults.drawing import draws


class GRU(OneState, recurrent.GRU):
    r"""A gated recurrent unit: :class:`mlx.nn.GRU` on a native core.

    The input is a sequence of shape ``NLD`` or ``LD`` where:

    * ``N`` is the optional batch dimension (any number of leading axes)
    * ``L`` is the sequence length
    * ``D`` is the input's feature dimension

    For each element along the sequence length axis, the layer applies the function:

    .. math::

        \begin{aligned}
        r_t &= \sigma (W_{xr} x_t + b_r + W_{hr} h_{t-1}) \\
        z_t &= \sigma (W_{xz} x_t + b_z + W_{hz} h_{t-1}) \\
        n_t &= \tanh (W_{xn} x_t + b_n + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    The hidden state :math:`h` has shape ``NH`` or ``H``. The parameters are those of
    :class:`mlx.nn.GRU`: ``Wx`` (3H, D), ``Wh`` (3H, H) and ``b`` (3H,), whose rows are
    those of r, z and n, and ``bhn`` (H,), with the same values from the same seed;
    weights load both ways.

    Args:
        input_size (int): Dimension of the input, ``D``. At least 0.
        hidden_size (int): Dimension of the hidden state, ``H``. At least 1.
        bias (bool, optional): Whether to use biases. Default: ``True``.
        reset_after (bool, optional): Whether the reset comes after the product, as
            above. ``False`` is :math:`W_{hn} (r_t \odot h_{t-1})`, without ``bhn``: a
            second product a step, in MLX's operations. Default: ``True``.
        zoneout (float, optional): The probability that a unit keeps its state at a
            step. In evaluation the expectation is used. Default: ``0``.
        input_dropout (float, optional): The probability that a feature of the input is
            zero, for a whole sequence. Default: ``0``.
        recurrent_dropout (float, optional): The probability that a unit is left out of
            the product with ``Wh``, for a whole sequence. Default: ``0``.
        learn_hidden (bool, optional): Whether to learn the state that episodes start
            from: the parameter ``hidden0`` (H,), zero at first. Default: ``False``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or a probability is out of range.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import GRU
        >>> layer = GRU(3, 8)
        >>> outputs, state = layer(mx.zeros((2, 5, 3)), return_state=True)
        >>> outputs.shape, state.shape
        ((2, 5, 8), (2, 8))
    """

    # As `zoneout`: a layer has its own only where it is another one.
    reset_after: bool = True
    _function: ClassVar[functional.Function] = staticmethod(functional.gru)
    _own = ("reset_after",)

    @names_ways_out
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        zoneout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        learn_hidden: bool = False,
    ) -> None:
        bias = judge_sizes(input_size, hidden_size, bias)
        own = judge_own(
            self._start_names(),
            hidden_size,
            zoneout=zoneout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            learn_hidden=learn_hidden,
        )
        if not judge_flag("reset_after", reset_after):
            own |= {"reset_after": False, "bhn": None}
        draws()
        super().__init__(input_size, hidden_size, bias)
        for name, value in own.items():
            setattr(self, name, value)

    def _described(self) -> str:
        return "" if self.reset_after else ", reset_after=False"

    def _plain(
        self, x: mx.array, hidden: mx.array | None, return_state: ReturnState
    ) -> mx.array | tuple[mx.array, mx.array]:
        # As in RNN: as attributes parameters take longer to find.
        return functional.gru(
            x,
            self["Wx"] if "Wx" in self else self.Wx,
            self["Wh"] if "Wh" in self else self.Wh,
            self["b"] if "b" in self else self.b,
            self["bhn"] if "bhn" in self else self.bhn,
            hidden,
            return_state=return_state,
        )
