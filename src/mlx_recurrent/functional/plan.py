from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# From what costs least on.
_PATHS = ("native", "traced", "composed")


@dataclass(frozen=True)
class Plan:
    """What a call of a layer would run, and why.

    Printing it gives one paragraph, or one for each of several layers.

    Args:
        path (str): ``"native"``, ``"traced"`` or ``"composed"``. Of several layers: the
            last of these that one of them takes.
        reason (str): Why this path was chosen.
        isa (str, optional): The instruction set of the kernels. ``None`` on the
            composed path, and of several layers.
        threads (int, optional): How many threads take part. ``None`` on the composed
            path, and of several layers.
        partition (str, optional): What the threads divide: ``"batch"``, ``"hidden"``
            or, for one thread, ``"none"``. ``None`` on the composed path, and of
            several layers.
        parts (dict, optional): Of several layers: the plan of each, by its name in the
            module, ``"layers[0]"`` or ``"forward"``. Default: ``{}``.
        by_blas (str, optional): Which of the products go through a BLAS, and which that
            is. ``None`` where none does, and of several layers.
        place (str, optional): Where it would run: ``"cpu"`` or ``"gpu"``. ``None`` of
            several layers that do not all run in one place.
        place_reason (str, optional): Why there.

    Example:
        >>> import mlx.core as mx
        >>> from mlx_recurrent import RNN
        >>> plan = RNN(3, 8).plan(mx.zeros((2, 5, 3)))
        >>> plan.reason
        'tanh is built into the native kernel'
    """

    path: Literal["native", "traced", "composed"]
    reason: str
    isa: str | None = None
    threads: int | None = None
    partition: Literal["none", "batch", "hidden"] | None = None
    parts: Mapping[str, "Plan"] = field(default_factory=dict, hash=False)
    by_blas: str | None = None
    place: Literal["cpu", "gpu"] | None = None
    place_reason: str = ""

    def __str__(self) -> str:
        if self.parts:
            return "\n".join(
                f"{name}{'.' if part.parts else ': '}{line}"
                for name, part in self.parts.items()
                for line in str(part).split("\n")
            )
        if self.path == "composed":
            return (
                f"Composed path, because {self.reason}: at each step one matrix "
                "product and what the cell makes of it, as MLX operations; the "
                f"cost is linear in the length of the sequence.{self._where()}"
            )
        work = {
            "batch": f"{self.threads} threads that divide the batch",
            "hidden": f"{self.threads} threads that divide the hidden units",
        }.get(self.partition or "none", "one thread")
        return (
            f"{self.path.capitalize()} path, because {self.reason}: the whole sequence "
            f"in one CPU kernel, with {self.isa} instructions, on {work}."
            f"{self._products()}{self._where()}"
        )

    def _products(self) -> str:
        return f" Of its products {self.by_blas}." if self.by_blas else ""

    def _where(self) -> str:
        if self.place is None:
            return ""
        return f" It runs on the {self.place.upper()}: {self.place_reason}."


def together(parts: Mapping[str, Plan]) -> Plan:
    """Return the plan of several layers, from that of each by its name."""
    path = max((part.path for part in parts.values()), key=_PATHS.index)
    reasons = (f"{name}: {part.reason}" for name, part in parts.items())
    places = {part.place for part in parts.values()}
    return Plan(
        path,
        "; ".join(reasons),
        parts=dict(parts),
        place=places.pop() if len(places) == 1 else None,
        place_reason="; ".join(
            f"{n}: {part.place_reason}" for n, part in parts.items()
        ),
    )
