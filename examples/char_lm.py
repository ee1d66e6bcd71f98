"""A character-level language model: the main job of `mlx_recurrent`, end to end.

    .venv/bin/python examples/char_lm.py train            # two minutes on two cores
    .venv/bin/python examples/char_lm.py train --resume   # after Ctrl-C
    .venv/bin/python examples/char_lm.py generate --prompt "The " --temperature 0.7
    .venv/bin/python examples/char_lm.py train --layer lstm --out runs/char_lm-lstm

`mlx.launch` trains with several processes, "ranks", each with its share of the batch
and of the machine's cores:

    .venv/bin/mlx.launch -n 2 --backend ring -- \\
        .venv/bin/python examples/char_lm.py train

The model is an embedding, a recurrent layer and a linear layer:

    x_t = E[c_t],   h_t = tanh(Wxh x_t + Whh h_{t-1} + b),   p(c_{t+1}) = softmax(W h_t)

or, with `--layer`, another recurrent layer in its place: `gru` or `lstm`.

It learns the Python reference that every CPython carries (`pydoc_data.topics`), or
`--text FILE`. The last tenth of the text is held out: neither the model nor the
baselines it is compared with have seen it. The folder `--out` receives
`checkpoint.json` with the safetensors file that it names, and `curves.png`. A run can
go on with another number of processes: but for rounding it stays the same run.

Exit status: 0, 2 for an error (one line on stderr; the last checkpoint remains) and 130
after Ctrl-C (the step is finished and a checkpoint written first). `mlx.launch` itself
always returns 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import lzma
import math
import os
import platform
import re
import shlex
import signal
import statistics
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter
    from mlx.utils import tree_flatten, tree_unflatten
    from tqdm import tqdm

    from mlx_recurrent import (
        GRU,
        LSTM,
        RNN,
        Linear,
        get_num_threads,
        set_num_threads,
    )
except ImportError as missing:
    print(
        f"char_lm: error: {missing} (pip install 'mlx-recurrent[cpu,examples]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("char_lm: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

FORMAT = 1
RECORD = "checkpoint.json"
ARRAYS = re.compile(r"checkpoint-[0-9a-f]{16}\.safetensors(\.tmp)?")
# safetensors' names of the dtypes that a checkpoint has.
KINDS = {mx.float32: "F32", mx.uint32: "U32", mx.uint64: "U64"}
# Where a text is long, the curve scores this much of the held-out part; the final
# figure always scores all of it.
CURVE_CHARACTERS = 100_000
INTACT = "the last checkpoint is intact, --resume continues it"
LAST_WORD = threading.Lock()

Result = TypeVar("Result")
# The states of a layer, the output first. Without any it begins.
States = tuple[mx.array, ...]


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


class Elsewhere(Failure):
    """Another rank failed, and says why."""


class Lost(Exception):
    """The other ranks cannot be reached: nothing can be agreed upon."""


# Several processes. Without `mlx.launch` the group has one rank, for which MLX's
# collectives return what they are given: the same code, no special case. Every rank
# must take part in each of them, in the same order.


def join() -> int:
    """Joins the ranks, takes a share of the cores, leaves stdout to rank 0.

    Returns the number of ranks.
    """
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise Lost(f"cannot join the other processes: {error}") from None
    here = zlib.crc32(platform.node().encode()) >> 1  # fits an int32
    hosts = mx.distributed.all_gather(mx.array([here])).tolist()
    set_num_threads(max(1, get_num_threads() // hosts.count(here)))
    if group.rank() > 0:
        sys.stdout = open(os.devnull, "w")
    if group.size() > 1:
        read, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written)
        signal.signal(signal.SIGTERM, note_termination)
        threading.Thread(target=watch, args=(read,), daemon=True).start()
    return group.size()


def note_termination(number: int, frame: object) -> None:
    """Nothing: `watch` reads the signal's number."""


def watch(signals: int) -> None:
    """Ends this rank on SIGTERM, which mlx.launch sends where another one has ended.

    The main thread may be in MLX, waiting for a message that will never come.
    """
    while os.read(signals, 1)[0] != signal.SIGTERM:
        pass
    abandon(f"char_lm: error: another process has ended; {INTACT}", 2)


def abandon(line: str, status: int) -> NoReturn:
    """Ends this rank at once: at a normal end MLX would wait for the others."""
    LAST_WORD.acquire()
    if line:
        print(line, file=sys.stderr, flush=True)
    os._exit(status)


def first() -> bool:
    """Whether this is rank 0: the one that writes."""
    return mx.distributed.init().rank() == 0


