"""How this package and ``mlx.nn`` run a piece of work."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .prepared import Prepared, gradients, members, states

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from cases import Work

OURS, UPSTREAM = "mlx_recurrent", "mlx.nn"


class _Mlx:
    """A work's network and arrays, with a method for each kind of work."""

    def __init__(self, work: "Work", library: Any) -> None:
        import mlx.core as mx

        self.work, self.library = work, library
        dtype = getattr(mx, work.dtype)
        arrays = {name: mx.array(a).astype(dtype) for name, a in work.arrays().items()}
        self.x, self.cotangent = arrays.pop("x"), arrays.pop("cotangent")
        self.weights = list(arrays.values())
        mx.eval(self.x, self.cotangent, self.weights)
        self.called = work.call_arguments()
        self.layers, self.network = _network(work, library)
        self.set_weights(self.weights)

    def set_weights(self, weights: Sequence["mx.array"]) -> None:
        names = list(self.work.layer.shapes(1, 1))
        for i, layer in enumerate(self.layers):
            for j, name in enumerate(names):
                setattr(layer, name, weights[len(names) * i + j])

    def wide(self, results: Sequence["mx.array"]) -> "list[np.ndarray]":
        import mlx.core as mx
        import numpy as np

        if self.work.dtype == "bfloat16":  # which NumPy does not have
            results = [a.astype(mx.float32) for a in results]
        return [np.array(a) for a in results]

    def evaluated(self, function: Callable[..., Any], *operands: Any) -> Prepared:
        """What gives one array."""
        import mlx.core as mx

        def run() -> mx.array:
            result = function(*operands)
            mx.eval(result)
            return result

        return Prepared(run, lambda h: states(self.wide([h])[0]))

    def gradients(self, function: Callable[[], Any]) -> Prepared:
        """What gives a gradient of each parameter."""
        import mlx.core as mx

        named = gradients(self.work)

        def run() -> Any:
            found = function()
            mx.eval(found)
            return found

        return Prepared(run, lambda found: named(self.wide(found)))

    def outputs(self, x: "mx.array", *weights: "mx.array") -> "mx.array":
        self.set_weights(weights)
        return self.network(x, **self.called)

    def loss(self, x: "mx.array", cotangent: "mx.array", *weights: Any) -> "mx.array":
        return (self.outputs(x, *weights) * cotangent).sum()

    @property
    def gradient(self) -> Callable[..., Any]:
        import mlx.core as mx

        return mx.grad(self.loss, tuple(range(2, 2 + len(self.weights))))

    def forward(self) -> Prepared:
        return self.evaluated(lambda x: self.network(x, **self.called), self.x)

    def call(self) -> Prepared:
        layer, x = self.layers[0], self.x
        return Prepared(lambda: layer(x), lambda h: states(self.wide([h])[0]))

    def matmul(self) -> Prepared:
        product = getattr(self.library, "matmul", lambda x, w: x @ w.T)
        return self.evaluated(product, self.x[0], self.weights[0])

    def linear(self) -> Prepared:
        linear = self.library.Linear(self.work.case.D, self.work.case.H)
        linear.weight, linear.bias = self.weights[0], self.weights[-1]
        return self.evaluated(linear, self.x[0])

    def addition(self) -> Prepared:
        import mlx.core as mx

        return self.evaluated(mx.add, self.weights[-1], self.weights[-1])

    def crossing(self) -> Prepared:
        """From the default device to the CPU and back, beside the same without."""
        import time

        import mlx.core as mx

        def seconds(stream: Any) -> float:
            start = time.perf_counter()
            for _ in range(20):
                here = mx.negative(self.x)
                mx.eval(mx.negative(mx.negative(here, stream=stream)))
            return (time.perf_counter() - start) / 20

        def run() -> float:
            return seconds(mx.cpu) - seconds(None)

        return Prepared(run, lambda _: {}, measures=True)

    def pulled_back(self) -> tuple[list["mx.array"], list["mx.array"]]:
        import mlx.core as mx

        return mx.vjp(
            lambda *w: [self.outputs(self.x, *w)], self.weights, [self.cotangent]
        )

    def training(self) -> Prepared:
        return self.gradients(lambda: self.pulled_back()[1])

    def kept(self) -> Prepared:
        import mlx.core as mx

        def both() -> list[mx.array]:
            outputs, found = self.pulled_back()
            mx.eval(outputs, found)
            return found

        return self.gradients(both)

    def penalty(self) -> Prepared:
        import mlx.core as mx

        def norm(*weights: mx.array) -> mx.array:
            slope = mx.grad(self.loss)(self.x, self.cotangent, *weights)
            return slope.square().sum()

        of_weights = mx.grad(norm, tuple(range(len(self.weights))))
        return self.gradients(lambda: of_weights(*self.weights))

    def hessian(self) -> Prepared:
        import mlx.core as mx

        along = [mx.array(a) for a in self.work.directions().values()]

        def gradient(*weights: mx.array) -> Any:
            return self.gradient(self.x, self.cotangent, *weights)

        return self.gradients(lambda: mx.jvp(gradient, self.weights, along)[1])

    def examples(self) -> Prepared:
        import mlx.core as mx

        mapped = mx.vmap(self.gradient, (0, 0, *[None] * len(self.weights)))
        return self.gradients(lambda: mapped(self.x, self.cotangent, *self.weights))

    def _stacked(self) -> list["mx.array"]:
        import mlx.core as mx

        stacked = [mx.array(a) for a in self.work.ensemble().values()]
        mx.eval(stacked)
        return stacked

    def ensemble(self) -> Prepared:
        import mlx.core as mx

        stacked = self._stacked()
        mapped = mx.vmap(self.outputs, (None, *[0] * len(stacked)))
        return self.evaluated(mapped, self.x, *stacked)._replace(named=members)

    def calls(self) -> Prepared:
        import mlx.core as mx

        stacked = self._stacked()
        apart = [[a[i] for a in stacked] for i in range(stacked[0].shape[0])]
        mx.eval(apart)
        each = self.evaluated(lambda: [self.outputs(self.x, *w) for w in apart])
        return each._replace(named=members)

    def _rows(self) -> tuple[list["mx.array"], tuple["mx.array", ...]]:
        """The steps, of a batch or of a row alone, and the states before them."""
        import mlx.core as mx

        _, N, L, _, H = self.work.case
        row = self.x if N > 1 else self.x[0]
        steps = [row[..., t, :] for t in range(L)]
        zeros = mx.zeros((N, H)) if N > 1 else mx.zeros(H)
        mx.eval(steps, zeros)
        return steps, (zeros,) * self.work.layer.states

    def _named_steps(self, sequence: Callable[[], Any]) -> Callable[[Any], Any]:
        _, N, L, _, H = self.work.case
        return lambda _: states(sequence().reshape(N, L, H))

    def stream(self) -> Prepared:
        """The next step as the library has it for real time."""
        import numpy as np

        if not hasattr(self.layers[0], "stream"):
            return self.step()
        rows, first = self._rows()
        steps = [np.array(a) for a in rows]
        stream = self.layers[0].stream(*first)

        def sequence() -> np.ndarray:
            stream.reset(*first)
            return np.stack([stream(a) for a in steps], axis=-2)

        return Prepared(lambda: stream(steps[0]), self._named_steps(sequence))

    def step(self) -> Prepared:
        """The next step in the graph, evaluated."""
        import mlx.core as mx
        import numpy as np

        steps, first = self._rows()
        layer, state = self.layers[0], first

        def following(
            x: mx.array, before: tuple[mx.array, ...]
        ) -> tuple[mx.array, ...]:
            if hasattr(layer, "step"):
                found = layer.step(x, *before)
                after = found if isinstance(found, tuple) else (found,)
            else:
                found = layer(x[..., None, :], *before)
                found = found if isinstance(found, tuple) else (found,)
                after = tuple(a[..., 0, :] for a in found)
            mx.eval(after)
            return after

        def sequence() -> np.ndarray:
            all_states = [first]
            for a in steps:
                all_states.append(following(a, all_states[-1]))
            return np.stack([np.array(h) for h, *_ in all_states[1:]], axis=-2)

        def next_step() -> Any:
            nonlocal state
            state = following(steps[0], state)
            return state

        return Prepared(next_step, self._named_steps(sequence))


