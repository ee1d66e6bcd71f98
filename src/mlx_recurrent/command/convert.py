"""``mlx-recurrent convert``: an ONNX model to weights of layers, and back."""

import argparse
import sys
from pathlib import Path
from typing import Any

_SUFFIXES = (".onnx", ".safetensors")
# What each direction has options for.
_OF_ONNX = ("node",)
_OF_WEIGHTS = (
    *("nonlinearity", "alpha", "beta", "clip", "merge", "residual"),
    *("layout", "opset", "sequence_lens", "initial_h", "sizes"),
)
# What the functions that are called name their arguments, by the options for them.
_ARGUMENTS = {
    "activations": "--nonlinearity",
    "activation_alpha": "--alpha",
    "activation_beta": "--beta",
    "clip": "--clip",
    "node": "--node",
    "opset": "--opset",
    "sequence_lens": "--sequence-lens",
    "initial_h": "--initial-h",
    "sizes": "--sizes",
    "sizes['N']": "--sizes N",
    "sizes['L']": "--sizes L",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("source", metavar="SOURCE", help="a .onnx or .safetensors file")
    parser.add_argument("target", metavar="TARGET", help="a file of the other kind")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace TARGET where it exists"
    )
    onnx = parser.add_argument_group("from .onnx")
    onnx.add_argument(
        "--node",
        action="append",
        metavar="NAME",
        help="take this RNN node alone; give it again for nodes that follow",
    )
    weights = parser.add_argument_group(
        "from .safetensors that this command did not write"
    )
    weights.add_argument(
        "--nonlinearity",
        metavar="NAME",
        help="tanh, relu, sigmoid, identity, or another of ONNX's activations",
    )
    for name in ("alpha", "beta"):
        weights.add_argument(
            f"--{name}", type=float, help=f"the {name} of the nonlinearity"
        )
    weights.add_argument(
        "--clip", type=float, help="the largest magnitude that it is given"
    )
    weights.add_argument(
        "--merge",
        choices=["concat", "sum", "mul", "mean", "none"],
        help="what is made of two directions",
    )
    weights.add_argument(
        "--residual",
        action="store_true",
        help="layers add their input to their outputs",
    )
    graph = parser.add_argument_group("to .onnx")
    graph.add_argument(
        "--layout",
        type=int,
        choices=[0, 1],
        help="sequences are (L, N, D), the default, or (N, L, D)",
    )
    graph.add_argument("--opset", type=int, help="the version of ONNX's operators")
    graph.add_argument(
        "--sequence-lens", action="store_true", help="lengths of rows are an input"
    )
    graph.add_argument(
        "--initial-h",
        action="store_true",
        help="states before the first step are inputs",
    )
    graph.add_argument(
        "--sizes",
        type=_sizes,
        metavar="N=ROWS,L=STEPS",
        help="the model takes so many rows and steps alone",
    )


def _sizes(text: str) -> dict[str, int]:
    """Return sizes by their names."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {name: int(size) for name, size in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be like N=3,L=10, but is {text!r}"
        ) from None


def main(parsed: argparse.Namespace) -> int:
    """Convert a file and return 0, or say in one line why not and return 2."""
    try:
        said = _convert(parsed)
    except OSError as error:
        where = f": {error.filename!r}" if error.filename else ""
        return _refuse(f"{error.strerror or error}{where}")
    except (ValueError, TypeError, ImportError) as error:
        # Messages begin with the argument that they are about.
        argument, space, rest = str(error).partition(" ")
        text = _ARGUMENTS.get(argument, argument) + space + rest
        return _refuse(text.replace("; node= takes", "; --node takes"))
    print(said)
    return 0


def _convert(parsed: argparse.Namespace) -> str:
    source, target = Path(parsed.source), Path(parsed.target)
    _judge(parsed, source, target)
    from mlx.utils import tree_flatten

    from mlx_recurrent.functional.judging import dtype_name
    from mlx_recurrent.interop import from_onnx, to_onnx, weights

    if source.suffix.lower() == ".onnx":
        layer = from_onnx(source, node=parsed.node)
        weights.write(layer, target)
    else:
        layer = weights.read(source, _unsaid(parsed))
        to_onnx(
            layer,
            target,
            layout=parsed.layout or 0,
            opset=parsed.opset,
            sequence_lens=parsed.sequence_lens,
            initial_h=parsed.initial_h,
            sizes=parsed.sizes,
        )
    arrays: Any = tree_flatten(layer.parameters())
    return f"{target} holds\n" + "\n".join(
        f"  {name} {a.shape} {dtype_name(a.dtype)}" for name, a in arrays
    )


def _judge(parsed: argparse.Namespace, source: Path, target: Path) -> None:
    for path in (source, target):
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{str(path)!r} must end in {' or '.join(_SUFFIXES)}")
    if source.suffix.lower() == target.suffix.lower():
        raise ValueError(
            f"SOURCE and TARGET must be of different kinds, but both end in "
            f"{source.suffix}"
        )
    from_onnx = source.suffix.lower() == ".onnx"
    for name in _OF_WEIGHTS if from_onnx else _OF_ONNX:
        given = getattr(parsed, name)
        if given is not None and given is not False:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must not be given for a {source.suffix} file")
    if not source.is_file():
        raise FileNotFoundError(2, "No such file", str(source))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(target.parent))
    if target.is_dir():
        raise IsADirectoryError(21, "Is a folder", str(target))
    if target.exists() and not parsed.overwrite:
        raise FileExistsError(17, "File exists (--overwrite replaces it)", str(target))


def _unsaid(parsed: argparse.Namespace) -> Any:
    from mlx_recurrent.interop.activations import Activation, complete
    from mlx_recurrent.interop.weights import Unsaid

    activation = None
    if parsed.nonlinearity is not None:
        if parsed.nonlinearity.lower() == "identity":
            activation = Activation("Affine", 1.0, 0.0, parsed.clip)
        else:
            activation = complete(
                parsed.nonlinearity, parsed.alpha, parsed.beta, parsed.clip
            )
    for name in ("alpha", "beta", "clip"):
        given = getattr(parsed, name)
        if given is not None and getattr(activation, name, None) != given:
            raise ValueError(
                f"--{name} must belong to a --nonlinearity, but "
                f"{parsed.nonlinearity or 'none'} has no {name}"
            )
    return Unsaid(activation, parsed.merge, parsed.residual)


def _refuse(why: str) -> int:
    line = " ".join(why.split())
    print(f"mlx-recurrent convert: error: {line}", file=sys.stderr)
    return 2
