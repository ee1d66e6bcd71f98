"""Headers of safetensors files, judged before MLX reads them.

Fault: MLX believes them: a negative size or a place outside the file ends the process.
MLX: 0.32.0 to 0.32.4.
Shown by: test_hostile_files
"""

import json
import math
from collections.abc import Iterable
from typing import Any, BinaryIO, NoReturn

# The format's own limit.
_LONGEST = 100_000_000
_MOST_AXES = 8
_LARGEST_SIZE = 2**31 - 1
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


def judge(file: BinaryIO) -> None:
    """Judge the header of a safetensors file, and leave the file at its start.

    Its arrays must fill the rest of the file, one after another.

    Args:
        file (file object): The file.

    Raises:
        ValueError: If it is no header, or not that of this file.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LONGEST):
        raise ValueError(
            f"of its {size} bytes the first 8 say that the header has {length}"
        )
    content = file.read(length)
    file.seek(0)
    try:
        header = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    # MLX writes null for none.
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("its __metadata__ are not texts by name")
    _judge_places(
        (_place(name, entry) for name, entry in header.items()), size - 8 - length
    )


def _place(name: str, entry: Any) -> tuple[int, int, str]:
    """Return where an array is: its first byte, the byte after its last, its name."""
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or set(entry) != set(keys):
        raise ValueError(f"its array {name!r} must have {', '.join(keys)}")
    dtype, shape, offsets = (entry[key] for key in keys)
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"its array {name!r} has an unknown dtype, {dtype!r}")
    if (
        not _counts(shape)
        or len(shape) > _MOST_AXES
        or max([0, *shape]) > _LARGEST_SIZE
    ):
        raise ValueError(
            f"its array {name!r} must have up to {_MOST_AXES} axes of 0 to "
            f"{_LARGEST_SIZE} in its shape"
        )
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"its array {name!r} must have two integers as data_offsets")
    begin, end = offsets
    needed = math.prod(shape) * _BYTES[dtype]
    if end - begin != needed:
        raise ValueError(
            f"its array {name!r} needs {needed} bytes, but has those from {begin} to "
            f"{end}"
        )
    return begin, end, name


def _judge_places(places: Iterable[tuple[int, int, str]], size: int) -> None:
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise ValueError(
                f"its array {name!r} begins at byte {begin} of the data, where {at} is "
                "the next free one"
            )
        at = end
    if at != size:
        raise ValueError(f"its arrays take {at} bytes, where the file has {size}")


def _counts(values: Any) -> bool:
    """Whether these are a list of integers that are not negative."""
    return isinstance(values, list) and all(
        type(value) is int and value >= 0 for value in values
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")