def _outputs_alone(layer: Any, states: int) -> Callable[..., Any]:
    """A layer, of whose results only the outputs, or the last state, are wanted."""
    if states == 1:
        call: Callable[..., Any] = layer
        return call
    if not hasattr(layer, "stream"):  # of mlx.nn, which gives the states of all steps
        return lambda x: layer(x)[0]
    return lambda x, **called: layer(x, **{"return_state": True, **called})[0]


def _network(work: "Work", library: Any) -> tuple[list[Any], Any]:
    """The layers, and what calls them all."""
    import mlx.core as mx

    made, count = work.layer_arguments(), work.layer.states
    if work.nonlinearity != "tanh":
        from callables import TRACED

        made = {**made, "nonlinearity": TRACED[work.nonlinearity].make()}
    layers = [
        getattr(library, work.cell)(features, work.case.H, **made)
        for features in work.features()
    ]
    if work.option == "bidirectional":
        if hasattr(library, "Bidirectional"):
            return layers, library.Bidirectional(*layers)
        forward, backward = (_outputs_alone(layer, count) for layer in layers)
        return layers, lambda x: mx.concatenate(
            [forward(x), backward(x[:, ::-1])[:, ::-1]], axis=-1
        )
    if work.option != "depth":
        return layers, _outputs_alone(layers[0], count)
    if hasattr(library, "Stack"):
        return layers, library.Stack(layers)

    def one_after_another(x: mx.array) -> mx.array:
        for layer in layers:
            x = _outputs_alone(layer, count)(x)
        return x

    return layers, one_after_another


def ours(work: "Work", threads: int) -> Prepared:
    """``mlx_recurrent``."""
    import mlx.core as mx

    import mlx_recurrent
    from cases import SEED
    from mlx_recurrent import _native

    if work.kind == "exchange":
        return Prepared(_native.measure_exchange, lambda _: {}, measures=True)

    def begin() -> None:
        mx.random.seed(SEED)
        mlx_recurrent.set_num_threads(work.threads or threads)

    return getattr(_Mlx(work, mlx_recurrent), work.kind)()._replace(begin=begin)


def upstream(work: "Work", threads: int) -> Prepared:
    """``mlx.nn``, and MLX's own operations."""
    import mlx.nn as nn

    return getattr(_Mlx(work, nn), work.kind)()
