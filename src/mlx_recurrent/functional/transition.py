"""What the optional options make of a step, in MLX's operations.

Conditions are joined by ``logical_and``, not by ``&``: MLX's vmap of that gives another
shape where only its second operand is mapped.
"""

import mlx.core as mx

from mlx_recurrent.functional.dispatch import StreamOrDevice, product
from mlx_recurrent.functional.masks import Mask, hits
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.padding import without_padding
from mlx_recurrent.functional.selection import select


class Transition:
    """The course of a sequence without options: each state is the next one's start."""

    reverse = False
    # What the nonlinearity must return; None where its first result decides.
    shape: tuple[int, ...] | None = None

    def enter(self, state: mx.array | None) -> mx.array | None:
        """Begin the next step; return the state that it starts from, if there is one.

        Args:
            state (array, optional): The state after the last step, ``(..., H)``.
        """
        return state

    def pre_activation(
        self, start: mx.array, Whh: mx.array, z: mx.array, stream: StreamOrDevice
    ) -> mx.array:
        """Return ``z + Whh start``; all are of one dtype."""
        return product(start, Whh, z, stream)

    def given(self, a: mx.array) -> mx.array:
        """Return what the nonlinearity is given for the pre-activations."""
        return a

    def leave(
        self, state: mx.array | None, start: mx.array | None, result: mx.array
    ) -> tuple[mx.array, mx.array]:
        """End the step; return the state after it and its output.

        Args:
            state (array, optional): What :meth:`enter` was given.
            start (array, optional): What it returned.
            result (array): What the nonlinearity returned.
        """
        return result, result


class OptionsTransition(Transition):
    """The course of a sequence with options.

    What is absent is not selected, never multiplied by zero: before the product and the
    nonlinearity, so that nothing of it reaches them, and after, so that nothing of them
    reaches the state, nor comes back as a gradient. Where a row ends, and where an
    episode starts, not even NaN of one side passes to the other: there it is
    :func:`select`, which takes longer than :func:`mlx.core.where`.

    Args:
        options (BoundOptions): The options.
        lead (tuple(int)): The leading axes.
        L (int): How many steps there are.
        H (int): How many hidden features.
        begins_empty (bool): Whether rows begin without a state.
    """

    def __init__(
        self,
        options: BoundOptions,
        lead: tuple[int, ...],
        L: int,
        H: int,
        begins_empty: bool,
    ) -> None:
        self.reverse = options.reverse
        self._options = options
        self._L = L
        self.shape: tuple[int, ...] = (*lead, H)
        self._begins_empty = begins_empty
        self._step = -1
        self._lengths = _column(options.lengths, L)
        if options.leak is not None:
            # Half types round a state once, as the kernels do.
            self._leak = options.leak.astype(_wide(options.leak.dtype))
            self._rest = 1 - self._leak
        if options.zoneout:
            assert options.key is not None
            self._kept = hits(Mask.ZONEOUT, options.zoneout, options.key, lead, L, H)
        if options.recurrent_dropout:
            self._dropout = Dropout(
                Mask.RECURRENT_DROPOUT, options.recurrent_dropout, options.key, lead, H
            )

    def enter(self, state: mx.array | None) -> mx.array | None:
        self._step += 1
        self._t = self._L - 1 - self._step if self.reverse else self._step
        # Rows that take this step, and those of them that start from no state.
        self._runs = None if self._lengths is None else self._lengths > self._t
        self._empty: mx.array | None = None
        if state is None:
            return None
        if self._lengths is not None and self.reverse and self._begins_empty:
            self._empty = self._lengths == self._t + 1
        return self._restarted(self._truncated(state))

    def pre_activation(
        self, start: mx.array, Whh: mx.array, z: mx.array, stream: StreamOrDevice
    ) -> mx.array:
        if self._options.recurrent_dropout:
            start = self._dropout(start)
        absent = self._empty
        if self._runs is not None:
            over = mx.logical_not(self._runs)
            absent = over if absent is None else mx.logical_or(absent, over)
        if absent is None:
            return product(start, Whh, z, stream)
        start = mx.where(absent, _zero(start), start)
        a = product(start, Whh, z, stream)
        return a if self._empty is None else mx.where(self._empty, z, a)

    def given(self, a: mx.array) -> mx.array:
        if self._runs is None:
            return a
        # Where a row does not run: numbers for which hardly any nonlinearity or slope
        # is singular, as a norm, a root or a logarithm is for zeros.
        usual = mx.linspace(0.25, 0.75, a.shape[-1]).astype(a.dtype)
        return mx.where(self._runs, a, usual)

    def leave(
        self, state: mx.array | None, start: mx.array | None, result: mx.array
    ) -> tuple[mx.array, mx.array]:
        options = self._options
        if start is None:
            start = mx.zeros(self.shape, result.dtype)
        if state is None:
            state = start
        new = result
        if options.leak is not None:
            dtype = mx.result_type(start, result, options.leak)
            if self._runs is not None:  # NaN of other rows is not the leak's
                start = mx.where(self._runs, start, _zero(start))
            new = _times(self._rest, start) + _times(self._leak, result)
            new = new.astype(dtype)
        if options.zoneout:
            new = mx.where(self._kept[..., self._t, :], start, new)
        if self._runs is None:
            return new, new
        output = select(self._runs, new, _zero(new))
        return select(self._runs, new, state), output

    def _restarted(self, state: mx.array) -> mx.array:
        reset, hidden0 = self._options.reset, self._options.hidden0
        if reset is None or (self.reverse and self._step == 0):
            return state
        border = self._t + 1 if self.reverse else self._t
        restarts = reset[..., border : border + 1]
        if self.reverse and self._lengths is not None:
            restarts = mx.logical_and(restarts, self._lengths > border)
        if hidden0 is not None:
            return select(restarts, hidden0, state)
        if self._empty is None:
            self._empty = restarts
        else:
            self._empty = mx.logical_or(self._empty, restarts)
        return select(restarts, _zero(state), state)

    def _truncated(self, start: mx.array) -> mx.array:
        every = self._options.truncate_every
        if not every or self._step == 0:
            return start
        if self._lengths is None or not self.reverse:
            return mx.stop_gradient(start) if self._step % every == 0 else start
        # Each row counts from its own last place.
        step = self._lengths - 1 - self._t
        border = mx.logical_and(step > 0, step % every == 0)
        return select(border, mx.stop_gradient(start), start)


