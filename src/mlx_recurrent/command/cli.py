"""The command ``mlx-recurrent``.

Nothing here needs the native module before a subcommand does: ``doctor`` must be able
to say that it cannot be loaded.
"""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments (list of str, optional): The command line without the program's name.
            ``None`` is that of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="mlx-recurrent", description="MLX's recurrent layers on a native core."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "doctor",
        help="say what is installed, what is slow and how to mend it",
        description="Say what is installed, what is slow and how to mend it. The exit "
        "code is 1 where something is broken.",
    )
    bench = commands.add_parser(
        "bench",
        help="measure the layers beside mlx.nn's and whichever peers are installed",
        description="Measure RNN, GRU and LSTM beside mlx.nn's and whichever peers are "
        "installed. Each library has a process of its own with the same threads, and "
        "they take turns; a wrong result is never timed.",
    )
    from mlx_recurrent.benchmarks.options import add_options

    add_options(bench)
    convert = commands.add_parser(
        "convert",
        help="turn an ONNX model's RNN nodes into weights of layers, and back",
        description="Turn the RNN nodes of an ONNX model into a safetensors file of "
        "layers' weights, which load_weights takes, or such a file into an ONNX model.",
    )
    from mlx_recurrent.command import convert as conversion

    conversion.add_options(convert)
    parsed = parser.parse_args(arguments)
    if parsed.command == "doctor":
        from mlx_recurrent.command import doctor

        return doctor.main()
    try:
        from mlx_recurrent import _native  # noqa: F401
    except ImportError as error:
        print(f"{error}\nmlx-recurrent doctor says more.", file=sys.stderr)
        return 1
    if parsed.command == "convert":
        return conversion.main(parsed)
    return _bench(bench, parsed, arguments)


def _bench(
    parser: argparse.ArgumentParser, parsed: argparse.Namespace, arguments: list[str]
) -> int:
    from mlx_recurrent import _native
    from mlx_recurrent.benchmarks import routes, run
    from mlx_recurrent.benchmarks.options import options_of

    if parsed.picture:
        try:
            from matplotlib.backend_bases import FigureCanvasBase
        except ImportError:
            parser.error("argument --picture: needs matplotlib: pip install matplotlib")
        kinds = FigureCanvasBase.get_supported_filetypes()
        if parsed.picture.suffix[1:].lower() not in kinds:
            parser.error(
                f"argument --picture: must end in one of .{', .'.join(kinds)}, not "
                f"{str(parsed.picture)!r}"
            )
    try:
        options = options_of(parsed, _native.usable_cores())
    except ValueError as error:
        parser.error(str(error))
    begin = routes.measure if options.routes else run.run
    return int(begin(options, arguments))
