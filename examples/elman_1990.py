"""The simulations of Elman's "Finding Structure in Time", with `mlx_recurrent`.

    .venv/bin/python examples/elman_1990.py                 # a minute on two cores
    .venv/bin/python examples/elman_1990.py --only xor classes --seed 1

J. L. Elman (1990), Cognitive Science 14, 179-211. A network reads a sequence and
predicts what comes next. With each input it reads its own hidden units of the step
before, the context:

    h_t = sigmoid(Wxh x_t + Whh h_{t-1} + b),   y_t = sigmoid(W h_t + c)

For the paper's learning rule the context is an input like any other: no error passes
through it to the step before. Here that is `truncate_every=1`.

    xor      every third bit is the exclusive or of the two before
    letters  random consonants, each followed by vowels of its own
    words    letters of words, with no space between them
    classes  words of short sentences: nouns, verbs and their kinds are found

docs/gallery/elman_1990.md says where this differs from the paper. `--out` receives a
picture of each. Exit status: 0, 2 for an error (one line on stderr), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import dendrogram, fcluster, linkage

    from mlx_recurrent import RNN, Linear
except ImportError as missing:
    hint = "pip install 'mlx-recurrent[cpu,examples]'"
    print(f"elman_1990: error: {missing} ({hint})", file=sys.stderr)
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("elman_1990: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

# Of Okabe and Ito: every kind of colour vision tells them apart.
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"

# The paper's table 1: consonant, vowel, interrupted, high, back, voiced.
FEATURES = {
    "b": (1, 0, 1, 0, 0, 1),
    "d": (1, 0, 1, 1, 0, 1),
    "g": (1, 0, 1, 0, 1, 1),
    "a": (0, 1, 0, 0, 1, 1),
    "i": (0, 1, 0, 1, 0, 1),
    "u": (0, 1, 0, 1, 1, 1),
}
SYLLABLES = ["ba", "dii", "guuu"]
# Table 2 has letters by their place in the alphabet, in binary.
FIVE_BITS = {chr(96 + n): tuple(map(int, f"{n:05b}")) for n in range(1, 27)}
# The words of the sentence that the paper shows.
VOCABULARY = "many years ago a boy and girl lived by the sea they played happily"

# Tables 3 and 4, with the further words of the cluster diagram.
LEXICON = {
    "human": "man woman boy girl",
    "aggressor": "dragon monster lion",
    "animate": "man woman boy girl dragon monster lion cat dog mouse",
    "fragile": "glass plate",
    "food": "cookie bread sandwich",
    "inanimate": "glass plate cookie bread sandwich book rock car",
    "intransitive": "think sleep exist",
    "transitive": "see chase like",
    "either": "move break",
    "perception": "smell see",
    "destruction": "break smash",
    "eating": "eat",
}
TEMPLATES = """human eating food, human perception inanimate,
human destruction fragile, human intransitive, human transitive human,
human either inanimate, human either, animate eating food, animate transitive animate,
animate either inanimate, animate either, inanimate either,
aggressor destruction fragile, aggressor eating human, aggressor eating animate,
aggressor eating food"""
KINDS = ["animate", "inanimate", "verb"]
KIND_OF = {
    word: KINDS[place // 3 if place < 6 else 2]
    for place, category in enumerate(LEXICON.values())
    for word in category.split()
}
WORDS = list(KIND_OF)


def xor_bits(rng: np.random.Generator, triples: int) -> np.ndarray:
    """Bits ``(L,)``: two random ones, then their exclusive or, and so on."""
    pairs = rng.integers(0, 2, (triples, 2))
    return np.column_stack([pairs, pairs[:, 0] ^ pairs[:, 1]]).ravel()


def draw_syllables(rng: np.random.Generator, count: int) -> list[str]:
    """Random consonants with their vowels."""
    return [str(syllable) for syllable in rng.choice(SYLLABLES, count)]


def draw_words(rng: np.random.Generator, sentences: int) -> list[str]:
    """The words of sentences of four to nine words, drawn at random."""
    count = rng.integers(4, 10, sentences).sum()
    return [str(word) for word in rng.choice(VOCABULARY.split(), count)]


def draw_sentences(rng: np.random.Generator, count: int) -> list[list[str]]:
    """Sentences from the templates, each word drawn from its category."""
    templates = [template.split() for template in TEMPLATES.split(",")]
    drawn = rng.integers(len(templates), size=count)
    return [
        [str(rng.choice(LEXICON[kind].split())) for kind in templates[template]]
        for template in drawn
    ]


class Network(nn.Module):
    """A simple recurrent network that predicts the next element of a sequence.

    Args:
        size (int): The number of inputs and of outputs, ``D``.
        hidden (int): The number of hidden units, ``H``.
        truncate (int, optional): How many steps an error passes back at most. ``None``
            is no limit. Default: ``1``, as in the paper.
    """

    def __init__(self, size: int, hidden: int, truncate: int | None = 1):
        super().__init__()
        self.truncate = truncate
        self.rnn = RNN(size, hidden, nonlinearity=mx.sigmoid)
        self.output = Linear(hidden, size)
        self.apply(nn.init.uniform(-0.5, 0.5))

    def __call__(self, x: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array]:
        """Predictions ``LD`` and hidden units ``LH`` after inputs ``LD``."""
        hidden = self.rnn(x, hidden, truncate_every=self.truncate)
        return mx.sigmoid(self.output(hidden)), hidden

    def start(self) -> mx.array:
        """The context before the first step: all units at a half, as in the paper."""
        return mx.full(self.rnn.bias.shape, 0.5)

    def read(self, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and hidden units as NumPy arrays, without learning."""
        predicted, hidden = self(mx.array(sequence), self.start())
        return np.array(predicted), np.array(hidden)

    def learn(self, x: np.ndarray, passes: int, piece: int, rate: float) -> None:
        """Learns by the squared error of each next element, and prints how long.

        Args:
            x (array): The sequence, ``LD``. After the last element the first follows.
            passes (int): How often it is read.
            piece (int): Steps between two changes of the weights.
            rate (float): Adam's rate, which falls to nothing along a cosine.
        """

        def loss(
            network: Network, x: mx.array, target: mx.array, hidden: mx.array
        ) -> tuple[mx.array, mx.array]:
            predicted, hidden = network(x, hidden)
            return (predicted - target).square().sum(axis=-1).mean(), hidden[-1]

        begun, starts = time.perf_counter(), range(0, len(x), piece)
        inputs = [mx.array(x[at : at + piece]) for at in starts]
        following = np.roll(x, -1, axis=0)
        targets = [mx.array(following[at : at + piece]) for at in starts]
        schedule = optim.cosine_decay(rate, passes * len(inputs))
        optimizer = optim.Adam(schedule, bias_correction=True)
        optimizer.init(self.trainable_parameters())
        gradient = nn.value_and_grad(self, loss)
        state = [self.state, optimizer.state]

        @partial(mx.compile, inputs=state, outputs=state)
        def step(x: mx.array, target: mx.array, hidden: mx.array) -> mx.array:
            (_, hidden), gradients = gradient(self, x, target, hidden)
            optimizer.update(self, gradients)
            return hidden

        hidden = self.start()
        for _ in range(passes):
            for x_piece, target in zip(inputs, targets, strict=True):
                hidden = step(x_piece, target, hidden)
            mx.eval(hidden, state)
        print(
            f"  {len(x):,} steps, passes: {passes}, truncate_every={self.truncate}: "
            f"{time.perf_counter() - begun:.1f} s"
        )