def own_rows(batch: int) -> slice:
    """The rows of the whole batch that are this rank's; some have one more."""
    group = mx.distributed.init()
    rank, size = group.rank(), group.size()
    return slice(rank * batch // size, (rank + 1) * batch // size)


def gather(rows: mx.array, batch: int) -> mx.array:
    """The whole batch, on every rank, from each one's rows."""
    whole = mx.zeros((batch, *rows.shape[1:]))
    whole[own_rows(batch)] = rows
    whole = mx.distributed.all_sum(whole)
    mx.eval(whole)
    return whole


@cache
def messages() -> mx.Stream:
    """A stream beside the one that computes."""
    return mx.new_stream(mx.cpu)


def anywhere(condition: bool) -> bool:
    """Whether it holds on at least one rank."""
    return bool(mx.distributed.all_max(mx.array(int(condition))).item())


def alike(content: str) -> bool:
    """Whether every rank has the same content."""
    digest = mx.array(list(hashlib.sha256(content.encode()).digest()))
    high, low = mx.distributed.all_max(digest), mx.distributed.all_min(digest)
    return bool(mx.array_equal(high, low).item())


def together(action: Callable[[], Result]) -> Result:
    """What `action`, free of collectives, returns; if it fails on a rank, on all."""
    failure = None
    try:
        result = action()
    except Failure as error:
        failure = error
    except OSError as error:
        failure = Failure(explained(error))
    failed = anywhere(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise Elsewhere
    return result


def tell(line: str) -> None:
    """Prints the line of the first rank that has one; no rank goes on before that."""
    group = mx.distributed.init()
    claim = mx.array(group.rank() if line else group.size())
    try:
        if mx.distributed.all_min(claim).item() == group.rank():
            print(line, file=sys.stderr)
        # The first to end makes mlx.launch end the others.
        anywhere(False)
    except RuntimeError:  # The others have ended: rank 0 was writing its report.
        if line:
            print(line, file=sys.stderr)


def explained(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{place}"


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argument type: a finite number of `kind` from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {name} from {low} to {high}, not {text!r}"
            )
        return value

    return parse


class Layer(NamedTuple):
    """A recurrent layer that the model can have.

    Args:
        ours (type): Its class in `mlx_recurrent`.
        upstream (type): That in `mlx.nn`, which the demo is timed against.
        states (tuple): The names of its states. The first is the output.
    """

    ours: type[nn.Module]
    upstream: type[nn.Module]
    states: tuple[str, ...]


LAYERS = {
    "rnn": Layer(RNN, nn.RNN, ("hidden",)),
    "gru": Layer(GRU, nn.GRU, ("hidden",)),
    "lstm": Layer(LSTM, nn.LSTM, ("hidden", "cell")),
}


def layer_name(text: str) -> str:
    """An argument type: the name of a layer."""
    if text not in LAYERS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(LAYERS)}, not {text!r}"
        )
    return text


