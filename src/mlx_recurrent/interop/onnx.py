"""Models of ONNX with the operators ``RNN``, ``GRU`` and ``LSTM``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_recurrent import atomic
from mlx_recurrent.functional.judging import (
    judge_flag,
    judge_size,
    shown,
    type_name,
)
from mlx_recurrent.interop.gates import KINDS
from mlx_recurrent.interop.parts import framework
from mlx_recurrent.interop.reversed import Reversed
from mlx_recurrent.layers.bidirectional import Bidirectional
from mlx_recurrent.layers.stack import Stack

if TYPE_CHECKING:
    import onnx

# What protocol buffers can hold, in bytes.
LARGEST = 2**31 - 1


def from_onnx(
    model: "str | os.PathLike[str] | bytes | onnx.ModelProto",
    *,
    node: str | Sequence[str] | None = None,
) -> Any:
    """Make layers of the nodes ``RNN``, ``GRU`` and ``LSTM`` of an ONNX model.

    ``W`` and ``R`` become the weights, their gates in the layer's order, and the sum of
    both biases the bias; of a ``GRU`` with ``linear_before_reset`` the part that the
    reset multiplies is ``bhn``, and without it ``reset_after`` is ``False``. A node
    becomes an :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` or
    :class:`mlx_recurrent.LSTM`, a :class:`Reversed` of it (direction ``reverse``) or an
    :class:`mlx_recurrent.Bidirectional`, whose ``merge`` is what the graph makes of the
    two directions: ``None`` where it leaves them as they are. Nodes that follow each
    other become an :class:`mlx_recurrent.Stack`.

    The layers are called as all are, with sequences ``NLD``, whatever the layout in the
    graph. Its inputs ``sequence_lens``, ``initial_h`` and ``initial_c`` are ``lengths``
    and the states of the call. Constant states become the parameters ``hidden0`` and
    ``cell0``.

    Args:
        model (str or bytes or ModelProto): A file, its content, or the model.
        node (str or list(str), optional): The names of the nodes to take, one after
            another, of a model that has others too. A node without a name has that of
            its first output. ``None`` takes the whole graph, which must then hold
            nothing else that changes numbers. Default: ``None``.

    Returns:
        Module: The layers.

    Raises:
        ImportError: If onnx is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is damaged or against ONNX's rules, or holds what the
            layers cannot: the message names it.
        OSError: If the file cannot be opened.

    Example:
        >>> from mlx_recurrent import Stack
        >>> from mlx_recurrent.interop import from_onnx, to_onnx
        >>> model = to_onnx(Stack.build(3, 8, 2))
        >>> from_onnx(model).layers[1].Wxh.shape
        (8, 8)
    """
    framework("onnx", "from_onnx")
    from mlx_recurrent.interop.onnx_reader import Reader

    proto, name, folder = _opened(model)
    names = _names(node)
    try:
        reader = Reader(proto, name, folder)
        return reader.network() if names is None else reader.chosen(names)
    except RecursionError as error:
        raise ValueError(f"{name} has too many nodes in a row") from error


def to_onnx(
    layer: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    layout: int = 0,
    opset: int | None = None,
    sequence_lens: bool = False,
    initial_h: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> "onnx.ModelProto":
    """Make an ONNX model of layers, for evaluation.

    Its input ``X`` and output ``Y`` are sequences with any number ``N`` of rows and
    ``L`` of steps, or those in ``sizes``. ``Y`` is what the call of the layers returns;
    the pair of a :class:`mlx_recurrent.Bidirectional` without ``merge`` is one array
    with the directions before the rows, as the operator gives it; of an
    :class:`mlx_recurrent.LSTM` it is the hidden states. The output ``Y_h`` is the last
    state, ``(N, H)``, or ``(2, N, H)`` of both directions, and ``Y_c`` behind it an
    LSTM's cell state; of a :class:`mlx_recurrent.Stack` there are those of each layer,
    ``layers.0.Y_h`` and so on.

    Dropout, which acts in training alone, is left out; learned states (``hidden0``,
    ``cell0``) are part of the model.

    Args:
        layer (Module): An :class:`mlx_recurrent.RNN`, :class:`mlx_recurrent.GRU` or
            :class:`mlx_recurrent.LSTM`, a :class:`Reversed`, an
            :class:`mlx_recurrent.Bidirectional`, or an :class:`mlx_recurrent.Stack` of
            them.
        path (str, optional): A file to write it to, in one go: an older one stays whole
            until then. Default: ``None``.
        layout (int, optional): 0 for sequences ``(L, N, D)``, 1 for ``(N, L, D)``. The
            operator's own is 0 in both, the one that ONNX Runtime runs. Default: ``0``.
        opset (int, optional): The version of ONNX's operators, at least 14. ``None`` is
            the oldest that can hold the model: 14, or 22 for bfloat16.
            Default: ``None``.
        sequence_lens (bool, optional): Whether the model has the input
            ``sequence_lens``, the rows' lengths, ``(N,)``. OpenVINO leaves it out,
            without a word, where ``sizes`` does not hold both. Default: ``False``.
        initial_h (bool, optional): Whether the model has the states before the first
            step as inputs, named and shaped like the last ones: ``initial_h`` (and
            ``initial_c``), or ``layers.0.initial_h`` and so on. Default: ``False``.
        sizes (dict, optional): The sizes ``"N"`` and ``"L"``, or one of them, of a
            model that takes no others. Default: ``None``.

    Returns:
        ModelProto: The model, found right by ONNX's checker.

    Raises:
        ImportError: If onnx is not installed.
        TypeError: If an argument is of the wrong type.
        ValueError: If a layer has what the operator does not: the message names it.
        OSError: If the file cannot be written.

    Example:
        >>> from mlx_recurrent import RNN
        >>> from mlx_recurrent.interop import to_onnx
        >>> model = to_onnx(RNN(3, 8), "model.onnx")
        >>> model.graph.node[0].op_type
        'RNN'
    """
    onnx = framework("onnx", "to_onnx")
    from mlx_recurrent.interop.onnx_writer import FIRST_OPSET, Writer

    if isinstance(layout, bool) or not isinstance(layout, int) or layout not in (0, 1):
        raise ValueError(f"layout must be 0 or 1, but is {shown(layout)}")
    latest = onnx.defs.onnx_opset_version()
    if opset is not None and (
        isinstance(opset, bool)
        or not isinstance(opset, int)
        or not FIRST_OPSET <= opset <= latest
    ):
        raise ValueError(
            f"opset must be an integer from {FIRST_OPSET} to {latest}, the latest of "
            f"onnx {onnx.__version__}, but is {shown(opset)}"
        )
    if not isinstance(layer, (*KINDS, Reversed, Bidirectional, Stack)):
        raise TypeError(
            "layer must be an RNN, GRU, LSTM, Reversed, Bidirectional or Stack, "
            f"but is {type_name(layer)}"
        )
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"path must be a str or an os.PathLike, but is {type_name(path)}"
        )
    lengths = judge_flag("sequence_lens", sequence_lens)
    hidden = judge_flag("initial_h", initial_h)
    fixed = _sizes(sizes)
    model = Writer(layer, layout, lengths, hidden).model(opset, fixed)
    size = model.ByteSize()
    if size > LARGEST:
        raise ValueError(
            f"layer must fit into one ONNX file of {LARGEST} bytes, but takes {size}"
        )
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        atomic.write(path, lambda file: file.write(model.SerializeToString()))
    return model


def _sizes(sizes: Any) -> dict[str, int]:
    if sizes is None:
        return {}
    if not isinstance(sizes, Mapping):
        raise TypeError(
            "sizes must be a dict, such as {'N': 3, 'L': 10}, but is "
            f"{type_name(sizes)}"
        )
    for name, size in sizes.items():
        if name not in ("N", "L"):
            raise ValueError(
                f"sizes must be of 'N', rows, and 'L', steps, but has {shown(name)}"
            )
        judge_size(f"sizes[{name!r}]", size, 1)
    return {name: int(size) for name, size in sizes.items()}


def _opened(model: Any) -> tuple[Any, str, Path | None]:
    """Return a model that ONNX's checker accepts, its name and its folder."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        proto, name, folder = model, "the model", None
    elif isinstance(model, (str, os.PathLike, bytes)):
        proto = onnx.ModelProto()
        name, folder = "the model", None
        content = model
        if not isinstance(model, bytes):
            name, folder = repr(os.fspath(model)), Path(model).absolute().parent
            content = Path(model).read_bytes()
        try:
            proto.ParseFromString(content)
        except Exception as error:  # protobuf's own, which has no stable name
            raise ValueError(
                f"{name} must be an ONNX model, but is damaged, cut off or another "
                "kind of file"
            ) from error
    else:
        raise TypeError(
            "model must be a path, bytes or an onnx.ModelProto, but is "
            f"{type_name(model)}"
        )
    if folder is None:
        for tensor in proto.graph.initializer:
            if onnx.external_data_helper.uses_external_data(tensor):
                raise ValueError(
                    f"{name} has the tensor {tensor.name!r} in another file: give the "
                    "model's path"
                )
    try:
        # By its path, where there is one: external data are looked for beside it.
        onnx.checker.check_model(proto if folder is None else os.fspath(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        why = next((line for line in str(error).splitlines() if line.strip()), "?")
        raise ValueError(f"{name} is no valid ONNX model: {why}") from error
    return proto, name, folder


def _names(node: Any) -> list[str] | None:
    if node is None:
        return None
    names = [node] if isinstance(node, str) else node
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) for name in names
    ):
        raise TypeError(
            f"node must be a name or a list of names, but is {type_name(node)}"
        )
    if not names:
        raise ValueError("node must hold at least one name, but is empty")
    if len(set(names)) < len(names):
        raise ValueError(f"node must hold each name once, but is {shown(list(names))}")
    return list(names)
