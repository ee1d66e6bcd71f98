"""A character-level language model: the main job of `mlx_recurrent`, end to end.

    python examples/char_lm.py train                 # about two minutes on two cores
    python examples/char_lm.py train --resume        # after Ctrl-C
    python examples/char_lm.py generate --prompt "The " --temperature 0.7

The model is an embedding, a recurrent layer and a linear layer:

    x_t = E[c_t],   h_t = tanh(Wxh x_t + Whh h_{t-1} + b),   p(c_{t+1}) = softmax(W h_t)

It learns the Python reference that every CPython carries (`pydoc_data.topics`), or
`--text FILE`. The last tenth of the text is held out: neither the model nor the
baselines it is compared with have seen it. The folder `--out` receives
`checkpoint.json` with the safetensors file that it names, and `curves.png`.

Exit status: 0, 2 for an error (one line on stderr; the last checkpoint remains) and 130
after Ctrl-C (the step is finished and a checkpoint written first).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import lzma
import math
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from matplotlib.figure import Figure
    from mlx.utils import tree_flatten, tree_unflatten
    from tqdm import tqdm

    from mlx_recurrent import RNN, Linear
except ImportError as missing:
    print(
        f"char_lm: error: {missing} (pip install 'mlx-recurrent[cpu,examples]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

FORMAT = 1
RECORD = "checkpoint.json"
# Where a text is long, the curve scores this much of the held-out part; the final
# figure always scores all of it.
CURVE_CHARACTERS = 100_000


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


# Options


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
                f"must be {name} from {low:g} to {high:g}, not {text!r}"
            )
        return value

    return parse


def option(kind: type, default: float, low: float, high: float, text: str) -> Any:
    metadata = {"parse": number(kind, low, high), "help": text}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything, beside the text, that the trained weights follow from."""

    embedding: int = option(int, 64, 1, 4096, "features of a character, D")
    hidden: int = option(int, 512, 1, 8192, "hidden features, H")
    batch: int = option(int, 32, 1, 4096, "sequences side by side, N")
    chunk: int = option(int, 64, 1, 65536, "characters of each in a step, L")
    steps: int = option(int, 2000, 1, 10**9, "training steps")
    learning_rate: float = option(float, 2e-3, 1e-9, 1.0, "the highest, after warm-up")
    clip: float = option(float, 1.0, 1e-9, 1e9, "largest norm of the gradient")
    seed: int = option(int, 0, 0, 2**32 - 1, "seed of the initial weights")


# Text


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
    paragraphs = (p for name in sorted(topics) for p in topics[name].split("\n\n"))
    return "\n\n".join(dict.fromkeys(paragraphs))


def chunk_at(ids: np.ndarray, step: int, options: Options) -> tuple[mx.array, mx.array]:
    """Inputs and targets of a step, both ``NL``.

    The training text is a ring that `N` readers, evenly spaced, walk along without end:
    each chunk begins where the one before ended, so the state can be carried over.
    """
    starts = np.arange(options.batch) * len(ids) // options.batch
    offsets = step * options.chunk + np.arange(options.chunk + 1)
    window = ids[(starts[:, None] + offsets) % len(ids)]
    return mx.array(window[:, :-1]), mx.array(window[:, 1:])


# Baselines


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
        """The `length` characters that end at first .. last - 1, as one integer each."""
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


# Model and training step


class CharLM(nn.Module):
    """Embedding, recurrent layer and linear layer.

    Args:
        vocabulary_size (int): The number of different characters, ``V``.
        embedding (int): Features of a character, ``D``.
        hidden (int): Hidden features, ``H``.
        rnn (type): The recurrent layer's class. Default: `mlx_recurrent.RNN`.
        linear (type): The linear layer's class. Default: `mlx_recurrent.Linear`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding: int,
        hidden: int,
        rnn: type[nn.Module] = RNN,
        linear: type[nn.Module] = Linear,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.rnn = rnn(embedding, hidden)
        self.head = linear(hidden, vocabulary_size)

    def __call__(
        self, ids: mx.array, hidden: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Logits ``NLV`` and state ``NH`` after characters ``NL``."""
        outputs, hidden = self.rnn(self.embedding(ids), hidden, return_state=True)
        return self.head(outputs), hidden


