"""How words are spoken: a published model with two GRUs spells them out.

    .venv/bin/pip install --no-deps g2p-en
    .venv/bin/python examples/phonemes.py
    .venv/bin/python examples/phonemes.py activationist zyzzyva --draw zyzzyva

The model is that of g2p-en (Kyubyong Park and Jongseok Kim, Apache licence), which that
package asks for words that its dictionary lacks. Its weights are in the package's
`checkpoint20.npz`; the package is not imported, for it downloads corpora then. One GRU
reads the letters of a word, another says phonemes until it says that it is done:

    h = GRU(letters), the state after the last one
    h = GRU.step(phoneme before, h),   logits = W h + c,   the likeliest phoneme is next

Both run in real time, as `layer.stream` with a row for each word. The same network
written as a loop in NumPy, a word at a time, must say the same: the example fails if it
does not. Phonemes are those of the CMU dictionary; the digit of a vowel is its stress:
1 primary, 2 secondary, 0 none.

The folder `--out` receives `phonemes.csv` and the picture `phonemes.png`. Exit status:
0, 2 for an error (one line on stderr) and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import statistics
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

# NumPy's threads and this package's would wait for each other's cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
try:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    from matplotlib.figure import Figure

    from mlx_recurrent import GRU, Linear
    from mlx_recurrent.interop import torch_weights
except ImportError as missing:
    print(
        f"phonemes: error: {missing} (pip install 'mlx-recurrent[cpu,examples]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("phonemes: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LETTERS = ["<pad>", "<unk>", "</s>", *ALPHABET]
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
STRESSED = [vowel + stress for vowel in VOWELS for stress in "012"]
# The checkpoint has one vowel without a stress too.
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*CONSONANTS, *STRESSED, "UW"])]
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")
SIZE, MOST, LONGEST = 256, 20, 100  # units, phonemes of a word, letters of one
NEAR = 1e-4  # how far a probability may be from the loop's
WORDS = (
    "activationist cyberpunk defenestrate flibbertigibbet hyperparameter jabberwocky "
    "mlx neuroplasticity petrichor quokka serendipitous snarkiest thingamajig "
    "unfollowable vibecoding zeitgeist"
).split()
BLUE = "#0072b2"  # of Okabe and Ito


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


class Speller(nn.Module):
    """The network: letters in, phonemes out."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), SIZE)
        self.encoder = GRU(SIZE, SIZE)
        self.phonemes = nn.Embedding(len(PHONEMES), SIZE)
        self.decoder = GRU(SIZE, SIZE)
        self.head = Linear(SIZE, len(PHONEMES))

    def sanitize(self, weights: dict[str, np.ndarray]) -> dict[str, mx.array]:
        """The weights of the checkpoint by the names here."""
        names = {
            "letters.weight": "enc_emb",
            "phonemes.weight": "dec_emb",
            "head.weight": "fc_w",
            "head.bias": "fc_b",
        }
        own = {here: mx.array(weights[there]) for here, there in names.items()}
        for name, start in (("encoder", "enc_"), ("decoder", "dec_")):
            cell = {
                f"{kind}_{side}": weights[f"{start}{kind[0]}_{side}"]
                for kind in ("weight", "bias")
                for side in ("ih", "hh")
            }
            found = torch_weights(cell, getattr(self, name))
            own |= {f"{name}.{key}": a for key, a in found.items()}
        return own


