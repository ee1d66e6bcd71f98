"""What the optional options make of a step, in MLX's operations.

Conditions are joined by ``logical_and``, not by ``&``: MLX's vmap of that gives another
shape where only its second operand is mapped.
"""

import mlx.core as mx

from mlx_recurrent.functional.cells import States
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import product
from mlx_recurrent.functional.masks import Mask, hits, zoneout_mask
from mlx_recurrent.functional.options import BoundOptions
from mlx_recurrent.functional.padding import only_taken
from mlx_recurrent.functional.selection import select


class Transition:
    """The course of a sequence without options: each state is the next one's start."""

    reverse = False
    # What a nonlinearity must return; None where its first result decides.
    shape: tuple[int, ...] | None = None

    def enter(self, states: States) -> States:
        """Begin the next step; return the states that it starts from.

        Args:
            states (tuple(array)): Those after the last step.
        """
        return states

    def pre_activation(
        self, start: mx.array, Whh: mx.array, z: mx.array, stream: StreamOrDevice
    ) -> mx.array:
        """Return ``z + Whh start``; all are of one dtype."""
        return product(start, Whh, z, stream)

    def given(self, a: mx.array) -> mx.array:
        """Return what a cell's function is given for the pre-activations."""
        return a

    def present(self, starts: States, like: mx.array) -> tuple[mx.array, ...]:
        """Return what a cell's function is given for the states.

        Args:
            starts (tuple(array)): What :meth:`enter` returned.
            like (array): Of the shape and the dtype that a state has.
        """
        return tuple(mx.zeros_like(like) if s is None else s for s in starts)

    def leave(
        self, states: States, starts: States, results: tuple[mx.array, ...]
    ) -> tuple[tuple[mx.array, ...], tuple[mx.array, ...]]:
        """End the step; return the states after it and its outputs.

        Args:
            states (tuple(array)): What :meth:`enter` was given.
            starts (tuple(array)): What it returned.
            results (tuple(array)): What the cell's function returned.
        """
        return results, results


class OptionsTransition(Transition):
    """The course of a sequence with options.

    What is absent is not selected, never multiplied by zero: before the product and the
    cell's function, so that nothing of it reaches them, and after, so that nothing of
    them reaches the states, nor comes back as a gradient. Where a row ends, and where
    an episode starts, not even NaN of one side passes to the other: there it is
    :func:`select`, which takes longer than :func:`mlx.core.where`.

    Args:
        options (BoundOptions): The options.
        lead (tuple(int)): The leading axes.
        L (int): How many steps there are.
        H (int): How many hidden features.
        states (tuple(array)): Those before the first step.
    """

    def __init__(
        self,
        options: BoundOptions,
        lead: tuple[int, ...],
        L: int,
        H: int,
        states: States,
    ) -> None:
        self.reverse = options.reverse
        self._options = options
        self._L = L
        self.shape: tuple[int, ...] = (*lead, H)
        self._begins_empty = states[0] is None
        self._step = -1
        self._lengths = _column(options.lengths, L)
        self._keepings = [
            Keeping(
                zoneout_mask(k),
                leak,
                zoneout,
                options.key,
                lead,
                L,
                H,
            )
            for k, (leak, zoneout) in enumerate(
                zip(options.leaks, options.zoneouts, strict=True)
            )
        ]
        if options.recurrent_dropout:
            self._dropout = Dropout(
                Mask.RECURRENT_DROPOUT, options.recurrent_dropout, options.key, lead, H
            )

    def enter(self, states: States) -> States:
        self._step += 1
        self._t = self._L - 1 - self._step if self.reverse else self._step
        # Rows that have this step, those that do not skip it, those for which both are
        # so, and those that start from no state.
        self._runs = None if self._lengths is None else self._lengths > self._t
        mask = self._options.mask
        self._taken = None if mask is None else mask[..., self._t : self._t + 1]
        self._updates = self._runs if self._taken is None else self._taken
        if self._runs is not None and self._taken is not None:
            self._updates = mx.logical_and(self._runs, self._taken)
        self._empty: mx.array | None = None
        if self._lengths is not None and self.reverse and self._begins_empty:
            self._empty = self._lengths == self._t + 1
        truncated = map(self._truncated, states)
        restarts = self._restarts()
        if restarts is None:
            return tuple(truncated)
        options = self._options
        if options.starts[0] is None:
            self._empty = (
                restarts
                if self._empty is None
                else (mx.logical_or(self._empty, restarts))
            )
        return tuple(
            self._restarted(restarts, *each)
            for each in zip(truncated, options.starts, strict=True)
        )

    def pre_activation(
        self, start: mx.array, Whh: mx.array, z: mx.array, stream: StreamOrDevice
    ) -> mx.array:
        if self._options.recurrent_dropout:
            start = self._dropout(start)
        absent = self._empty
        if self._updates is not None:
            held = mx.logical_not(self._updates)
            absent = held if absent is None else mx.logical_or(absent, held)
        if absent is None:
            return product(start, Whh, z, stream)
        start = mx.where(absent, _zero(start), start)
        a = product(start, Whh, z, stream)
        return a if self._empty is None else mx.where(self._empty, z, a)

    def given(self, a: mx.array) -> mx.array:
        if self._updates is None:
            return a
        # Where a row does not move: numbers for which hardly any nonlinearity or slope
        # is singular, as a norm, a root or a logarithm is for zeros.
        usual = mx.linspace(0.25, 0.75, a.shape[-1]).astype(a.dtype)
        return mx.where(self._updates, a, usual)

    def present(self, starts: States, like: mx.array) -> tuple[mx.array, ...]:
        present = super().present(starts, like)
        if self._updates is None:
            return present
        return tuple(mx.where(self._updates, s, _zero(s)) for s in present)

    def leave(
        self, states: States, starts: States, results: tuple[mx.array, ...]
    ) -> tuple[tuple[mx.array, ...], tuple[mx.array, ...]]:
        new, outputs = [], []
        for state, start, result, keeping in zip(
            states, starts, results, self._keepings, strict=True
        ):
            if start is None:
                start = mx.zeros(self.shape, result.dtype)
            if state is None:
                state = start
            result = keeping(start, result, self._t, self._updates)
            if self._taken is not None:
                result = select(self._taken, result, start)
            output = result
            if self._runs is not None:
                output = select(self._runs, result, _zero(result))
                result = select(self._runs, result, state)
            new.append(result)
            outputs.append(output)
        return tuple(new), tuple(outputs)

    def _restarts(self) -> mx.array | None:
        """Where an episode starts at this step, with a column for all units."""
        reset = self._options.reset
        if reset is None or (self.reverse and self._step == 0):
            return None
        border = self._t + 1 if self.reverse else self._t
        restarts = reset[..., border : border + 1]
        if self.reverse and self._lengths is not None:
            restarts = mx.logical_and(restarts, self._lengths > border)
        return restarts

    @staticmethod
    def _restarted(
        restarts: mx.array, state: mx.array | None, first: mx.array | None
    ) -> mx.array | None:
        if state is None:
            return None
        return select(restarts, _zero(state) if first is None else first, state)

    def _truncated(self, start: mx.array | None) -> mx.array | None:
        every = self._options.truncate_every
        if start is None or not every or self._step == 0:
            return start
        if self._lengths is None or not self.reverse:
            return mx.stop_gradient(start) if self._step % every == 0 else start
        # Each row counts from its own last place.
        step = self._lengths - 1 - self._t
        border = mx.logical_and(step > 0, step % every == 0)
        return select(border, mx.stop_gradient(start), start)