class UpstreamRNN(nn.RNN):
    """`mlx.nn.RNN`, returning its last state too: what the demo is timed against."""

    def __call__(
        self, x: mx.array, hidden: mx.array | None = None, *, return_state: bool
    ) -> tuple[mx.array, mx.array]:
        outputs = super().__call__(x, hidden)
        return outputs, outputs[..., -1, :]


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
    model: nn.Module, optimizer: optim.Optimizer, clip: float
) -> Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]:
    """The compiled training step: (inputs, targets, state) to (bits, state).

    The state enters as an argument that nothing is differentiated by, so gradients stop
    at the border of the chunk.
    """

    def loss(
        model: nn.Module, inputs: mx.array, targets: mx.array, hidden: mx.array
    ) -> tuple[mx.array, mx.array]:
        logits, hidden = model(inputs, hidden)
        return nn.losses.cross_entropy(logits, targets, reduction="mean"), hidden

    gradient = nn.value_and_grad(model, loss)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(
        inputs: mx.array, targets: mx.array, hidden: mx.array
    ) -> tuple[mx.array, mx.array]:
        (nats, hidden), gradients = gradient(model, inputs, targets, hidden)
        gradients, _ = optim.clip_grad_norm(gradients, clip)
        optimizer.update(model, gradients)
        return nats / math.log(2), hidden

    return step


def heldout_bits(model: nn.Module, ids: np.ndarray, piece: int = 4096) -> float:
    """Bits per character of ``ids[1:]``, read in order as one sequence."""
    hidden, nats = None, 0.0
    for start in range(0, len(ids) - 1, piece):
        window = mx.array(ids[None, start : start + piece + 1])
        logits, hidden = model(window[:, :-1], hidden)
        loss = nn.losses.cross_entropy(logits, window[:, 1:], reduction="sum")
        mx.eval(loss, hidden)
        nats += loss.item()
    return nats / (len(ids) - 1) / math.log(2)