class Speaker:
    """The model for `N` words at a time, its weights copied once.

    Args:
        model (Speller): The model.
        count (int): The number of words, ``N``.
    """

    def __init__(self, model: Speller, count: int):
        start = np.zeros((count, SIZE), np.float32)
        self.reader = model.encoder.stream(start)
        self.sayer = model.decoder.stream(start)
        self.letters = np.array(model.letters.weight)
        self.phonemes = np.array(model.phonemes.weight)
        self.weight, self.bias = np.array(model.head.weight), np.array(model.head.bias)

    def __call__(self, words: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
        """Phonemes of the words, and probabilities ``(N, steps, phonemes)`` of all."""
        ids = [[LETTERS.index(letter) for letter in [*word, "</s>"]] for word in words]
        last = np.array([len(row) - 1 for row in ids])
        padded = [row + row[-1:] * (last.max() - len(row) + 1) for row in ids]
        self.reader.reset()
        states = self.reader(self.letters[padded])
        self.sayer.reset(states[np.arange(len(words)), last])
        said = np.full(len(words), START)
        rows, probabilities = [], []
        while len(rows) < MOST and (said != END).any():
            logits = self.sayer(self.phonemes[said]) @ self.weight.T + self.bias
            said = np.where(said == END, END, logits.argmax(axis=-1))
            rows.append(said)
            probabilities.append(softmax(logits))
        spoken = [[PHONEMES[n] for n in row if n != END] for row in np.transpose(rows)]
        return spoken, np.stack(probabilities, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return likely / likely.sum(axis=-1, keepdims=True)


class Loop:
    """The same in NumPy, a word at a time and a step at a time, as the package does.

    Args:
        weights (dict): The checkpoint's.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights

    def step(self, side: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The state after one input: PyTorch's GRU."""
        w = self.weights
        ours = w[f"{side}_w_ih"] @ x + w[f"{side}_b_ih"]
        theirs = w[f"{side}_w_hh"] @ h + w[f"{side}_b_hh"]
        r, z = 1 / (1 + np.exp(-(ours + theirs)[: 2 * SIZE].reshape(2, SIZE)))
        n = np.tanh(ours[2 * SIZE :] + r * theirs[2 * SIZE :])
        return (1 - z) * n + z * h

    def __call__(self, word: str) -> tuple[list[str], np.ndarray]:
        """Phonemes of a word, and probabilities ``(steps, phonemes)`` of all."""
        w, h = self.weights, np.zeros(SIZE, np.float32)
        for letter in [*word, "</s>"]:
            h = self.step("enc", w["enc_emb"][LETTERS.index(letter)], h)
        said, spoken, probabilities = START, [], []
        while len(probabilities) < MOST:
            h = self.step("dec", w["dec_emb"][said], h)
            logits = w["fc_w"] @ h + w["fc_b"]
            probabilities.append(softmax(logits))
            said = int(logits.argmax())
            if said == END:
                break
            spoken.append(PHONEMES[said])
        return spoken, np.stack(probabilities)


def package() -> Path:
    """The file in the package, without importing that."""
    found = importlib.util.find_spec("g2p_en")
    if found is None or not found.submodule_search_locations:
        raise Failure("g2p-en is not installed (pip install --no-deps g2p-en)")
    return Path(found.submodule_search_locations[0]) / "checkpoint20.npz"


def load(path: Path) -> tuple[Speller, Loop]:
    """The model, and the loop, with a checkpoint's weights."""
    model = Speller()
    try:
        with path.open("rb") as content:
            file = np.load(content, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array")
            weights = {name: file[name] for name in file.files}
        model.load_weights(list(model.sanitize(weights).items()))
    except KeyError as error:
        raise Failure(f"{path} is not g2p-en's checkpoint: no {error}") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise Failure(f"{path} is not g2p-en's checkpoint: {error}") from None
    mx.eval(model.parameters())
    return model, Loop(weights)


def spelled(word: str) -> str:
    """A word in the model's letters: small ones, without accents."""
    plain = "".join(
        letter
        for letter in unicodedata.normalize("NFD", word.lower())
        if unicodedata.category(letter) != "Mn"
    )
    if not 1 <= len(plain) <= LONGEST:
        raise Failure(
            f"a word must have from 1 to {LONGEST} letters, but {word[:LONGEST]!r} has "
            f"{len(plain)}"
        )
    for letter in plain:
        if letter not in ALPHABET:
            raise Failure(
                f"a word must be of the letters a to z, but {word!r} has {letter!r}"
            )
    return plain


def median_time(call: Callable[[], object], rounds: int = 5) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def timings(
    model: Speller, loop: Loop, words: Sequence[str]
) -> tuple[float, dict[int, float]]:
    """Seconds a word: of the loop, and of the model for so many words at once."""
    many = [words[i % len(words)] for i in range(64)]
    by_loop = median_time(lambda: [loop(word) for word in many]) / len(many)

    def each(count: int) -> float:
        speaker = Speaker(model, count)
        parts = [many[i : i + count] for i in range(0, len(many), count)]
        return median_time(lambda: [speaker(part) for part in parts]) / len(many)

    return by_loop, {count: each(count) for count in (1, 4, 16, 64)}


def draw(word: str, spoken: list[str], likely: np.ndarray) -> bytes:
    """What else might have been said at each step, as a PNG."""
    steps = [*spoken, "end"][: len(likely)]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(likely[: len(steps)]):
        for rank, n in enumerate(np.argsort(-row)[:4], 1):
            shade = {"facecolor": BLUE, "alpha": float(row[n]), "lw": 0}
            axes.fill_between([i + 0.5, i + 1.5], rank - 0.5, rank + 0.5, **shade)
            if row[n] >= 0.005:
                text = f"{'end' if n == END else PHONEMES[n]}\n{row[n]:.2f}"
                style = {"ha": "center", "va": "center", "size": 8}
                style["color"] = "white" if row[n] > 0.7 else "black"
                axes.text(i + 1, rank, text, **style)
    axes.set(xlim=(0.5, len(steps) + 0.5), ylim=(4.5, 0.5), xlabel="step")
    axes.set(title=f"{word}: the likeliest phonemes", ylabel="rank")
    axes.set_xticks(range(1, len(steps) + 1))
    axes.set_yticks(range(1, 5))
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Replaces a file in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> None:
    """Says words, and compares."""
    words = [spelled(word) for word in arguments.words]
    drawn = spelled(arguments.draw) if arguments.draw else words[0]
    if drawn not in words:
        raise Failure(f"--draw must be one of the words, but is {arguments.draw!r}")
    model, loop = load(arguments.weights or package())
    arguments.out.mkdir(parents=True, exist_ok=True)
    spoken, likely = Speaker(model, len(words))(words)
    width = max(map(len, words))
    furthest = 0.0
    for word, phonemes, row in zip(words, spoken, likely, strict=True):
        print(f"  {word:{width}}  {' '.join(phonemes)}")
        expected, truth = loop(word)
        if phonemes != expected:
            raise Failure(f"the loop says {' '.join(expected)} for {word!r}")
        furthest = max(furthest, np.abs(row[: len(truth)] - truth).max())
    print(f"\nThe loop in NumPy says the same; probabilities differ by {furthest:.1e}")
    if not furthest <= NEAR:
        raise Failure(f"a probability is {furthest:.1e} from the loop's, above {NEAR}")

    by_loop, by_model = timings(model, loop, words)
    print("\nmicroseconds a word")
    print(f"  {'NumPy, a word at a time':30}{1e6 * by_loop:8.0f}")
    for count, seconds in by_model.items():
        words_at_once = f"{count} at once" if count > 1 else "a word at a time"
        name = f"this package, {words_at_once}"
        print(f"  {name:30}{1e6 * seconds:8.0f}")
    lines = [
        f"{word},{' '.join(phonemes)}"
        for word, phonemes in zip(words, spoken, strict=True)
    ]
    write(
        arguments.out / "phonemes.csv",
        "\n".join(["word,phonemes", *lines, ""]).encode(),
    )
    i = words.index(drawn)
    picture = draw(drawn, spoken[i], likely[i])
    write(arguments.out / "phonemes.png", picture)
    print(f"Files: {arguments.out / 'phonemes.csv'}, {arguments.out / 'phonemes.png'}")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("phonemes.py", description=__doc__, formatter_class=raw)
    add, home = parser.add_argument, Path("runs/phonemes")
    add("words", nargs="*", default=WORDS, help="of the letters a to z")
    add("--draw", metavar="WORD", help="the word in the picture (default: the first)")
    text = "a checkpoint (default: the package's)"
    add("--weights", type=Path, metavar="FILE", help=text)
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    # The native core is the CPU's for now.
    mx.set_default_device(mx.cpu)
    try:
        run(parse(argv))
        return 0
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Failure as failure:
        status, message = 2, f"error: {failure}"
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        status, message = 2, f"error: {error.strerror or error}{place}"
    print("phonemes:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