def root_mean_square(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=axis))


def axes_of(title: str, height: float, xlabel: str, rows: int = 1) -> list[Axes]:
    figure = Figure(figsize=(7, height), layout="constrained")
    heights = [2, *[1] * (rows - 1)]
    axes = figure.subplots(rows, squeeze=False, height_ratios=heights)[:, 0]
    axes[0].set_title(title)
    axes[-1].set_xlabel(xlabel)
    for each in axes:
        each.set_ylabel("root mean squared error")
        each.grid(axis="y", alpha=0.25)
    return list(axes)


def xor(rng: np.random.Generator, scale: float) -> Figure:
    """The paper's figure 3: the error of 12 steps, averaged over 1,200 trials."""
    bits = xor_bits(rng, 1000).astype(np.float32)[:, None]
    test = xor_bits(rng, 4801).astype(np.float32)[: 12 * 1200 + 1, None]
    title = "Exclusive or in time: one bit of three can be known"
    (axes,) = axes_of(title, 3.8, "bit that is predicted")
    steps = np.arange(2, 14)
    axes.axhline(0.5, color="0.4", linestyle=":", label="always 0.5")
    for truncate, style in [(1, "o-"), (None, "s--")]:
        network = Network(1, 2, truncate)
        network.learn(bits, max(1, round(600 * scale)), 60, 0.03)
        predicted = network.read(test[:-1])[0]
        error = root_mean_square((predicted - test[1:]).reshape(1200, 12), axis=0)
        color, name = BLUE if truncate else ORANGE, f"truncate_every={truncate}"
        axes.plot(steps, error, style, color=color, markersize=5, label=name)
        one, two, three = (error[steps % 3 == place].mean() for place in (1, 2, 0))
        obeys = (predicted[1:] > 0.5) == (test[1:-1] != test[:-2])
        free = np.arange(len(obeys)) % 3 != 0
        print(
            f"    error of random bits {one:.3f} and {two:.3f}, of their exclusive or "
            f"{three:.3f};\n    predictions of random bits that are the exclusive or "
            f"of the two before: {obeys[free].mean():.0%}"
        )
    for known in steps[steps % 3 == 0]:
        axes.axvspan(known - 0.5, known + 0.5, color="0.93", zorder=0)
    axes.set_xticks(steps, [f"{n}" if n % 3 else f"{n}\nxor" for n in steps])
    axes.set_xlim(1.5, 13.5)
    axes.set_ylim(0, 0.65)
    axes.legend(ncols=3, frameon=False, loc="lower center")
    return axes.figure


