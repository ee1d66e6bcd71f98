from typing import TYPE_CHECKING, Any, Literal, overload

import mlx.core as mx
import numpy as np
from mlx.nn.layers import recurrent

from mlx_recurrent import functional
from mlx_recurrent.functional.dispatch import Nonlinearity
from mlx_recurrent.functional.foreign import judge_keywords, names_ways_out
from mlx_recurrent.functional.judging import (
    ReturnState,
    judge_flag,
    judge_nonlinearity,
    judge_probability,
    judge_size,
    type_name,
)
from mlx_recurrent.functional.options import (
    BidirectionalOptions,
    CallOptions,
    Values,
    documented,
    judge_leaks,
)
from mlx_recurrent.functional.plan import Plan
from mlx_recurrent.layers.streaming import Array, Stream
from mlx_recurrent.mlx_faults.drawing import draws
from mlx_recurrent.mlx_faults.loading import Loading
from mlx_recurrent.mlx_faults.pickling import reduce_ex

if TYPE_CHECKING:
    from typing_extensions import Unpack


# What a layer may have beside MLX's parameters, and as attributes.
_PARAMETERS = ("leak", "hidden0")
_ATTRIBUTES = frozenset({"leak", "zoneout", "input_dropout", "recurrent_dropout"})


class RNN(Loading, recurrent.RNN):
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

    # A layer has its own only where they are not zero; all others stay as MLX's are.
    zoneout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    __reduce_ex__ = reduce_ex

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
        judge_size("input_size", input_size, 0)
        judge_size("hidden_size", hidden_size, 1)
        try:
            bias = bool(bias)  # as MLX takes it
        except (TypeError, ValueError):
            raise TypeError(f"bias must be a bool, but is {type_name(bias)}") from None
        if nonlinearity is not None:
            judge_nonlinearity(nonlinearity)
        own: dict[str, float | mx.array] = {
            name: probability
            for name, value in (
                ("zoneout", zoneout),
                ("input_dropout", input_dropout),
                ("recurrent_dropout", recurrent_dropout),
            )
            if (probability := judge_probability(name, value))
        }
        if leak is not None:
            own["leak"] = judge_leaks(leak, hidden_size)
        if judge_flag("learn_hidden", learn_hidden):
            own["hidden0"] = mx.zeros((hidden_size,))
        draws()
        super().__init__(input_size, hidden_size, bias, nonlinearity)
        if nonlinearity is not None and self.nonlinearity is not nonlinearity:
            self.nonlinearity = nonlinearity
        for name, value in own.items():
            setattr(self, name, value)

    def __getattr__(self, key: str) -> Any:
        # None for a layer without. A class attribute would hide a parameter.
        if key in _PARAMETERS:
            return self.get(key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _PARAMETERS and isinstance(value, mx.array):
            # MLX would first delete what __getattr__ finds.
            vars(self).pop(key, None)
            self[key] = value
        else:
            super().__setattr__(key, value)

    def _extra_repr(self) -> str:
        described: str = super()._extra_repr()  # type: ignore[no-untyped-call]
        if (leak := self.leak) is not None:
            described += f", leak={'learned' if 'leak' in self else leak}"
        for name in ("zoneout", "input_dropout", "recurrent_dropout"):
            if value := getattr(self, name):
                described += f", {name}={value}"
        return described + (", learn_hidden=True" if "hidden0" in self else "")

    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[False, "only"] = False,
        **options: "Unpack[CallOptions]",
    ) -> mx.array: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: Literal[True],
        **options: "Unpack[CallOptions]",
    ) -> tuple[mx.array, mx.array]: ...
    @overload
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState,
        **options: "Unpack[CallOptions]",
    ) -> mx.array | tuple[mx.array, mx.array]: ...
    @documented(BidirectionalOptions, CallOptions)
    def __call__(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> mx.array | tuple[mx.array, mx.array]:
        """Run the layer over a sequence.

        Args:
            x (array): The sequence, ``NLD`` or ``LD``.
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                The leading axes of ``x`` broadcast to its own. Default: ``None``.
            return_state (bool or str, optional): ``True`` returns the outputs and the
                state after the last step, ``"only"`` that state alone; the outputs are
                then never stored. Default: ``False``.
            options: Of the recurrence.

        Returns:
            array or tuple(array, array): The outputs, ``NLH`` or ``LH``; the state,
            ``NH`` or ``H``; or both.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.
            RuntimeError: If an operand is another thread's, which has not evaluated
                it, or in a forked process, where MLX would wait for ever.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import RNN
            >>> layer, x = RNN(3, 8), mx.random.normal((2, 5, 3))
            >>> outputs = layer(x, lengths=[5, 2])
            >>> outputs[1, 2:].any().item()
            False
        """
        if options or self._has_options:
            judge_keywords(options, CallOptions)
            return functional.rnn(
                x,
                hidden=hidden,
                return_state=return_state,
                **options,
                **self._arguments(),
            )
        # Quickly, for the layer that MLX has too. A parameter is an item of the module;
        # as an attribute it takes five times as long to find.
        return functional.rnn(
            x,
            self["Wxh"] if "Wxh" in self else self.Wxh,
            self["Whh"] if "Whh" in self else self.Whh,
            self["bias"] if "bias" in self else self.bias,
            hidden,
            nonlinearity=self.nonlinearity,
            return_state=return_state,
        )

    def step(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        reset: Values | None = None,
    ) -> mx.array:
        """Run a single step.

        In training mode it draws new masks at each call: for one mask over a sequence
        call the layer.

        Args:
            x (array): The input, ``ND`` or ``D``.
            hidden (array, optional): The state before, ``NH`` or ``H``. The leading
                axes of ``x`` broadcast to its own. Default: ``None``.
            reset (array, optional): Where an episode starts, so that ``hidden`` is not
                used: booleans, of the shape of the leading axes. Default: ``None``.

        Returns:
            array: The state after, ``NH`` or ``H``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If a shape, a dtype or a value does not fit.

        Example:
            >>> import mlx.core as mx
            >>> from mlx_recurrent import RNN
            >>> layer, x = RNN(3, 8), mx.random.normal((5, 3))
            >>> h = layer.step(x[1], layer.step(x[0]))
            >>> mx.allclose(h, layer(x)[1], atol=1e-5).item()
            True
        """
        return functional.step(x, hidden, reset, **self._arguments())

    def plan(
        self,
        x: mx.array,
        hidden: mx.array | None = None,
        *,
        return_state: ReturnState = False,
        **options: "Unpack[CallOptions]",
    ) -> Plan:
        """Return what a call with the same arguments would run, and why.

        The arguments and what they raise are those of the call; nothing is computed.

        Example:
            >>> import mlx.core as mx
            >>> import mlx.nn as nn
            >>> from mlx_recurrent import RNN
            >>> plan = RNN(3, 8, nonlinearity=nn.softmax).plan(mx.zeros((5, 3)))
            >>> plan.path
            'composed'
        """
        judge_keywords(options, CallOptions)
        return functional.plan(
            x,
            hidden=hidden,
            return_state=return_state,
            **options,
            **self._arguments(),
        )

    def stream(self, hidden: Array | None = None) -> Stream:
        """Return the layer for real-time use: a copy that takes steps as they come.

        Args:
            hidden (array, optional): The state before the first step, ``NH`` or ``H``.
                Its leading axes become those of every input. Default: ``None``.

        Raises:
            TypeError: If ``hidden`` is not an array.
            ValueError: If its shape or dtype does not fit.

        Example:
            >>> import numpy as np
            >>> from mlx_recurrent import RNN
            >>> stream = RNN(3, 8).stream()
            >>> stream(np.ones(3)).shape  # a step
            (8,)
        """
        return Stream(
            self.Wxh,
            self.Whh,
            self.bias,
            hidden,
            nonlinearity=self.nonlinearity,
            leak=self.leak,
            zoneout=self.zoneout,
            hidden0=self.hidden0,
        )

    @property
    def _has_options(self) -> bool:
        """Whether it is another layer than MLX's."""
        return (
            "leak" in self
            or "hidden0" in self
            or not _ATTRIBUTES.isdisjoint(self.__dict__)
        )

    def _arguments(self) -> dict[str, Any]:
        """Return what a layer gives to a function."""
        return {
            "Wxh": self.Wxh,
            "Whh": self.Whh,
            "bias": self.bias,
            "nonlinearity": self.nonlinearity,
            "leak": self.leak,
            "zoneout": self.zoneout,
            "input_dropout": self.input_dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "hidden0": self.hidden0,
            "training": self.training,
        }
