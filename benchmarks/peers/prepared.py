"""A piece of work that a library is ready to run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from cases import Work


class Prepared(NamedTuple):
    """A piece of work, ready to run.

    Args:
        run (callable): Does it once, and returns when the result is there.
        named (callable): Gives what ``run`` returned as NumPy arrays by name.
        begin (callable, optional): Called before a turn.
        measures (bool, optional): Whether what ``run`` returns is the seconds that are
            wanted, in place of its own. Default: ``False``.
    """

    run: Callable[[], Any]
    named: Callable[[Any], "dict[str, np.ndarray]"]
    begin: Callable[[], None] = lambda: None
    measures: bool = False


def states(h: Any) -> "dict[str, np.ndarray]":
    """Return the outputs of a layer by their name."""
    import numpy as np

    return {"h": np.asarray(h)}


def members(h: Any) -> "dict[str, np.ndarray]":
    """Return the outputs of several layers by their name."""
    import numpy as np

    return {"h": np.stack([np.asarray(member) for member in h])}


def gradients(work: "Work") -> Callable[[Sequence[Any]], "dict[str, np.ndarray]"]:
    """Return what names the gradients of a work's parameters."""
    import numpy as np

    def named(found: Sequence[Any]) -> "dict[str, np.ndarray]":
        return dict(zip(work.parameters(), map(np.asarray, found), strict=True))

    return named
