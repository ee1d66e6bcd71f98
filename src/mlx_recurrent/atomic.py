"""Files that are written whole or not at all."""

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# How much of a file's name its temporary files' begin with: names end at 255 bytes.
_START = 48


def write(path: str | os.PathLike[str], content: Callable[[BinaryIO], object]) -> None:
    """Write a file in one go: at any moment it is the old one or the new one.

    The content goes to a temporary file beside it, reaches the disk, and only then
    takes the file's name. A writer that is killed leaves its temporary file; the next
    one removes it. A symbolic link stays, and the file that it names is written. The
    permissions stay those of the old file. A device or a pipe is written directly.

    Args:
        path (str): The file.
        content (callable): Writes it to the file object that it is given.

    Raises:
        OSError: If it cannot be written. The old file is then as it was.
    """
    path = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as file:
            content(file)
        return
    if mode is not None:
        # To replace a file its folder's permission is enough; it must have its own.
        with open(path, "r+b"):
            pass
    try:
        _remove_leftovers(path)
        with _temporary(path) as file:
            content(file)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            # Else a loss of power may leave the new name without the content.
            os.fsync(file.fileno())
            os.replace(file.name, path)
    except OSError as error:
        if error.errno is not None:  # the temporary file is nobody's business
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside another, locked as long as its writer lives."""
    while True:
        name = path.with_name(f"{_start(path)}{secrets.token_hex(8)}.tmp")
        with open(name, "xb") as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # Another writer may have taken it for a leftover before it was locked.
            if not os.fstat(file.fileno()).st_nlink:
                continue
            try:
                yield file
            except BaseException:
                with contextlib.suppress(OSError):
                    name.unlink()
                raise
            return


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of writers that were killed: they hold no lock."""
    pattern = re.compile(re.escape(_start(path)) + r"[0-9a-f]{16}\.tmp")
    for leftover in path.parent.iterdir():
        if pattern.fullmatch(leftover.name):
            with contextlib.suppress(OSError), open(leftover, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def _start(path: Path) -> str:
    return f".{path.name[:_START]}."


def _sync_folder(folder: Path) -> None:
    """Make a new name outlast a loss of power, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
