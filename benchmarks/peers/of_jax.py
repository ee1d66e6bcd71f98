"""How JAX runs a piece of work."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .prepared import Prepared, gradients, members, states

if TYPE_CHECKING:
    from cases import Work


class _Jax:
    """A work's layer and arrays, with a method for each kind of work."""

    def __init__(self, work: "Work") -> None:
        import jax.numpy as jnp

        self.work = work
        arrays = {name: jnp.asarray(a) for name, a in work.arrays().items()}
        self.x, self.cotangent = arrays.pop("x"), arrays.pop("cotangent")
        self.weights = list(arrays.values())
        self.count = len(work.layer.shapes(1, 1))
        self.places = tuple(range(2, 2 + len(self.weights)))

    def one(self, x: Any, *weights: Any, reverse: bool = False) -> Any:
        """A layer: the projection, then a scan."""
        import jax
        import jax.numpy as jnp

        work = self.work
        Wx, Wh, bx, bh = work.layer.sides(jnp.concatenate, *weights)
        z = x.swapaxes(0, 1) @ Wx.T + bx

        def step(before: Any, z: Any) -> tuple[Any, Any]:
            u = before[0] @ Wh.T
            after = work.layer.step(jax.nn, z, u if bh is None else u + bh, before)
            return after, after[0]

        def masked_step(before: Any, z_and_runs: tuple[Any, Any]) -> tuple[Any, Any]:
            z, runs = z_and_runs
            after, _ = step(before, z)
            kept = tuple(
                jnp.where(runs, new, old)
                for new, old in zip(after, before, strict=True)
            )
            return kept, jnp.where(runs, after[0], 0)

        zeros = jnp.zeros((x.shape[0], work.case.H))
        first = (zeros,) * work.layer.states
        if work.option == "lengths":
            runs = jnp.arange(len(z))[:, None, None] < work.lengths()[:, None]
            _, h = jax.lax.scan(masked_step, first, (z, runs))
        else:
            _, h = jax.lax.scan(step, first, z, reverse=reverse)
        return h.swapaxes(0, 1)

    def outputs(self, x: Any, *weights: Any) -> Any:
        import jax.numpy as jnp

        apart = [
            weights[i : i + self.count] for i in range(0, len(weights), self.count)
        ]
        if self.work.option == "bidirectional":
            forward, backward = apart
            ways = [self.one(x, *forward), self.one(x, *backward, reverse=True)]
            return jnp.concatenate(ways, -1)
        for of_layer in apart:
            x = self.one(x, *of_layer)
        return x

    def loss(self, x: Any, cotangent: Any, *weights: Any) -> Any:
        return (self.outputs(x, *weights) * cotangent).sum()

    def run(self, function: Any, *operands: Any) -> Callable[[], Any]:
        import jax

        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*operands))

    def of_weights(self, function: Any) -> Prepared:
        run = self.run(function, self.x, self.cotangent, *self.weights)
        return Prepared(run, gradients(self.work))

    def forward(self) -> Prepared:
        return Prepared(self.run(self.outputs, self.x, *self.weights), states)

    def training(self) -> Prepared:
        import jax

        def pulled_back(x: Any, cotangent: Any, *weights: Any) -> Any:
            _, pull_back = jax.vjp(lambda *w: self.outputs(x, *w), *weights)
            return pull_back(cotangent)

        return self.of_weights(pulled_back)

    def penalty(self) -> Prepared:
        import jax
        import jax.numpy as jnp

        def of_norm(x: Any, cotangent: Any, *weights: Any) -> Any:
            def norm(*weights: Any) -> Any:
                return jnp.square(jax.grad(self.loss)(x, cotangent, *weights)).sum()

            return jax.grad(norm, tuple(range(len(weights))))(*weights)

        return self.of_weights(of_norm)

    def hessian(self) -> Prepared:
        import jax
        import jax.numpy as jnp

        along = tuple(jnp.asarray(a) for a in self.work.directions().values())

        def product(x: Any, cotangent: Any, *weights: Any) -> Any:
            def gradient(*weights: Any) -> Any:
                return jax.grad(self.loss, self.places)(x, cotangent, *weights)

            return jax.jvp(gradient, weights, along)[1]

        return self.of_weights(product)

    def examples(self) -> Prepared:
        import jax

        def each(x: Any, cotangent: Any, *weights: Any) -> Any:
            def row(x: Any, cotangent: Any) -> Any:
                gradient = jax.grad(self.loss, self.places)
                return gradient(x[None], cotangent[None], *weights)

            return jax.vmap(row)(x, cotangent)

        return self.of_weights(each)

    def _stacked(self) -> list[Any]:
        import jax.numpy as jnp

        return [jnp.asarray(a) for a in self.work.ensemble().values()]

    def ensemble(self) -> Prepared:
        import jax

        stacked = self._stacked()
        mapped = jax.vmap(self.outputs, (None, *[0] * len(stacked)))
        return Prepared(self.run(mapped, self.x, *stacked), states)

    def calls(self) -> Prepared:
        import jax

        stacked = self._stacked()
        apart = [[a[i] for a in stacked] for i in range(len(stacked[0]))]
        call = jax.jit(self.outputs)
        return Prepared(
            lambda: jax.block_until_ready([call(self.x, *w) for w in apart]), members
        )


def jax(work: "Work", threads: int) -> Prepared:
    """``jax.lax.scan`` under ``jax.jit``, the projection before it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    prepare: Callable[[], Prepared] = getattr(_Jax(work), work.kind)
    return prepare()