class Dropout:
    """One mask for a sequence, scaled so that the expectation stays.

    Args:
        mask (Mask): What it is for.
        probability (float): How probably an element is dropped.
        key (array): Two ``uint32``.
        lead (tuple(int)): The leading axes.
        units (int): How many units, or features, there are.
    """

    def __init__(
        self,
        mask: Mask,
        probability: float,
        key: mx.array | None,
        lead: tuple[int, ...],
        units: int,
    ) -> None:
        assert key is not None
        self._dropped = hits(mask, probability, key, lead, 1, units)
        self._scale = 1 / (1 - probability)

    def __call__(self, values: mx.array, axes: int = 1) -> mx.array:
        """Return ``(..., units)`` with the mask, in the same dtype.

        Args:
            values (array): The values.
            axes (int): How many axes they have beside the leading ones: 2 with time.
        """
        dropped = self._dropped if axes == 2 else mx.squeeze(self._dropped, -2)
        wide = _wide(values.dtype)
        scaled = values.astype(wide) * mx.array(self._scale, wide)
        return select(dropped, _zero(values), scaled.astype(values.dtype))


def inputs(
    x: mx.array, options: BoundOptions, lead: tuple[int, ...], dtype: mx.Dtype
) -> mx.array:
    """Return the inputs ``(..., L, D)`` without the padding, with the dropout.

    Args:
        x (array): The inputs.
        options (BoundOptions): The options.
        lead (tuple(int)): The leading axes of the call.
        dtype (Dtype): Of the projection.
    """
    if options.lengths is not None:
        x = without_padding(x, options.lengths)
    if options.input_dropout:
        D = x.shape[-1]
        dropout = Dropout(
            Mask.INPUT_DROPOUT, options.input_dropout, options.key, lead, D
        )
        x = dropout(x.astype(dtype), axes=2)
    return x


def _column(lengths: mx.array | None, L: int) -> mx.array | None:
    return None if lengths is None else mx.minimum(lengths, L)[..., None]


def _wide(dtype: mx.Dtype) -> mx.Dtype:
    return mx.float64 if dtype == mx.float64 else mx.float32


def _zero(a: mx.array) -> mx.array:
    return mx.zeros((), a.dtype)


def _times(factor: mx.array, values: mx.array) -> mx.array:
    """Return a product that is zero where the factor is, whatever the values."""
    # The factor's own derivative is still the value where that is finite. Values may be
    # booleans, as of spiking units, which have no difference.
    values = values.astype(mx.result_type(factor, values))
    absent = mx.logical_and(factor == 0, values - values != 0)
    return factor * mx.where(absent, _zero(values), values)