class Keeping:
    """What units keep of a state: in part by a leak, or whole by zoneout.

    Args:
        mask (int): What zoneout's mask is for.
        leak (array, optional): How much of the state is new, ``(H,)``. ``None`` is one.
        zoneout (float): How probably a unit keeps its state at a step.
        key (array, optional): Of the mask.
        lead (tuple(int)): The leading axes.
        L (int): How many steps there are.
        H (int): How many units.
    """

    def __init__(
        self,
        mask: int,
        leak: mx.array | None,
        zoneout: float,
        key: mx.array | None,
        lead: tuple[int, ...],
        L: int,
        H: int,
    ) -> None:
        self._leak = leak
        if leak is not None:
            # Half types round a state once, as the kernels do.
            self._new = leak.astype(_wide(leak.dtype))
            self._rest = 1 - self._new
        self._kept: mx.array | None = None
        if zoneout:
            assert key is not None
            self._kept = hits(mask, zoneout, key, lead, L, H)

    def __call__(
        self, start: mx.array, result: mx.array, t: int, updates: mx.array | None
    ) -> mx.array:
        """Return the state after step t.

        Args:
            start (array): That before.
            result (array): What the cell's function made of it.
            t (int): The place in time.
            updates (array, optional): Which rows take the step. ``None`` is all.
        """
        new = result
        if self._leak is not None:
            dtype = mx.result_type(start, result, self._leak)
            if updates is not None:  # NaN of other rows is not the leak's
                start = mx.where(updates, start, _zero(start))
            new = _times(self._rest, start) + _times(self._new, result)
            new = new.astype(dtype)
        if self._kept is not None:
            new = mx.where(self._kept[..., t, :], start, new)
        return new


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
    """Return the inputs ``(..., L, D)`` of the steps that are taken, with the dropout.

    Args:
        x (array): The inputs.
        options (BoundOptions): The options.
        lead (tuple(int)): The leading axes of the call.
        dtype (Dtype): Of the projection.
    """
    x = only_taken(x, options.lengths, options.mask)
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
