"""The libraries that run a piece of work, and what each of them can do.

Imported in the worker's process, where a library is loaded when it is first used;
elsewhere only for the names.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .of_jax import jax
from .of_mlx import OURS, UPSTREAM, ours, upstream
from .of_onnx import onnxruntime, openvino
from .of_torch import torch
from .prepared import Prepared

if TYPE_CHECKING:
    from cases import Work

__all__ = ["LIBRARIES", "OURS", "PEERS", "STEPS", "UPSTREAM", "Peer", "Prepared"]


class Peer(NamedTuple):
    """A library to compare with.

    Args:
        label (str): Its name in tables.
        prepare (callable): Makes a piece of work ready, given it and the threads.
        needs (tuple of str): The modules without which it cannot run.
        distribution (str): What carries its version.
        passes (tuple of str): What it can do, of the kinds of work.
        options (tuple of str): The options of work that it has, for a forward pass and
            training where it can do them.
    """

    label: str
    prepare: Callable[["Work", int], Prepared]
    needs: tuple[str, ...]
    distribution: str
    passes: tuple[str, ...]
    options: tuple[str, ...]


DERIVATIVES = ("forward", "training", "penalty", "hessian", "examples")
EVERYTHING = (*DERIVATIVES, "ensemble", "calls")
STEPS = ("stream", "step")
NETWORKS = ("bidirectional", "depth")
REGULARISERS = ("leak", "zoneout", "input dropout", "recurrent dropout")
LIBRARIES = {
    OURS: Peer(
        "ours",
        ours,
        ("mlx_recurrent",),
        "mlx-recurrent",
        (*EVERYTHING, *STEPS, "kept"),
        ("lengths", "mask", *NETWORKS, *REGULARISERS),
    ),
    UPSTREAM: Peer(
        "mlx.nn",
        upstream,
        ("mlx",),
        "mlx",
        (*EVERYTHING, "stream"),
        NETWORKS,
    ),
    "torch": Peer(
        "PyTorch",
        torch,
        ("torch",),
        "torch",
        (*DERIVATIVES, "stream"),
        ("lengths", *NETWORKS),
    ),
    "onnxruntime": Peer(
        "ONNX Runtime",
        onnxruntime,
        ("onnxruntime", "onnx"),
        "onnxruntime",
        ("forward", "stream"),
        ("lengths", *NETWORKS),
    ),
    "jax": Peer("JAX scan", jax, ("jax",), "jax", EVERYTHING, ("lengths", *NETWORKS)),
    "openvino": Peer(
        "OpenVINO",
        openvino,
        ("openvino",),
        "openvino",
        ("forward",),
        ("lengths", *NETWORKS),
    ),
}
PEERS = [name for name in LIBRARIES if name != OURS]