def generate(
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
    key, hidden = mx.random.key(seed), None
    for _ in range(length):
        logits, hidden = model(ids, hidden)
        if temperature < 1e-6:
            ids = mx.argmax(logits[:, -1:], axis=-1)
        else:
            key, draw = mx.random.split(key)
            ids = mx.random.categorical(logits[:, -1:] * (1 / temperature), key=draw)
        yield vocabulary[ids.item()]


# Checkpoint


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def checksum(record: dict[str, Any], data: bytes) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode() + data).hexdigest()


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
        self.text = {"file": file, "sha256": sha256}
        self.model = CharLM(len(vocabulary), options.embedding, options.hidden)
        self.optimizer = make_optimizer(self.model, options)
        self.train_step = make_step(self.model, self.optimizer, options.clip)
        self.hidden = mx.zeros((options.batch, options.hidden))
        self.bits: list[float] = []
        self.heldout: list[list[float]] = []
        self.seconds = 0.0

    @property
    def step(self) -> int:
        return len(self.bits)

    def advance(self, ids: np.ndarray) -> float:
        """Takes one step and returns the bits per character of its chunk."""
        inputs, targets = chunk_at(ids, self.step, self.options)
        bits, self.hidden = self.train_step(inputs, targets, self.hidden)
        mx.eval(bits, self.hidden, self.model.state, self.optimizer.state)
        if not math.isfinite(bits.item()):
            raise Failure(
                f"the loss is {bits.item()} at step {self.step + 1}: try a smaller "
                "--learning-rate (the last checkpoint remains)"
            )
        self.bits.append(bits.item())
        return self.bits[-1]

    def arrays(self) -> dict[str, mx.array]:
        tree = {
            "model": self.model.parameters(),
            "optimizer": self.optimizer.state,
            "hidden": self.hidden,
            "bits": mx.array(self.bits, mx.float32),
        }
        return dict(tree_flatten(tree))

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; until the last moment the one before stays valid.

        The arrays go to a file named after its contents, then `checkpoint.json`, which
        names it, is replaced: that is the moment the new checkpoint counts.
        """
        # Not MLX's own file writing: it does not notice a full disk.
        buffer = io.BytesIO()
        mx.save_safetensors(buffer, self.arrays())
        data = buffer.getvalue()
        record = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "options": dataclasses.asdict(self.options),
            "vocabulary": self.vocabulary,
            "text": self.text,
            "heldout": self.heldout,
            "arrays": f"checkpoint-{hashlib.sha256(data).hexdigest()[:16]}.safetensors",
        }
        record["sha256"] = checksum(record, data)
        write(folder / record["arrays"], data)
        write(folder / RECORD, json.dumps(record, indent=1).encode())
        for old in folder.glob("checkpoint-*.safetensors*"):
            if old.name != record["arrays"]:
                old.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads a checkpoint; `Failure` if there is none or anything in it is wrong."""
        try:
            raw = (folder / RECORD).read_bytes()
        except FileNotFoundError:
            raise Failure(f"there is no checkpoint in {folder}") from None
        try:
            record = json.loads(raw)
            data = (folder / record["arrays"]).read_bytes()
            if record.pop("sha256") != checksum(record, data):
                raise ValueError("the checksum differs")
            if record["format"] != FORMAT:
                raise ValueError(f"format is {record['format']}, not {FORMAT}")
            run = cls(
                Options.checked(record["options"]),
                record["vocabulary"],
                record["text"]["file"],
                record["text"]["sha256"],
            )
            arrays = mx.load(io.BytesIO(data), format="safetensors")
            mx.eval(arrays)
            run._restore(int(record["step"]), arrays)
            run.heldout = [(int(step), float(bits)) for step, bits in record["heldout"]]
            run.seconds = float(record["seconds"])
        except KeyError as error:
            raise Failure(f"the checkpoint in {folder} lacks {error}") from None
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise Failure(f"the checkpoint in {folder} is damaged: {error}") from None
        return run

    def _restore(self, step: int, arrays: dict[str, mx.array]) -> None:
        expected = {**self.arrays(), "bits": mx.zeros(step)}
        for name in sorted(expected.keys() | arrays.keys()):
            must, found = expected.get(name), arrays.get(name)
            if must is None or found is None:
                raise ValueError(f"array {name} is {'un' * (must is None)}known")
            if (must.shape, must.dtype) != (found.shape, found.dtype):
                raise ValueError(
                    f"{name} is {found.dtype} {found.shape}, must be "
                    f"{must.dtype} {must.shape}"
                )
        tree = tree_unflatten(list(arrays.items()))
        self.model.update(tree["model"])
        self.optimizer.state.update(tree["optimizer"])
        self.hidden = tree["hidden"]
        self.bits = tree["bits"].tolist()


# Train


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
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Options)
        if getattr(arguments, field.name) is not None
    }
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
    file = arguments.text or (run.source and Path(run.source))
    text = Text(read_text(file), run.options)
    if text.sha256 != run.sha256:
        raise Failure(
            f"the text ({file or 'pydoc_data.topics'}) is not the one that the "
            f"checkpoint in {arguments.out} was trained on"
        )
    return run, text