def spell(
    codes: dict[str, tuple[int, ...]], units: list[str]
) -> tuple[str, np.ndarray, np.ndarray]:
    """The letters of units without spaces, their codes ``LD`` and places ``(L,)``."""
    text = "".join(units)
    places = np.concatenate([np.arange(len(unit)) for unit in units])
    return text, np.array([codes[letter] for letter in text], np.float32), places


def draw_errors(axes: Axes, errors: np.ndarray, due: str, first: np.ndarray) -> None:
    """Errors over a sequence, each with the letter that was to be predicted."""
    axes.plot(errors, color="0.75", linewidth=1)
    at = np.arange(len(errors))
    axes.plot(at[~first], errors[~first], "o", color=BLUE, markersize=4)
    axes.plot(at[first], errors[first], "s", color=ORANGE, markersize=4.5)
    axes.set_xticks(at, list(due))
    axes.tick_params(axis="x", length=0)
    for label, begins in zip(axes.get_xticklabels(), first, strict=True):
        label.set_color(ORANGE if begins else BLUE)
    axes.set_xlim(-0.7, len(errors) - 0.3)
    axes.set_ylim(-0.05 * max(errors), 1.2 * max(errors))


def letters(rng: np.random.Generator, scale: float) -> Figure:
    """Figures 4 and 5: the error of each letter, and of two of its features."""
    network = Network(6, 20)
    x = spell(FEATURES, draw_syllables(rng, 1000))[1]
    network.learn(x, max(1, round(200 * scale)), 10, 0.01)
    text, x, places = spell(FEATURES, draw_syllables(rng, 1000))
    errors, first = network.read(x[:-1])[0] - x[1:], places[1:] == 0
    whole = root_mean_square(errors)
    print(
        f"    error of consonants {whole[first].mean():.3f}, of vowels "
        f"{whole[~first].mean():.3f};\n    of the feature Consonant "
        f"{root_mean_square(errors[:, 0]):.3f}, of the feature High "
        f"{root_mean_square(errors[:, 3]):.3f}"
    )
    title = "Letters: when a consonant comes is known, which one is not"
    rows = axes_of(title, 6, "letter that is predicted (orange: consonants)", 3)
    names = ["all six features", "feature 1, Consonant", "feature 4, High"]
    curves = [whole, np.abs(errors[:, 0]), np.abs(errors[:, 3])]
    for axes, curve, name in zip(rows, curves, names, strict=True):
        draw_errors(axes, curve[20:60], text[21:61], first[20:60])
        axes.text(0.01, 0.95, name, transform=axes.transAxes, va="top")
    for axes in rows[1:]:
        axes.set(ylim=(-0.06, 1), ylabel="error")
    return rows[0].figure


def words(rng: np.random.Generator, scale: float) -> Figure:
    """Figure 6: the error through words that nothing separates."""
    network = Network(5, 20)
    x = spell(FIVE_BITS, draw_words(rng, 200))[1]
    network.learn(x, max(1, round(10 * scale)), 1, 0.01)
    text, x, places = spell(FIVE_BITS, draw_words(rng, 200))
    errors = root_mean_square(network.read(x[:-1])[0] - x[1:])
    means = [f"{errors[places[1:] == place].mean():.3f}" for place in range(5)]
    print(f"    error of the letters 1 to 5 of a word: {', '.join(means)}")
    title = "Letters of words: the error falls until a word ends"
    (axes,) = axes_of(title, 3.4, "letter that is predicted (orange: a word begins)")
    draw_errors(axes, errors[20:65], text[21:66], places[21:66] == 0)
    return axes.figure