def option(kind: type, default: float, low: float, high: float, text: str) -> Any:
    metadata = {"parse": number(kind, low, high), "help": text}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything, beside the text, that the trained weights follow from."""

    layer: str = dataclasses.field(
        default="rnn",
        metadata={"parse": layer_name, "help": f"the layer: {', '.join(LAYERS)}"},
    )
    embedding: int = option(int, 256, 1, 4096, "features of a character, D")
    hidden: int = option(int, 512, 1, 8192, "hidden features, H")
    batch: int = option(int, 32, 1, 4096, "sequences side by side, N")
    chunk: int = option(int, 64, 1, 65536, "characters of each in a step, L")
    steps: int = option(int, 3000, 1, 10**9, "training steps")
    learning_rate: float = option(float, 3e-3, 1e-9, 1.0, "the highest, after warm-up")
    clip: float = option(float, 1.0, 1e-9, 1e9, "largest norm of the gradient")
    dropout: float = option(float, 0.15, 0.0, 0.9, "probability to drop a feature")
    seed: int = option(int, 0, 0, 2**32 - 1, "seed of the weights and the dropout")

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Options:
        """The options of a checkpoint, judged as on the command line."""
        parse = {f.name: f.metadata["parse"] for f in dataclasses.fields(cls)}
        values = {"layer": "rnn", **values}  # the only one that there used to be
        if values.keys() != parse.keys():
            raise ValueError(f"options must be {', '.join(parse)}")
        try:
            texts = {name: repr(values[name]) for name in parse}
            texts["layer"] = values["layer"]
            return cls(**{name: parse[name](texts[name]) for name in parse})
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"an option {error}") from None


class Text:
    """A text as integers, cut into a training and a held-out part.

    Args:
        content (str): The characters.
        options (Options): `batch` and `chunk` set how long it must be at least.
    """

    def __init__(self, content: str, options: Options):
        needed = max(options.batch * options.chunk + 1, 3)
        self.split = len(content) - max(1, len(content) // 10)
        if self.split < needed:
            raise Failure(
                f"the text is too short: {len(content)} characters leave "
                f"{max(0, self.split)} to train on, and --batch {options.batch} times "
                f"--chunk {options.chunk} needs {needed}"
            )
        self.content = content
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        points = np.frombuffer(content.encode("utf-32-le"), np.uint32)
        characters, ids = np.unique(points, return_inverse=True)
        self.vocabulary = "".join(map(chr, characters))
        self.ids = ids.astype(np.int32)

    @property
    def training(self) -> np.ndarray:
        return self.ids[: self.split]

    @property
    def heldout(self) -> np.ndarray:
        """The held-out part, after the last training character as first context."""
        return self.ids[self.split - 1 :]


def read_text(path: Path | None) -> str:
    """The text of a file, or of the Python reference if `path` is ``None``."""
    if path is not None:
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise Failure(
                f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
            ) from None
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise Failure(
            "this Python comes without pydoc_data.topics: give a text with --text FILE"
        ) from None
    # Topics quote each other at length. Each paragraph is kept once, or the held-out
    # part would mostly measure what was learnt by heart.
    pages = "\n\n".join(topics[name] for name in sorted(topics))
    return "\n\n".join(dict.fromkeys(re.split(r"\n\n+", pages)))


def chunk_at(ids: np.ndarray, step: int, options: Options) -> tuple[mx.array, mx.array]:
    """Inputs and targets of a step, both ``NL``: this rank's rows.

    The training text is a ring that `N` readers, evenly spaced, walk along without end:
    each chunk begins where the one before ended, so the state can be carried over.
    """
    starts = np.arange(options.batch) * len(ids) // options.batch
    offsets = step * options.chunk + np.arange(options.chunk + 1)
    window = ids[(starts[own_rows(options.batch), None] + offsets) % len(ids)]
    return mx.array(window[:, :-1]), mx.array(window[:, 1:])


def ngram_bits(text: Text, order: int) -> float:
    r"""Held-out bits per character of an interpolated n-gram model.

    Witten-Bell smoothing, counted on the training part: with :math:`T(u)` different
    characters seen after the context :math:`u`,

    .. math::

        p(c | u) = \frac{n(uc) + T(u) p(c | u')}{n(u) + T(u)},

    where :math:`u'` is :math:`u` without its first character and the last resort is
    uniform over the vocabulary.

    Args:
        text (Text): The text.
        order (int): 1 for unigrams, 3 for trigrams.
    """
    size = len(text.vocabulary)
    ids = text.ids.astype(np.int64)

    def grams(first: int, last: int, length: int) -> np.ndarray:
        """Integers for the `length` characters that end at first .. last - 1."""
        code = np.zeros(last - first, np.int64)
        for back in range(length - 1, -1, -1):
            code = code * size + ids[first - back : last - back]
        return code

    def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)

    p = np.full(len(ids) - text.split, 1 / size)
    for length in range(1, order + 1):
        seen, counts = np.unique(
            grams(length - 1, text.split, length), return_counts=True
        )
        contexts, which = np.unique(seen // size, return_inverse=True)
        wanted = grams(text.split, len(ids), length)
        n_gram = look_up(seen, counts, wanted)
        n_context = look_up(contexts, np.bincount(which, counts), wanted // size)
        kinds = look_up(contexts, np.bincount(which), wanted // size)
        met = n_context > 0
        p[met] = (n_gram + kinds * p)[met] / (n_context + kinds)[met]
    return float(-np.log2(p).mean())


def xz_bits(text: Text) -> float:
    """Bits a held-out character adds to the training part compressed by `xz`."""

    def size(content: str) -> int:
        return len(lzma.compress(content.encode(), preset=9 | lzma.PRESET_EXTREME))

    added = size(text.content) - size(text.content[: text.split])
    return 8 * added / (len(text.content) - text.split)


class CharLM(nn.Module):
    """Embedding, recurrent layer and linear layer, with dropout between them.

    Args:
        vocabulary_size (int): The number of different characters, ``V``.
        options (Options): `layer`, `embedding`, `hidden`, `batch` and `dropout`.
        recurrent (type, optional): The recurrent layer's class. Default: that of
            `mlx_recurrent`.
        linear (type): The linear layer's class. Default: `mlx_recurrent.Linear`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        options: Options,
        recurrent: type[nn.Module] | None = None,
        linear: type[nn.Module] = Linear,
    ):
        super().__init__()
        self.batch = options.batch
        self.dropout = options.dropout
        self.embedding = nn.Embedding(vocabulary_size, options.embedding)
        # MLX draws them smaller, and learning then starts slowly.
        self.embedding.weight *= math.sqrt(options.embedding)
        recurrent = recurrent or LAYERS[options.layer].ours
        self.rnn = recurrent(options.embedding, options.hidden)
        self.head = linear(options.hidden, vocabulary_size)

    def __call__(
        self,
        ids: mx.array,
        states: States = (),
        key: mx.array | None = None,
    ) -> tuple[mx.array, States]:
        """Logits ``NLV`` and states, ``NH`` each, after characters ``NL``.

        A random `key` means training: it draws the dropout, one mask for all steps.
        """
        keys = (None, None) if key is None else mx.random.split(key)
        x = self.drop(self.embedding(ids), keys[0])
        outputs, last = self.rnn(x, *states, return_state=True)
        return self.head(self.drop(outputs, keys[1])), as_states(last)

    def drop(self, x: mx.array, key: mx.array | None) -> mx.array:
        if key is None or self.dropout == 0:
            return x
        keep = 1 - self.dropout
        # Drawn for the whole batch: a row's mask does not depend on who has the row.
        mask = mx.random.bernoulli(keep, (self.batch, 1, x.shape[2]), key)
        return x * (mask[own_rows(self.batch)] / keep)


def as_states(found: mx.array | States) -> States:
    """What a layer returns, of one state or of several, as a tuple."""
    return found if isinstance(found, tuple) else (found,)


def with_last_states(upstream: type[nn.Module]) -> type[nn.Module]:
    """A layer of `mlx.nn` as one that takes and returns its last states too."""

    class Upstream(upstream):  # type: ignore[misc, valid-type]
        def __call__(
            self, x: mx.array, *states: mx.array, return_state: bool
        ) -> tuple[mx.array, States]:
            of_steps = as_states(super().__call__(x, *states))
            return of_steps[0], tuple(a[..., -1, :] for a in of_steps)

    return Upstream


def make_optimizer(model: nn.Module, options: Options) -> optim.Optimizer:
    """Adam; the learning rate warms up linearly, then falls along a cosine."""
    peak, warm_up = options.learning_rate, max(1, options.steps // 20)
    fall = optim.cosine_decay(peak, max(1, options.steps - warm_up), end=peak / 100)
    rise = optim.linear_schedule(peak / warm_up, peak, warm_up)
    optimizer = optim.Adam(
        optim.join_schedules([rise, fall], [warm_up]), bias_correction=True
    )
    optimizer.init(model.trainable_parameters())
    return optimizer


def make_step(
    model: nn.Module, optimizer: optim.Optimizer, options: Options
) -> Callable[..., tuple[mx.array, States]]:
    """The compiled training step: (inputs, targets, states, key) to (bits, states).

    The states enter as arguments that nothing is differentiated by, so gradients stop
    at the border of the chunk. Inputs, targets and states are this rank's rows; the
    bits and the gradient are those of the whole batch.
    """
    rows = own_rows(options.batch)
    # The mean over ranks is then the mean over rows, also where some have one more.
    weight = (rows.stop - rows.start) * mx.distributed.init().size() / options.batch

    def loss(
        model: nn.Module, inputs: mx.array, targets: mx.array, *rest: Any
    ) -> tuple[mx.array, States]:
        logits, states = model(inputs, *rest)
        nats = nn.losses.cross_entropy(logits, targets, reduction="mean")
        return weight * nats, states

    gradient = nn.value_and_grad(model, loss)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(*arguments: Any) -> tuple[mx.array, States]:
        (nats, states), gradients = gradient(model, *arguments)
        # Each array on its own, as soon as it is there: the others are still computed.
        nats, gradients = nn.average_gradients(
            [nats, gradients], all_reduce_size=0, communication_stream=messages()
        )
        gradients, _ = optim.clip_grad_norm(gradients, options.clip)
        optimizer.update(model, gradients)
        return nats / math.log(2), states

    return step


def heldout_bits(model: nn.Module, ids: np.ndarray, piece: int = 4096) -> float:
    """Bits per character of ``ids[1:]``, read in order as one sequence."""
    states: States = ()
    nats = 0.0
    for start in range(0, len(ids) - 1, piece):
        window = mx.array(ids[None, start : start + piece + 1])
        logits, states = model(window[:, :-1], states)
        loss = nn.losses.cross_entropy(logits, window[:, 1:], reduction="sum")
        mx.eval(loss, states)
        nats += loss.item()
    return nats / (len(ids) - 1) / math.log(2)


def continuation(
    model: nn.Module,
    vocabulary: str,
    prompt: str,
    length: int,
    temperature: float,
    seed: int,
) -> Iterator[str]:
    """Characters that continue `prompt`, one at a time.

    Args:
        model (nn.Module): A trained model.
        vocabulary (str): Its characters.
        prompt (str): The text to continue. If empty, a new line begins.
        length (int): How many characters to draw.
        temperature (float): Divides the logits; ``0`` takes the likeliest character.
        seed (int): Seed of the draws.
    """
    prompt = prompt or ("\n" if "\n" in vocabulary else vocabulary[0])
    ids = mx.array([[vocabulary.index(character) for character in prompt]])
    key = mx.random.key(seed)
    states: States = ()
    for _ in range(length):
        logits, states = model(ids, states)
        if temperature < 1e-6:
            ids = mx.argmax(logits[:, -1:], axis=-1)
        else:
            key, draw = mx.random.split(key)
            ids = mx.random.categorical(logits[:, -1:] * (1 / temperature), key=draw)
        yield vocabulary[ids.item()]


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        # The new name must be on the disk before an older file is deleted.
        with contextlib.suppress(OSError), opened(path.parent) as folder:
            os.fsync(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise Failure(f"cannot write {path}: {error.strerror}") from None
        raise


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """Keeps other runs from changing the checkpoint while it is written or read."""
    with opened(folder) as descriptor:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, kind)
        yield


def checksum(record: dict[str, Any], data: bytes) -> str:
    return hashlib.sha256(
        json.dumps(record, sort_keys=True).encode() + data
    ).hexdigest()


class Run:
    """A training run: the model and all that continuing it takes.

    Args:
        options (Options): The options.
        vocabulary (str): The different characters, sorted.
        file (str, optional): Where the text came from; ``None``: the default text.
        sha256 (str): The text's checksum.
    """

    def __init__(
        self, options: Options, vocabulary: str, file: str | None, sha256: str
    ):
        mx.random.seed(options.seed)
        self.options = options
        self.vocabulary = vocabulary
        self.file = file
        self.sha256 = sha256
        self.model = CharLM(len(vocabulary), options)
        self.optimizer = make_optimizer(self.model, options)
        self.train_step = make_step(self.model, self.optimizer, options)
        rows = own_rows(options.batch)
        zeros = mx.zeros((rows.stop - rows.start, options.hidden))
        self.states: States = (zeros,) * len(LAYERS[options.layer].states)
        self.bits: list[float] = []
        self.heldout: list[tuple[int, float]] = []
        self.seconds = 0.0

    @property
    def step(self) -> int:
        return len(self.bits)

    def advance(self, ids: np.ndarray) -> float:
        """Takes one step and returns the bits per character of its chunk."""
        inputs, targets = chunk_at(ids, self.step, self.options)
        key = mx.random.key((self.options.seed << 32) + self.step)
        bits, self.states = self.train_step(inputs, targets, self.states, key)
        mx.eval(bits, self.states, self.model.state, self.optimizer.state)
        if not math.isfinite(bits.item()):
            raise Failure(
                f"the loss is {bits.item()} at step {self.step + 1}: try a smaller "
                "--learning-rate (the last checkpoint remains)"
            )
        self.bits.append(bits.item())
        return self.bits[-1]

    def arrays(self, states: States) -> dict[str, mx.array]:
        """What a checkpoint holds, with the whole batch's states."""
        names = LAYERS[self.options.layer].states
        tree = {
            "model": self.model.parameters(),
            "optimizer": self.optimizer.state,
            **dict(zip(names, states, strict=True)),
            "bits": mx.array(self.bits, mx.float32),
        }
        return dict(sorted(tree_flatten(tree)))

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; if rank 0 cannot, all ranks fail."""
        states = tuple(gather(state, self.options.batch) for state in self.states)
        together(lambda: self._write(folder, states) if first() else None)

    def _write(self, folder: Path, states: States) -> None:
        """Until the last moment the checkpoint before stays valid.

        The arrays go to a file named after its contents, then `checkpoint.json`, which
        names it, is replaced: that is the moment the new checkpoint counts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Not MLX's own file writing: it does not notice a full disk.
        buffer = io.BytesIO()
        mx.save_safetensors(buffer, self.arrays(states))
        data = buffer.getvalue()
        record = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "options": dataclasses.asdict(self.options),
            "vocabulary": self.vocabulary,
            "text": {"file": self.file, "sha256": self.sha256},
            "heldout": self.heldout,
            "arrays": f"checkpoint-{hashlib.sha256(data).hexdigest()[:16]}.safetensors",
        }
        record["sha256"] = checksum(record, data)
        with locked(folder, fcntl.LOCK_EX):
            write(folder / record["arrays"], data)
            write(folder / RECORD, json.dumps(record, indent=1).encode())
            for old in folder.iterdir():
                # Nothing but what this program wrote: the user's own files stay.
                if ARRAYS.fullmatch(old.name) and old.name != record["arrays"]:
                    old.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads a checkpoint; `Failure` if there is none or anything in it is wrong."""
        if not (folder / RECORD).exists():
            raise Failure(f"there is no checkpoint in {folder}")
        try:
            with locked(folder, fcntl.LOCK_SH):
                record = json.loads((folder / RECORD).read_bytes())
                if not ARRAYS.fullmatch(record["arrays"]):
                    raise ValueError(f"its arrays are in {record['arrays']!r}")
                data = (folder / record["arrays"]).read_bytes()
            if record.pop("sha256") != checksum(record, data):
                raise ValueError("the checksum differs")
            if record["format"] != FORMAT:
                raise ValueError(f"format is {record['format']}, not {FORMAT}")
            options, text = Options.checked(record["options"]), record["text"]
            vocabulary, file = record["vocabulary"], text["file"]
            if vocabulary != "".join(sorted(set(vocabulary))):
                raise ValueError("its vocabulary is not sorted")
            if file is not None and (not isinstance(file, str) or "\0" in file):
                raise ValueError(f"its text is in {file!r}")
            run = cls(options, vocabulary, file, text["sha256"])
            run._restore(int(record["step"]), data)
            run.heldout = [(int(step), float(bits)) for step, bits in record["heldout"]]
            run.seconds = float(record["seconds"])
            run._judge_course()
        except KeyError as error:
            raise Failure(f"the checkpoint in {folder} lacks {error}") from None
        except Exception as error:  # whatever damage leads to
            raise Failure(f"the checkpoint in {folder} is damaged: {error}") from None
        return run

    def _restore(self, step: int, data: bytes) -> None:
        """Takes the arrays of a safetensors file.

        Its header is judged first: MLX believes it, and reads where it says.
        """
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        names = LAYERS[self.options.layer].states
        zeros = mx.zeros((self.options.batch, self.options.hidden))
        whole = self.arrays((zeros,) * len(names)) | {"bits": mx.zeros(step)}
        found = {name: f"{e['dtype']} {e['shape']}" for name, e in header.items()}
        must = {name: f"{KINDS[a.dtype]} {list(a.shape)}" for name, a in whole.items()}
        for name in sorted(found.keys() | must.keys()):
            kind = found.get(name, "missing"), must.get(name, "absent")
            if kind[0] != kind[1]:
                raise ValueError(f"array {name} is {kind[0]}, must be {kind[1]}")
            begin, end = header[name]["data_offsets"]
            if end - begin != whole[name].nbytes or not 0 <= begin <= end <= len(data):
                raise ValueError(f"array {name} is not at bytes {begin} to {end}")
        arrays = mx.load(io.BytesIO(data), format="safetensors")
        tree = tree_unflatten(list(arrays.items()))
        self.model.update(tree["model"])
        self.optimizer.state.update(tree["optimizer"])
        rows = own_rows(self.options.batch)
        self.states = tuple(tree[name][rows] for name in names)
        self.bits = tree["bits"].tolist()

    def _judge_course(self) -> None:
        """Raises `ValueError` for figures that the report could not show."""
        scored = [step for step, _ in self.heldout]
        figures = [self.seconds, *self.bits, *(bits for _, bits in self.heldout)]
        if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
            raise ValueError("its figures are not finite")
        if self.step > self.options.steps or (self.step and self.seconds == 0):
            raise ValueError(f"it says {self.step} steps in {self.seconds} seconds")
        ended = self.step == self.options.steps
        if scored != sorted(set(scored) & set(range(1, self.step + 1))) or (
            ended and scored[-1:] != [self.step]
        ):
            raise ValueError("its held-out scores are not those of its steps")


@contextlib.contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """The first Ctrl-C is only noted, in the list; a second one interrupts at once."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def open_run(arguments: argparse.Namespace) -> tuple[Run, Text]:
    """A new run, or with `--resume` the checkpoint's, and its text."""
    names = [field.name for field in dataclasses.fields(Options)]
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if not arguments.resume:
        if (arguments.out / RECORD).exists() and not arguments.overwrite:
            raise Failure(
                f"{arguments.out} holds a checkpoint: continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        options, file = Options(**given), arguments.text
        text = Text(read_text(file), options)
        source = str(file.resolve()) if file else None
        return Run(options, text.vocabulary, source, text.sha256), text

    run = Run.load(arguments.out)
    for name, value in given.items():
        if value != getattr(run.options, name):
            raise Failure(
                f"--{name.replace('_', '-')} is {value}, but the checkpoint in "
                f"{arguments.out} was made with {getattr(run.options, name)}"
            )
    file = arguments.text or (run.file and Path(run.file))
    text = Text(read_text(file), run.options)
    if text.sha256 != run.sha256:
        raise Failure(
            f"the text ({file or 'pydoc_data.topics'}) is not the one that the "
            f"checkpoint in {arguments.out} was trained on"
        )
    return run, text


def train(arguments: argparse.Namespace) -> int:
    """Trains until the last step or Ctrl-C, then reports."""
    run, text = together(lambda: open_run(arguments))
    options, folder, ranks = run.options, arguments.out, mx.distributed.init().size()
    if options.batch < ranks:
        raise Failure(f"--batch is {options.batch}, too few rows for {ranks} processes")
    if not alike(repr((options, run.step, run.seconds, run.sha256))):
        raise Failure("text, options and checkpoint differ from process to process")
    run.save(folder)  # What cannot be written should be known now.

    count = sum(array.size for _, array in tree_flatten(run.model.parameters()))
    quiet = arguments.quiet or not first()
    say = partial(print, file=sys.stderr) if not quiet else lambda _: None
    say(
        f"{len(text.content):,} characters, {len(text.vocabulary)} different, "
        f"{len(text.ids) - text.split:,} held out; {options.layer} with {count:,} "
        "parameters; "
        f"{options.steps:,} steps of {options.batch} x {options.chunk} characters"
        + (f" in {ranks} processes" if ranks > 1 else "")
    )
    # mlx.launch reads what the ranks print, and tells them how wide its terminal is.
    launched = ranks > 1 and "COLUMNS" in os.environ
    shown = not quiet and (sys.stderr.isatty() or launched)
    per_step = options.batch * options.chunk
    total, begin = options.steps * per_step, run.step * per_step
    bar = tqdm(
        total=total, initial=begin, unit="char", unit_scale=True, disable=not shown
    )
    heldout = text.heldout[: CURVE_CHARACTERS + 1]
    with noting_interrupts() as interrupts, bar:
        before, begun = run.seconds, time.perf_counter()
        while run.step < options.steps and not anywhere(bool(interrupts)):
            run.advance(text.training)
            run.seconds = before + time.perf_counter() - begun
            recent = statistics.fmean(run.bits[-50:])
            last = f", held-out {run.heldout[-1][1]:.3f}" if run.heldout else ""
            bar.set_postfix_str(f"{recent:.3f}{last} bits/char", refresh=False)
            bar.update(per_step)
            if run.step % arguments.every == 0 or run.step == options.steps:
                run.heldout.append((run.step, heldout_bits(run.model, heldout)))
                run.seconds = before + time.perf_counter() - begun
                run.save(folder)
                if not shown:
                    speed = run.step * per_step / run.seconds
                    say(
                        f"step {run.step}/{options.steps}: {recent:.3f} bits/char, "
                        f"held-out {run.heldout[-1][1]:.3f}, {speed:,.0f} char/s, "
                        f"{(options.steps - run.step) * per_step / speed:.0f} s left"
                    )
    if anywhere(bool(interrupts)):
        run.save(folder)
        python = Path(os.path.relpath(sys.executable))
        again = [str(python), sys.argv[0], "train", "--resume", "--out", str(folder)]
        if ranks > 1:
            launch = [str(python.with_name("mlx.launch")), "-n", str(ranks)]
            again = [*launch, "--backend", "ring", "--", *again]
        tell(
            f"char_lm: stopped after step {run.step} of {options.steps}; "
            f"to continue: {shlex.join(again)}"
        )
        return 130
    if first():
        report(run, text, arguments)
    return 0


def step_times(run: Run, ids: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of a training step, by the classes the same model is made of.

    The variants take turns, with the same compiled step, weights and chunk, for 20 s at
    most. `Failure` if their losses differ.
    """
    options, key = run.options, mx.random.key(0)
    layer = LAYERS[options.layer]
    name, upstream = layer.ours.__name__, with_last_states(layer.upstream)
    chunk = chunk_at(ids, 0, options)
    variants = {
        f"mlx_recurrent.{name}, mlx_recurrent.Linear": (layer.ours, Linear),
        f"mlx_recurrent.{name}, mlx.nn.Linear": (layer.ours, nn.Linear),
        f"mlx.nn.{name}, mlx.nn.Linear": (upstream, nn.Linear),
    }

    def timer(recurrent: type[nn.Module], linear: type[nn.Module]) -> Callable[[], Any]:
        model = CharLM(len(run.vocabulary), options, recurrent, linear)
        model.update(run.model.parameters())
        optimizer = make_optimizer(model, options)
        step = make_step(model, optimizer, options)

        def timed() -> tuple[float, float]:
            begun = time.perf_counter()
            bits, states = step(*chunk, run.states, key)
            mx.eval(bits, states, model.state, optimizer.state)
            return time.perf_counter() - begun, bits.item()

        return timed

    timers = {name: timer(*kinds) for name, kinds in variants.items()}
    losses = [timed()[1] for timed in timers.values()]
    if not max(losses) - min(losses) <= 1e-3 * max(losses):
        raise Failure(f"the same model has different losses: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    until = time.perf_counter() + 20
    for _ in range(rounds):
        for name, timed in timers.items():
            seconds[name].append(timed()[0])
        if time.perf_counter() > until:
            break
    return {name: statistics.median(times) for name, times in seconds.items()}


def draw_curves(run: Run, bits: float, baselines: dict[str, float], path: Path) -> None:
    """Training and held-out bits per character over characters seen, as a PNG."""
    per_step = run.options.batch * run.options.chunk
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot(xlabel="characters seen", ylabel="bits per character")
    seen = per_step * np.arange(1, run.step + 1)
    width = max(1, run.step // 50)
    mean = np.convolve(run.bits, np.full(width, 1 / width), "valid")
    axes.plot(seen, run.bits, "C0", alpha=0.25, linewidth=0.6)
    middle = seen[width // 2 :][: len(mean)]
    axes.plot(middle, mean, "C0", label="training, with dropout")
    at, values = np.array(run.heldout).T
    axes.plot(per_step * at, values, "C3o-", markersize=3.5, label="held-out")
    axes.set_xlim(0, 1.01 * seen[-1])
    axes.set_ylim(top=1.1 * max(*values, *baselines.values()))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    for value in baselines.values():
        axes.axhline(value, color="0.4", linestyle="--", linewidth=0.9)
    # The labels stand beside the axes, moved up where they would touch.
    low, high = axes.get_ylim()
    free = low
    for value, name in sorted(
        [(v, k) for k, v in baselines.items()] + [(bits, "model")]
    ):
        place = {"transform": axes.get_yaxis_transform(), "va": "center"}
        color = "C3" if name == "model" else "0.3"
        free = max(free, value)
        axes.text(1.01, free, f"{name} {value:.2f}", color=color, **place)
        free += (high - low) / 25
    axes.legend(frameon=False)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=150)
    with locked(path.parent, fcntl.LOCK_EX):
        write(path, buffer.getvalue())


def report(run: Run, text: Text, arguments: argparse.Namespace) -> None:
    """Prints what the model learnt beside the baselines, and draws the curves."""
    options = run.options
    baselines = {
        "unigram": ngram_bits(text, 1),
        "trigram": ngram_bits(text, 3),
        "xz": xz_bits(text),
    }
    bits = heldout_bits(run.model, text.heldout)
    seen = run.step * options.batch * options.chunk
    print(
        f"\nHeld-out bits per character ({len(text.ids) - text.split:,} characters)\n"
        f"  unigram     {baselines['unigram']:.3f}  Witten-Bell smoothing\n"
        f"  trigram     {baselines['trigram']:.3f}  interpolated with bigrams and "
        "unigrams, Witten-Bell smoothing\n"
        f"  xz          {baselines['xz']:.3f}  size of the whole text less size of the "
        "training part, preset 9e\n"
        f"  this model  {bits:.3f}  read once in order, state carried\n"
        f"\nTraining: {run.step:,} steps, {seen:,} characters ({seen / text.split:.1f} "
        f"times the text) in {run.seconds:.0f} s, {seen / run.seconds:,.0f} characters "
        "a second\n\nSample (temperature 0.7):\n"
    )
    sample = continuation(run.model, run.vocabulary, "", 600, 0.7, options.seed)
    print(textwrap.indent("".join(sample).strip("\n"), "  "))
    picture = arguments.out / "curves.png"
    draw_curves(run, bits, baselines, picture)
    print(f"\nFiles: {arguments.out / RECORD}, {picture}", flush=True)
    if arguments.compare and mx.distributed.init().size() == 1:
        print(
            f"\nOne training step, N={options.batch}, L={options.chunk}, "
            f"D={options.embedding}, H={options.hidden} (median, taking turns):",
            flush=True,
        )
        times = step_times(run, text.training, arguments.compare)
        ours = next(iter(times.values()))
        for name, seconds in times.items():
            print(f"  {name:40} {1e3 * seconds:8.1f} ms  {seconds / ours:6.1f} x")


def continue_prompt(arguments: argparse.Namespace) -> int:
    """Writes the prompt and its continuation to stdout, character by character."""
    run = Run.load(arguments.checkpoint)
    for character in arguments.prompt:
        if character not in run.vocabulary:
            raise Failure(
                f"--prompt has {character!r} (U+{ord(character):04X}), which is not in "
                f"the vocabulary of {arguments.checkpoint}"
            )
    print(arguments.prompt, end="", flush=True)
    wanted = arguments.length, arguments.temperature, arguments.seed
    for character in continuation(run.model, run.vocabulary, arguments.prompt, *wanted):
        print(character, end="", flush=True)
    print()
    return 0


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("char_lm.py", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="train | generate")
    home = Path("runs/char_lm")

    command = commands.add_parser("train", help="train a model", allow_abbrev=False)
    command.set_defaults(command=train)
    add = command.add_argument
    add("--text", type=Path, metavar="FILE", help="UTF-8 (default: Python's topics)")
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    either = command.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue in DIR")
    either.add_argument("--overwrite", action="store_true", help="start anew in DIR")
    for field in dataclasses.fields(Options):
        name, parse = field.name.replace("_", "-"), field.metadata["parse"]
        text = f"{field.metadata['help']} (default: {field.default})"
        add(f"--{name}", type=parse, metavar="X", help=text)
    text = "steps between held-out scores, each with a checkpoint (default: 200)"
    add("--every", type=number(int, 1, 10**9), metavar="X", default=200, help=text)
    text = "rounds of timing against mlx.nn at the end, if alone (default: 5)"
    add("--compare", type=number(int, 0, 1000), metavar="X", default=5, help=text)
    add("--quiet", action="store_true", help="no progress, only the report")

    command = commands.add_parser("generate", help="write text", allow_abbrev=False)
    command.set_defaults(command=continue_prompt)
    add = command.add_argument
    add("--checkpoint", type=Path, metavar="DIR", default=home, help="what train made")
    add("--prompt", default="", help="the text to continue (default: a new line)")
    text = "characters to write (default: 1000)"
    add("--length", type=number(int, 0, 10**9), metavar="X", default=1000, help=text)
    text = "0: always the likeliest character (default: 0.7)"
    add(
        "--temperature", type=number(float, 0, 1e6), metavar="X", default=0.7, help=text
    )
    text = "the same seed gives the same text (default: 0)"
    add("--seed", type=number(int, 0, 2**32 - 1), metavar="X", default=0, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The native core is the CPU's for now.
    mx.set_default_device(mx.cpu)
    ranks, agreed = 1, False
    try:
        ranks = join()
        arguments = make_parser().parse_args(argv)
        status: int = arguments.command(arguments)
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except BrokenPipeError:
        status, message = 141, ""
    except Failure as failure:
        status, agreed = 2, True
        message = "" if isinstance(failure, Elsewhere) else f"error: {failure}"
    except Lost as lost:
        status, message = 2, f"error: {lost}"
    except OSError as error:
        status, message = 2, f"error: {explained(error)}"
    except RuntimeError as error:
        if ranks == 1:
            raise
        status, message = 2, f"error: {error}; {INTACT}"
    finally:
        if ranks > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    line = " ".join(f"char_lm: {message}".split()) if message else ""
    if agreed:
        tell(line)
    elif ranks > 1:
        abandon(line, status)
    elif line:
        print(line, file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:
        # Else Python flushes once more at exit and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
