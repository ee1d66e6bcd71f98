import sys


def require_mlx() -> None:
    """Check that the installed MLX is the one the native module was built for.

    MLX's C++ ABI moves between patch releases, so loading the module beside any other
    release could crash the process. This check therefore runs before it is loaded.

    Raises:
        ImportError: If MLX is missing, cannot be loaded, or has another version.
    """
    try:
        from mlx_recurrent._build import MLX_VERSION
    except ImportError as error:
        raise ImportError(
            "mlx_recurrent is imported from a directory where its native module was "
            "not built: install it with `pip install .` and import it from elsewhere."
        ) from error

    # On Linux the `mlx` distribution alone has no back end, and one of another version
    # would be left in place beside it.
    extra = "[cpu]" if sys.platform.startswith("linux") else ""
    command = f'pip install "mlx{extra}=={MLX_VERSION}"'
    try:
        import mlx.core as mx
    except ImportError as error:
        raise ImportError(
            f"mlx_recurrent needs MLX {MLX_VERSION}, which cannot be imported here "
            f"({_first_line(error)}): run `{command}`."
        ) from error
    installed = mx.__version__  # type: ignore[attr-defined]
    if installed != MLX_VERSION:
        raise ImportError(
            f"mlx_recurrent was built for MLX {MLX_VERSION}, but MLX {installed} is "
            f"installed: run `{command}`, or reinstall mlx-recurrent."
        )


def _first_line(error: ImportError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