def likelihoods(sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """How often each word came next ``LD``, after the same words of a sentence."""
    contexts = [tuple(s[: n + 1]) for s in sentences for n in range(len(s))]
    following = [word for sentence in sentences for word in sentence]
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for context, word in zip(contexts, following[1:] + following[:1], strict=True):
        counts[context][word] += 1
    rows = {}
    for context, counter in counts.items():
        row = [counter[word] for word in WORDS] + [0, 0]
        rows[context] = np.array(row, np.float32) / sum(row)
    return np.stack([rows[context] for context in contexts])


def agreement(vectors: np.ndarray, labels: np.ndarray) -> int:
    """How many vectors lie with their label where their tree is cut in two."""
    branch = fcluster(linkage(vectors, "ward"), 2, "maxclust")
    same = int(((branch == 1) == labels).sum())
    return max(same, len(labels) - same)


def classes(rng: np.random.Generator, scale: float) -> Figure:
    """Figure 7: a tree of the mean hidden units of each word."""
    sentences = draw_sentences(rng, 10_000)
    ids = np.array([WORDS.index(word) for sentence in sentences for word in sentence])
    x = np.eye(31, dtype=np.float32)[ids]  # 29 words; the paper has two bits to spare
    likely, network = likelihoods(sentences), Network(31, 150)

    def say(when: str) -> np.ndarray:
        predicted, hidden = network.read(x)
        lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(likely, axis=1)
        cosine = ((predicted * likely).sum(axis=1) / lengths).mean()
        error = root_mean_square(predicted - likely).mean()
        print(f"    {when}: error {error:.3f} and cosine {cosine:.3f} to likelihoods")
        return hidden

    say("before")
    network.learn(x, max(1, round(6 * scale)), 16, 0.003)
    hidden = say("after")
    means = np.stack([hidden[ids == n].mean(axis=0) for n in range(len(WORDS))])
    kinds = np.array(list(KIND_OF.values()))
    noun = kinds != "verb"
    print(
        f"    tree cut in two: {agreement(means, noun)} of {len(WORDS)} words with the "
        f"nouns or the verbs;\n    tree of the nouns: "
        f"{agreement(means[noun], kinds[noun] == 'animate')} of {noun.sum()} with the "
        "animate or the inanimate ones"
    )
    return draw_tree(linkage(means, "ward"))


def draw_tree(tree: np.ndarray) -> Figure:
    """The cluster diagram of the words, coloured by kind."""
    title = "Lexical classes, found from the order of words"
    (axes,) = axes_of(title, 6.4, "distance between mean hidden units (Ward)")
    shape = dendrogram(tree, no_plot=True)
    for across, along in zip(shape["icoord"], shape["dcoord"], strict=True):
        axes.plot(along, across, color="0.35", linewidth=1.2)
    leaves = [WORDS[leaf] for leaf in shape["leaves"]]
    axes.set_yticks(5 + 10 * np.arange(len(leaves)), leaves)
    axes.yaxis.tick_right()
    colors = dict(zip(KINDS, (BLUE, GREEN, ORANGE), strict=True))
    for label, word in zip(axes.get_yticklabels(), leaves, strict=True):
        label.set_color(colors[KIND_OF[word]])
    for name, color in colors.items():
        axes.plot([], [], "s", color=color, label=name)
    axes.legend(frameon=False, loc="upper left")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.set(xlim=(1.03 * tree[:, 2].max(), 0), ylim=(0, 10 * len(leaves)), ylabel="")
    axes.spines[["left", "top", "right"]].set_visible(False)
    return axes.figure


SIMULATIONS = {f.__name__: f for f in (xor, letters, words, classes)}


def save(figure: Figure, path: Path) -> None:
    """Replaces a picture in one go: at any moment it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"    {path}", flush=True)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"elman_1990: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the simulations and returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add, home = parser.add_argument, Path("runs/elman_1990")
    text = f"which simulations: {', '.join(SIMULATIONS)} (default: all)"
    add("--only", nargs="+", choices=SIMULATIONS, metavar="NAME", help=text)
    text = "how many of the paper's passes to learn for, as a share (default: 1)"
    add("--scale", type=float, default=1.0, metavar="X", help=text)
    text = "seed of the sequences and the weights (default: 0)"
    add("--seed", type=int, default=0, metavar="X", help=text)
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.scale <= 100:
        parser.error(f"--scale must be from 0 to 100, not {arguments.scale}")
    if not 0 <= arguments.seed < 2**32:
        parser.error(f"--seed must be from 0 to 2**32 - 1, not {arguments.seed}")
    mx.set_default_device(mx.cpu)  # the native core is the CPU's for now
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in arguments.only or SIMULATIONS:
            print(name, flush=True)
            mx.random.seed(arguments.seed)
            rng = np.random.default_rng(arguments.seed)
            figure = SIMULATIONS[name](rng, arguments.scale)
            save(figure, arguments.out / f"{name}.png")
    except KeyboardInterrupt:
        print("elman_1990: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{place}"
        print(f"elman_1990: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
