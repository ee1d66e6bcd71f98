"""How PyTorch runs a piece of work."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .prepared import Prepared, gradients, states

if TYPE_CHECKING:
    import numpy as np

    from cases import Work


class _Torch:
    """A work's layer and arrays, with a method for each kind of work."""

    def __init__(self, work: "Work") -> None:
        import torch

        self.work = work
        arrays = {name: torch.from_numpy(a) for name, a in work.arrays().items()}
        self.x, self.cotangent = arrays["x"], arrays["cotangent"]
        both = work.option == "bidirectional"
        self.layer = getattr(torch.nn, work.cell)(
            work.case.D,
            work.case.H,
            num_layers=1 if both else work.layers,
            bidirectional=both,
            batch_first=True,
        )
        sides = [
            side
            for of_layer in work.weights()
            for side in work.layer.sides(torch.cat, *map(torch.from_numpy, of_layer))
        ]
        weights = [weight for of_layer in self.layer.all_weights for weight in of_layer]
        with torch.no_grad():
            for weight, side in zip(weights, sides, strict=True):
                if side is None:
                    weight.zero_()
                else:
                    weight.copy_(side)
        used = 4 if work.layer.learns_state_bias else 3
        self.weights = [w for i, w in enumerate(weights) if i % 4 < used]
        self.per_layer = used

    def named(self, found: Any) -> "dict[str, np.ndarray]":
        """The gradients of the weights as those of MLX's parameters."""
        each = range(0, len(found), self.per_layer)
        of_layers = [
            self.work.layer.of_sides(*found[i : i + self.per_layer]) for i in each
        ]
        return gradients(self.work)([g for of_layer in of_layers for g in of_layer])

    def gradient(self, x: Any, cotangent: Any, of: Any) -> Any:
        import torch

        loss = (self.layer(x)[0] * cotangent).sum()
        return torch.autograd.grad(loss, of, create_graph=True)

    def packed(self, rows: Any) -> Any:
        import torch

        return torch.nn.utils.rnn.pack_padded_sequence(
            rows, torch.from_numpy(self.work.lengths()), True, enforce_sorted=False
        )

    def forward(self) -> Prepared:
        import torch

        # Once: a program packs a batch when it is made.
        rows_end = self.work.option == "lengths"
        x = self.packed(self.x) if rows_end else self.x

        def run() -> Any:
            with torch.inference_mode():
                return self.layer(x)[0]

        def named(h: Any) -> "dict[str, np.ndarray]":
            if rows_end:
                h, _ = torch.nn.utils.rnn.pad_packed_sequence(h, batch_first=True)
            return states(h)

        return Prepared(run, named)

    def training(self) -> Prepared:
        import torch

        rows_end = self.work.option == "lengths"
        x = self.packed(self.x) if rows_end else self.x
        cotangent = self.packed(self.cotangent).data if rows_end else self.cotangent

        def run() -> Any:
            h, _ = self.layer(x)
            h = h.data if rows_end else h
            return torch.autograd.grad(h, self.weights, grad_outputs=cotangent)

        return Prepared(run, self.named)

    def penalty(self) -> Prepared:
        import torch

        def run() -> Any:
            moving = self.x.detach().requires_grad_()
            (slope,) = self.gradient(moving, self.cotangent, [moving])
            return torch.autograd.grad(slope.square().sum(), self.weights)

        return Prepared(run, self.named)

    def hessian(self) -> Prepared:
        import torch

        directions = list(self.work.directions().values())
        count = len(self.work.layer.shapes(1, 1))
        along = [
            side
            for i in range(0, len(directions), count)
            for side in self.work.layer.sides(
                torch.cat, *map(torch.from_numpy, directions[i : i + count])
            )[: self.per_layer]
        ]

        def run() -> Any:
            found = self.gradient(self.x, self.cotangent, self.weights)
            slope = sum((g * d).sum() for g, d in zip(found, along, strict=True))
            return torch.autograd.grad(slope, self.weights)

        return Prepared(run, self.named)

    def examples(self) -> Prepared:
        import torch

        def run() -> Any:
            # Its layers have no rule for vmap: a row at a time.
            rows = [
                torch.autograd.grad(self.layer(a)[0], self.weights, grad_outputs=c)
                for a, c in zip(self.x, self.cotangent, strict=True)
            ]
            return [torch.stack(same) for same in zip(*rows, strict=True)]

        return Prepared(run, self.named)

    def stream(self) -> Prepared:
        import torch

        case = self.work.case
        cell = getattr(torch.nn, f"{self.work.cell}Cell")(case.D, case.H)
        cell.load_state_dict(
            {name.removesuffix("_l0"): a for name, a in self.layer.state_dict().items()}
        )
        steps = list(self.x.unbind(1))
        zeros = [torch.zeros(case.N, case.H) for _ in range(self.work.layer.states)]
        first = zeros[0] if len(zeros) == 1 else tuple(zeros)
        state = first

        def output(state: Any) -> Any:
            return state[0] if isinstance(state, tuple) else state

        def next_step() -> Any:
            nonlocal state
            state = cell(steps[0], state)
            return state

        def sequence() -> Any:
            outputs, state = [], first
            for step in steps:
                state = cell(step, state)
                outputs.append(output(state))
            return torch.stack(outputs, 1)

        return Prepared(next_step, lambda _: states(sequence()))


def torch(work: "Work", threads: int) -> Prepared:
    """``torch.nn``'s layers."""
    import torch

    def begin() -> None:
        # As a program in real time would: once, and without a second thread, which
        # a step would have to wait for.
        stream = work.kind == "stream"
        torch.set_grad_enabled(not stream)
        torch.set_num_threads(1 if stream else threads)

    prepare: Callable[[], Prepared] = getattr(_Torch(work), work.kind)
    return prepare()._replace(begin=begin)