def train(arguments: argparse.Namespace) -> int:
    """Trains until the last step or Ctrl-C, then reports."""
    run, text = open_run(arguments)
    options, folder = run.options, arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    run.save(folder)  # What cannot be written should be known now.

    count = sum(array.size for _, array in tree_flatten(run.model.parameters()))
    say = partial(print, file=sys.stderr) if not arguments.quiet else lambda _: None
    say(
        f"{len(text.content):,} characters, {len(text.vocabulary)} different, "
        f"{len(text.ids) - text.split:,} held out; {count:,} parameters; "
        f"{options.steps:,} steps of {options.batch} x {options.chunk} characters"
    )
    shown = not arguments.quiet and sys.stderr.isatty()
    per_step = options.batch * options.chunk
    bar = tqdm(
        total=options.steps * per_step,
        initial=run.step * per_step,
        unit="char",
        unit_scale=True,
        smoothing=0.1,
        disable=not shown,
    )
    heldout = text.heldout[: CURVE_CHARACTERS + 1]
    with noting_interrupts() as interrupts, bar:
        before, begun = run.seconds, time.perf_counter()
        while run.step < options.steps and not interrupts:
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
    if interrupts:
        run.save(folder)
        print(
            f"stopped after step {run.step} of {options.steps}; continue with: "
            f"python {sys.argv[0]} train --out {folder} --resume",
            file=sys.stderr,
        )
        return 130
    report(run, text, arguments)
    return 0


# Report


def step_times(run: Run, ids: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of a training step, by the classes the same model is made of.

    Every variant takes the same compiled step, from the same weights, on the same chunk;
    they take turns. `Failure` if their losses differ.
    """
    options = run.options
    variants = {
        "mlx_recurrent.RNN, mlx_recurrent.Linear": (RNN, Linear),
        "mlx_recurrent.RNN, mlx.nn.Linear": (RNN, nn.Linear),
        "mlx.nn.RNN, mlx.nn.Linear": (UpstreamRNN, nn.Linear),
    }
    steps, losses = {}, []
    inputs, targets = chunk_at(ids, 0, options)
    for name, kinds in variants.items():
        model = CharLM(
            len(run.vocabulary), options.embedding, options.hidden, *kinds
        )
        model.update(run.model.parameters())
        optimizer = make_optimizer(model, options)
        step = make_step(model, optimizer, options.clip)

        def timed(
            step: Any = step, state: Any = (model.state, optimizer.state)
        ) -> tuple[float, float]:
            begun = time.perf_counter()
            bits, hidden = step(inputs, targets, run.hidden)
            mx.eval(bits, hidden, state)
            return time.perf_counter() - begun, bits.item()

        steps[name] = timed
        losses.append(timed()[1])
    if max(losses) - min(losses) > 1e-3 * max(losses):
        raise Failure(f"the same model has different losses: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    until = time.perf_counter() + 20
    while len(seconds[name]) < rounds and time.perf_counter() < until:
        for name, timed in steps.items():
            seconds[name].append(timed()[0])
    return {name: statistics.median(times) for name, times in seconds.items()}


def draw_curves(run: Run, baselines: dict[str, float], path: Path) -> None:
    """Training and held-out bits per character over characters seen, as a PNG."""
    per_step = run.options.batch * run.options.chunk / 1e6
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    bits = np.array(run.bits)
    width = max(1, len(bits) // 100)
    smooth = np.convolve(bits, np.full(width, 1 / width), "valid")
    steps = np.arange(1, len(bits) + 1)
    axes.plot(steps * per_step, bits, color="C0", alpha=0.2, linewidth=0.6)
    axes.plot(
        steps[width - 1 :] * per_step, smooth, color="C0", label="training (mean)"
    )
    axes.plot(
        [step * per_step for step, _ in run.heldout],
        [value for _, value in run.heldout],
        color="C3",
        marker="o",
        markersize=3.5,
        label="held-out",
    )
    for name, value in baselines.items():
        axes.axhline(value, color="0.4", linestyle="--", linewidth=0.9)
        axes.annotate(
            f"{name} {value:.2f}",
            (0.995, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            color="0.3",
            fontsize=9,
        )
    axes.set_xlabel("characters seen (millions)")
    axes.set_ylabel("bits per character")
    axes.set_xlim(0, None)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper center", frameon=False, ncols=2)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=150)
    write(path, buffer.getvalue())


def report(run: Run, text: Text, arguments: argparse.Namespace) -> None:
    pass


# Command line


def main(argv: Sequence[str] | None = None) -> int:
    return 0


if __name__ == "__main__":
    sys.exit(main())
