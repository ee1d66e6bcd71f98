from typing import Literal, overload

import mlx.core as mx
from mlx.nn.layers import linear, recurrent

from mlx_recurrent import dispatch, functional
from mlx_recurrent.dispatch import Nonlinearity
from mlx_recurrent.functional import ReturnState
from mlx_recurrent.plan import Plan
from mlx_recurrent.streaming import Array, Stream


class RNN(recurrent.RNN):
    r"""An Elman recurrent layer: :class:`mlx.nn.RNN` on a native core.

    The input is a sequence of shape ``NLD`` or ``LD`` where:

    * ``N`` is the optional batch dimension (any number of leading axes)
    * ``L`` is the sequence length
    * ``D`` is the input's feature dimension

    For each element along the sequence length axis, the layer applies the function:

    .. math::

        h_t = f(W_{xh} x_t + b + W_{hh} h_{t-1})

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

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is out of range, or the nonlinearity is not callable.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity | None = None,
    ) -> None:
        functional.judge_size("input_size", input_size, 0)
        functional.judge_size("hidden_size", hidden_size, 1)
        if nonlinearity is not None:
            functional.judge_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, nonlinearity)
        if nonlinearity is not None and self.nonlinearity is not nonlinearity:
            self.nonlinearity = nonlinearity

    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[False, "only"] = False,
    ) -> mx.array: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[True],
    ) -> tuple[mx.array, mx.array]: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState,
    ) -> mx.array | tuple[mx.array, mx.array]: ...
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
    ) -> mx.array | tuple[mx.array, mx.array]:
        """Run the layer over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                The leading axes of ``x`` broadcast to its own. Default: ``None``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                state after the last step, ``"only"`` that state alone; the outputs are
                then never stored. Default: ``False``.

        Returns:
            array or tuple(array, array): The outputs, ``NLH`` or ``LH``; the state,
            ``NH`` or ``H``; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
        """
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

    def plan(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.
        """
        return functional.plan(
            x,
            self.Wxh,
            self.Whh,
            self.bias,
            hidden,
            nonlinearity=self.nonlinearity,
            return_state=return_state,
        )

    def stream(self, hidden: Array | None = None) -> Stream:
        """Return the layer for real-time use: a copy that takes steps as they come.

        Args:
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                Its leading axes become those of every input. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is not an array.
            ValueError: If its shape or dtype does not fit.
        """
        return Stream(
            self.Wxh, self.Whh, self.bias, hidden, nonlinearity=self.nonlinearity
        )


class Linear(linear.Linear):
    r"""An affine transformation: :class:`mlx.nn.Linear` on a fast product.

    .. math::

        y = x W^\top + b

    It uses this package's matrix product where MLX's own is slow (the CPU on Linux) and
    MLX's elsewhere. The parameters are those of :class:`mlx.nn.Linear`.

    Args:
        input_dims (int): The dimensionality of the input features.
        output_dims (int): The dimensionality of the output features.
        bias (bool, optional): Whether to use a bias. Default: ``True``.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x W^T + b`` for ``x (..., input_dims)``.

        Raises:
            TypeError: If ``x`` is not an array.
            ValueError: If its shape or dtype does not fit.
        """
        weight, bias = self["weight"], self.get("bias")
        # MLX's layer also takes weights that are no matrix.
        if weight.ndim == 2 and dispatch.has_own_product(None, x, weight, bias):
            return functional.matmul(x, weight, bias)
        return super().__call__(x)
