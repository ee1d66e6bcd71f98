"""Damaged and hostile files, and a process of its own that reads them.

    python -m hostile [SURFACE] [--count 1000] [--seed 1]

A case ends with a right result or the documented error, in bounded time and memory,
and changes nothing else. Its name is printed before it runs: a crash names its case.
"""

import argparse
import contextlib
import faulthandler
import io
import itertools
import json
import os
import resource
import signal
import struct
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_recurrent import RNN, Bidirectional, Stack
from mlx_recurrent.command.cli import main as command
from mlx_recurrent.interop import Reversed, from_onnx, to_onnx, weights

MEMORY, SECONDS = 6 << 30, 20
D, H = 3, 4
OLD = b"the file that was there before"


def network():
    mx.random.seed(0)
    return Stack.build(D, H, 2, bidirectional=True)


def damaged(content, rng, count, header):
    """Cut off at every length and with every bit flipped, or some of those.

    Args:
        content (bytes): The whole file.
        rng (Generator): Draws which.
        count (int): How many.
        header (int): The bytes that say what the others are: half of the flips.
    """
    cases = [("cut", n) for n in range(len(content))]
    flips = np.concatenate(
        [rng.permutation(8 * header), 8 * header + rng.permutation(8 * len(content))]
    )
    flips = flips[flips < 8 * len(content)]
    if count < len(cases):
        cases = [cases[i] for i in sorted(rng.permutation(len(cases))[: count // 2])]
    for kind, n in [*cases, *(("flip", int(bit)) for bit in flips[:count])]:
        if kind == "cut":
            yield f"cut after {n} bytes", content[:n]
        else:
            changed = bytearray(content)
            changed[n // 8] ^= 1 << n % 8
            yield f"bit {n % 8} of byte {n // 8} flipped", bytes(changed)


# Safetensors --------------------------------------------------------------------------


def safetensors(header, body=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape=(4, 4), offsets=(0, 64), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def of(*arguments, **keywords):
    return safetensors({"Wxh": entry(*arguments, **keywords)})


TEXT = json.dumps(entry()).encode()
# Each is refused, as one that MLX's reader does not survive or reads as something else.
HEADERS = {
    "no file": b"",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "no header": bytes(8),
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 99_999_999) + b"{}",
    "a list": safetensors([1]),
    "a number": safetensors(b"7"),
    "no JSON": safetensors(b"{]"),
    "JSON of Python's": safetensors(b'{"Wxh": NaN}'),
    "no UTF-8": safetensors(b'{"\xff\xfe": ' + TEXT + b"}"),
    "another UTF": safetensors(json.dumps({"Wxh": entry()}).encode("utf-16")),
    "deep lists": safetensors(b'{"Wxh": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep objects": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "deep and open": safetensors(b"[" * 1_000_000),
    "a long number": safetensors(b'{"Wxh": ' + b"9" * 100_000 + b"}"),
    "a name twice": safetensors(b'{"Wxh": %b, "Wxh": %b}' % (TEXT, TEXT)),
    "no entry": safetensors({"Wxh": None}),
    "an empty entry": safetensors({"Wxh": {}}),
    "more in an entry": safetensors({"Wxh": {**entry(), "code": "print()"}}),
    "a negative size": of([-1], (0, 2**64 - 4)),
    "two negative sizes": of([-4, -4]),
    "a negative size beside zero": of([0, -5], (0, 0)),
    "sizes whose product is 2^64": of([65536] * 4, (0, 0)),
    "sizes whose product is 2^62 of four bytes": of([2**31 - 1, 2**31 - 1, 4], (0, 16)),
    "a size beyond 2^32": of([2**32 + 16]),
    "a size of 2^100": of([2**100]),
    "a size that is a fraction": of([4.0, 4]),
    "a size that is a truth": of([True, 16]),
    "a size that is a text": of(["4", 4]),
    "a shape that is a text": safetensors({"Wxh": {**entry(), "shape": "44"}}),
    "a hundred thousand axes": of([1] * 100_000 + [16]),
    "bytes beyond the end": of([17], (0, 68)),
    "bytes after 2^64": of([4], (2**64 - 24, 2**64 - 8)),
    "bytes before the start": of([4], (-16, 0)),
    "bytes far before the start": of([16], (-80, -16)),
    "bytes from end to start": of([4, 4], (64, 0)),
    "fewer bytes than numbers": of([4, 4], (0, 60)),
    "places that are fractions": of([4, 4], (0.5, 64.5)),
    "three places": of([4, 4], (0, 64, 64)),
    "bytes of two arrays": safetensors({"Wxh": entry(), "Whh": entry()}),
    "bytes of no array": of([4], (32, 48)),
    "more bytes than arrays": of([4], (0, 16)),
    "an unknown dtype": of(dtype="F31"),
    "a dtype that is a list": of(dtype=["F32"]),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}, "Wxh": entry()}),
    "metadata that are a list": safetensors({"__metadata__": [1], "Wxh": entry()}),
    "metadata that are a text": safetensors({"__metadata__": "a", "Wxh": entry()}),
}


def read_safetensors(folder, rng, count):
    """``convert`` to ONNX."""
    source, target = folder / "weights.safetensors", folder / "model.onnx"
    weights.write(network(), source)
    content = source.read_bytes()
    assert convert(source, target) == (0, "")
    right = target.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    cases = [*HEADERS.items(), *damaged(content, rng, count, length)]
    for name, damage in cases:
        source.write_bytes(damage)
        target.write_bytes(OLD)
        yield name
        status, said = convert(source, target)
        if status == 0 and name not in HEADERS:
            # The numbers themselves have no checksum.
            in_numbers = damage[:length] == content[:length]
            assert in_numbers or target.read_bytes() == right, "another network"
        else:
            assert status == 2 and target.read_bytes() == OLD
            assert said.count("\n") == 1 and str(source) in said, said


def convert(source, target):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command(["convert", str(source), str(target), "--overwrite"])
    return status, said.getvalue()


def load_weights(folder, rng, count):
    """MLX's own ``load_weights``: files that are cut off change no parameter."""
    layer = network()
    before = values(layer)
    for suffix in ("safetensors", "npz"):
        path = folder / f"weights.{suffix}"
        layer.save_weights(str(path))
        content = path.read_bytes()
        for n in rng.permutation(len(content))[:count]:
            path.write_bytes(content[:n])
            yield f"{suffix} cut after {n} bytes"
            try:
                layer.load_weights(str(path))
            except Exception:
                assert values(layer) == before
            else:
                raise AssertionError("loaded")


def values(layer):
    return {k: np.array(a).tobytes() for k, a in tree_flatten(layer.parameters())}


# ONNX ---------------------------------------------------------------------------------


def graphs():
    """Models that ONNX's checker may find right; whether they are layers all the same.

    Yields:
        tuple: A name, the file's content, and ``False`` where it must be refused.
    """
    from onnx import TensorProto, helper, numpy_helper

    node, constant = helper.make_node, numpy_helper.from_array
    W = np.ones((1, H, D), np.float32)
    R = constant(np.ones((1, H, H), np.float32), "R")

    def model(*nodes, x="X", w="W", W=W, more=(), functions=()):
        W = constant(W, "W") if isinstance(W, np.ndarray) else W
        constants = [R, *([W] if W else [])]
        constants += [constant(np.array(a), name) for name, a in more]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [*nodes, node("RNN", [x, w, "R"], ["Y"], hidden_size=H)],
            "graph",
            [info("X", 1, ["L", "N", D])],
            [info("Y", 1, ["L", 1, "N", H])],
            constants,
        )
        opsets = [helper.make_opsetid("", 22), helper.make_opsetid("f", 1)]
        made = helper.make_model(
            graph, opset_imports=opsets, functions=functions, ir_version=10
        )
        return made.SerializeToString()

    def tensor(dims, raw, dtype=TensorProto.FLOAT, **external):
        made = TensorProto(name="W", data_type=dtype, dims=dims)
        if external:
            made.data_location = TensorProto.EXTERNAL
            for key, value in external.items():
                made.external_data.add(key=key, value=str(value))
        else:
            made.raw_data = raw
        return made

    def chain(operator, count, first, twice=False, **attributes):
        names = [first, *(f"{operator}{i}" for i in range(count))]
        return [
            node(operator, [a] * (1 + twice), [b], **attributes)
            for a, b in itertools.pairwise(names)
        ]

    yield "as it is", model(), True
    first = node("RNN", ["X", "W", "R"], ["first"], hidden_size=H)
    squeezed = node("Squeeze", ["first", "one"], ["x"])
    rest = {"x": "x", "more": [("one", [1])]}
    yield "layers whose sizes do not fit", model(first, squeezed, **rest), False
    yield (
        "Concat of itself 36 times",
        model(*chain("Concat", 36, "W", True, axis=0), w="Concat35"),
        False,
    )
    yield (
        "Gather of 10^11 numbers",
        model(
            node("Gather", ["W", "i"], ["g"], axis=0),
            node("Gather", ["g", "i"], ["h"], axis=1),
            w="h",
            more=[("i", np.zeros(300_000, np.int64))],
        ),
        False,
    )
    yield (
        "a shape of itself 40 times",
        model(node("Shape", ["X"], ["s"]), *chain("Concat", 40, "s", True, axis=0)),
        True,
    )
    yield (
        "a chain of 5000 nodes",
        model(*chain("Identity", 5000, "W"), w="Identity4999"),
        False,
    )
    for operator, axes in (
        ("Unsqueeze", [0, 0, 0]),
        ("Unsqueeze", range(10**6)),
        ("Squeeze", [0.5, np.nan]),
        ("Squeeze", ["x"]),
        ("Squeeze", [2**62]),
        ("Reshape", [2**62, -1]),
        ("Reshape", [np.inf]),
        ("ReduceSum", [-(2**63)]),
    ):
        name = f"{operator} by {list(axes)[:3]!s}"
        value = np.array(axes, object) if "x" in axes else np.array(axes)
        yield name, model(node(operator, ["X", "a"], ["b"]), more=[("a", value)]), True
    for ends in ([np.inf], [np.nan], [2**63 - 1], [], [-(2**63)]):
        yield (
            f"Slice to {ends}",
            model(node("Slice", ["X", "a", "a"], ["b"]), more=[("a", ends)]),
            True,
        )
    yield (
        "a Gather by texts",
        model(node("Gather", ["X", "a"], ["b"]), more=[("a", np.array(["x"], object))]),
        True,
    )
    yield (
        "nodes in a ring",
        model(node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"])),
        False,
    )
    yield "a name twice", model(node("Identity", ["W"], ["W"])), False
    yield "a name that is nowhere", model(w="none"), False
    body = [node("G", ["a"], ["b"], domain="f")], [helper.make_opsetid("f", 1)]
    other = [node("F", ["a"], ["b"], domain="f")], [helper.make_opsetid("f", 1)]
    yield (
        "functions that call each other",
        model(
            node("F", ["W"], ["c"], domain="f"),
            functions=[
                helper.make_function("f", "F", ["a"], ["b"], *body),
                helper.make_function("f", "G", ["a"], ["b"], *other),
            ],
        ),
        False,
    )
    whole = tensor([1, H, D], b"", location="large")
    yield "the first bytes of a large file", model(W=whole), None
    raw = W.tobytes()
    for name, W in {
        "2^93 numbers": tensor([2**31] * 3, raw),
        "a negative size": tensor([1, -4, 3], raw),
        "no numbers of a large size": tensor([1, 0, 2**62], b""),
        "no numbers": tensor([1, 0, 3], b""),
        "too few bytes": tensor([1, H, D], raw[:-1]),
        "too many bytes": tensor([1, H, D], raw + raw),
        "an unknown dtype": tensor([1, H, D], raw, 99),
        "texts": tensor([1, H, D], raw, TensorProto.STRING),
        "complex numbers": tensor([1, H, D], raw + raw, TensorProto.COMPLEX64),
        "a file above": tensor([1, H, D], b"", location="../weights.bin"),
        "a file of the system's": tensor([1, H, D], b"", location="/etc/passwd"),
        "a link": tensor([1, H, D], b"", location="link.bin"),
        "a folder": tensor([1, H, D], b"", location="."),
        "bytes of a large file": tensor([1, H, D], b"", location="large", length=2**31),
        "too many bytes of a file": tensor([1, H, D], b"", location="large", length=49),
        "2^31 bytes of a large file": tensor([1, 2**20, 2**9], b"", location="large"),
        "a pipe": tensor([1, H, D], b"", location="pipe"),
        "bytes after 2^63": tensor([1, H, D], b"", location="w.bin", offset=2**63),
        "2^62 bytes": tensor([1, H, D], b"", location="w.bin", length=2**62),
    }.items():
        yield f"{name} as weights", model(W=W), False
        nodes = [node("Constant", [], ["W"], value=W)]
        yield f"{name} as a node's weights", model(*nodes, W=None), False


def read_onnx(folder, rng, count):
    """``from_onnx`` of a path and of bytes."""
    below = folder / "below"
    below.mkdir()
    path = below / "model.onnx"
    raw = np.ones((1, H, D), np.float32).tobytes()
    (folder / "weights.bin").write_bytes(raw)
    (below / "w.bin").write_bytes(raw)
    (below / "link.bin").symlink_to(folder / "weights.bin")
    os.mkfifo(below / "pipe")
    with open(below / "large", "wb") as file:  # takes no room: it is all zeros
        file.truncate(3 << 30)
    content = to_onnx(network(), path).SerializeToString()
    cases = [(*case, None) for case in damaged(content, rng, count, len(content))]
    for name, damage, allowed in [*graphs(), *cases]:
        path.write_bytes(damage)
        for given in (path, damage):
            yield f"{name}, as {type(given).__name__}"
            try:
                layer = from_onnx(given)
            except ValueError as error:
                assert allowed is not True, error
                words = str(path) if given is path else "the model"
                assert words in str(error), error
            else:
                assert allowed is not False, "read"
                assert isinstance(layer, (RNN, Reversed, Bidirectional, Stack))


SURFACES = {
    "safetensors": read_safetensors,
    "load_weights": load_weights,
    "onnx": read_onnx,
}


def main():
    parser = argparse.ArgumentParser(prog="python -m hostile")
    parser.add_argument("surface", nargs="?", choices=SURFACES)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng = np.random.default_rng(arguments.seed)
    cases = 0
    for surface in [arguments.surface] if arguments.surface else SURFACES:
        with tempfile.TemporaryDirectory() as folder:
            for name in SURFACES[surface](Path(folder), rng, arguments.count):
                signal.alarm(SECONDS)
                print(f"{surface}: {name}", flush=True)
                cases += 1
    print(f"{cases} cases")


if __name__ == "__main__":
    main()
