"""`examples/elman_1990.py`: what it draws, how it learns, what it finds and reports."""

import importlib.util
import re
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from tolerances import DEMO, STANDARD_ERRORS

pytest.importorskip("matplotlib", reason="the examples draw with it")
pytest.importorskip("scipy", reason="the example makes its trees with it")

SCRIPT = Path(__file__).parents[1] / "examples" / "elman_1990.py"
NAMES = ["xor", "letters", "words", "classes"]

# Which word may follow which within a sentence, written down by hand.
HUMAN = {"man", "woman", "boy", "girl"}
MONSTER = {"dragon", "monster", "lion"}
ANIMATE = HUMAN | MONSTER | {"cat", "dog", "mouse"}
FOOD = {"cookie", "bread", "sandwich"}
THING = FOOD | {"glass", "plate", "book", "rock", "car"}
FRAMES = [
    (ANIMATE, {"eat"}, FOOD),
    (ANIMATE, {"see", "chase", "like"}, ANIMATE),
    (ANIMATE, {"move", "break"}, THING),
    (ANIMATE, {"move", "break"}),
    (THING, {"move", "break"}),
    (HUMAN, {"smell", "see"}, THING),
    (HUMAN | MONSTER, {"break", "smash"}, {"glass", "plate"}),
    (HUMAN, {"think", "sleep", "exist"}),
    (MONSTER, {"eat"}, ANIMATE),
]


@pytest.fixture(scope="module")
def elman():
    spec = importlib.util.spec_from_file_location("elman_1990", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(capsys, words):
    """The numbers on the line of the report that has these words."""
    (line,) = [line for line in capsys.readouterr().out.splitlines() if words in line]
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


def test_every_third_bit_is_the_exclusive_or(elman, rng):
    bits = elman.xor_bits(rng, 1000)
    assert bits.shape == (3000,) and set(bits) == {0, 1}
    for first, second, third in bits.reshape(-1, 3):
        assert third == (first + second) % 2
    assert len({tuple(bits[at : at + 2]) for at in range(0, 3000, 3)}) == 4


def test_vowels_follow_their_consonants(elman, rng):
    units = elman.draw_syllables(rng, 1000)
    text, codes, places = elman.spell(elman.FEATURES, units)
    assert re.fullmatch("(ba|dii|guuu)*", text)
    assert [text.count(letter) for letter in "bdg"] == [
        text.count("a"),
        text.count("i") / 2,
        text.count("u") / 3,
    ]
    assert sum(text.count(letter) for letter in "bdg") == 1000
    consonant = np.isin(list(text), list("bdg"))
    assert ((places == 0) == consonant).all()
    assert (codes[:, 0] == consonant).all() and (codes[:, 1] != consonant).all()
    assert len(set(elman.FEATURES.values())) == 6


def test_words_follow_each_other_without_a_space(elman, rng):
    units = elman.draw_words(rng, 200)
    assert 4 * 200 <= len(units) <= 9 * 200
    assert set(units) == set(elman.VOCABULARY.split())
    text, codes, places = elman.spell(elman.FIVE_BITS, units)
    assert text == "".join(units) and codes.shape == (len(text), 5)
    begins = np.flatnonzero(places == 0)
    assert [
        text[a:b] for a, b in zip(begins, [*begins[1:], None], strict=True)
    ] == units
    table = {"m": "01101", "a": "00001", "n": "01110", "y": "11001", "e": "00101"}
    for letter, bits in table.items():
        assert "".join(map(str, elman.FIVE_BITS[letter])) == bits


def test_sentences_are_of_the_grammar(elman, rng):
    sentences = elman.draw_sentences(rng, 10_000)
    for sentence in sentences:
        assert any(
            len(frame) == len(sentence)
            and all(word in place for word, place in zip(sentence, frame, strict=True))
            for frame in FRAMES
        ), sentence
    assert {word for sentence in sentences for word in sentence} == set(elman.WORDS)
    assert len(elman.WORDS) == 29
    # 12 templates have three words and 4 two, so the mean is 2.75.
    lengths = np.array([len(sentence) for sentence in sentences])
    bound = STANDARD_ERRORS * np.sqrt(0.25 * 0.75 / len(lengths))
    assert abs(lengths.mean() - 2.75) < bound


def test_kinds_of_words(elman):
    assert {w for w, kind in elman.KIND_OF.items() if kind == "animate"} == ANIMATE
    assert {w for w, kind in elman.KIND_OF.items() if kind == "inanimate"} == THING


def test_likelihoods_are_counts(elman):
    sentences = [
        ["man", "eat", "bread"],
        ["man", "eat", "cookie"],
        ["man", "sleep"],
        ["boy", "move"],
    ]
    likely = elman.likelihoods(sentences)
    assert likely.shape == (10, 31)
    assert likely.sum(axis=1) == pytest.approx(np.ones(10), rel=DEMO)

    def of(step):
        return {elman.WORDS[n]: likely[step, n] for n in np.flatnonzero(likely[step])}

    for step in (0, 3, 6):
        assert of(step) == pytest.approx({"eat": 2 / 3, "sleep": 1 / 3}, rel=DEMO)
    assert of(1) == of(4) == {"bread": 0.5, "cookie": 0.5}
    assert of(7) == {"boy": 1}
    assert of(9) == {"man": 1}  # after the last word the first one follows


def test_the_context_is_an_input(elman, rng):
    """The gradient is that of one step whose context was computed before."""
    network = elman.Network(4, 6)
    x = mx.array(rng.standard_normal((9, 4), np.float32))

    def loss(network, x):
        predicted, _ = network(x, network.start())
        return predicted.square().sum()

    def by_hand(network, x):
        context, total = mx.full((6,), 0.5), 0
        rnn, output = network.rnn, network.output
        for row in x:
            context = mx.stop_gradient(context)
            context = mx.sigmoid(rnn.Wxh @ row + rnn.Whh @ context + rnn.bias)
            out = mx.sigmoid(output.weight @ context + output.bias)
            total = total + out.square().sum()
        return total

    for trained in ("rnn", "output"):
        value, ours = nn.value_and_grad(network, loss)(network, x)
        expected, theirs = nn.value_and_grad(network, by_hand)(network, x)
        assert value.item() == pytest.approx(expected.item(), rel=DEMO)
        for name, gradient in ours[trained].items():
            assert mx.allclose(gradient, theirs[trained][name], DEMO, DEMO), name


def test_learning_carries_the_context_from_piece_to_piece(elman, rng):
    """Adam by hand over the pieces of two passes, the last piece a shorter one."""
    network, twin = elman.Network(3, 5), elman.Network(3, 5)
    twin.update(network.parameters())
    x = rng.standard_normal((10, 3)).astype(np.float32)
    network.learn(x, 2, 4, 0.01)

    def loss(twin, x, target, hidden):
        predicted, hidden = twin(x, hidden)
        return (predicted - target).square().sum() / len(x), hidden[-1]

    optimizer = optim.Adam(optim.cosine_decay(0.01, 6), bias_correction=True)
    hidden, ring = mx.full((5,), 0.5), np.concatenate([x, x[:1]])
    for begin, end in [(0, 4), (4, 8), (8, 10)] * 2:
        pair = mx.array(ring[begin:end]), mx.array(ring[begin + 1 : end + 1])
        (_, hidden), gradients = nn.value_and_grad(twin, loss)(twin, *pair, hidden)
        optimizer.update(twin, gradients)
    for name in ("Wxh", "Whh", "bias"):
        assert mx.allclose(network.rnn[name], twin.rnn[name], DEMO, DEMO), name


def test_agreement_counts_leaves(elman, rng):
    labels = np.arange(20) % 2 == 0
    vectors = rng.standard_normal((20, 3)) + 100 * labels[:, None]
    assert elman.agreement(vectors, labels) == 20
    wrong = labels.copy()
    wrong[0] = not wrong[0]
    assert elman.agreement(vectors, wrong) == 19


def test_vowels_are_predicted_and_consonants_are_not(elman, tmp_path, capsys):
    arguments = ["--only", "letters", "--scale", "0.1", "--out", str(tmp_path)]
    assert elman.main(arguments) == 0
    out = capsys.readouterr().out
    numbers = [float(n) for n in re.findall(r"\d\.\d{3}", out)]
    consonants, vowels, consonant, high = numbers
    # The best that can be: which of three consonants comes decides two bits of six.
    assert consonants > 0.9 * np.sqrt(2 * (2 / 9) / 6) > 3 * vowels
    assert high > 3 * consonant


def test_exclusive_or_is_predicted(elman):
    """With the weights and the bits of one seed: from some it takes longer."""
    mx.random.seed(0)
    bits = elman.xor_bits(np.random.default_rng(0), 1000).astype(np.float32)[:, None]
    network = elman.Network(1, 2, None)
    network.learn(bits, 200, 60, 0.05)
    error = (network.read(bits[:-1])[0] - bits[1:])[:2997].reshape(-1, 3)
    one, known, other = np.sqrt((error**2).mean(axis=0))
    assert known < 0.9 * min(one, other)


def test_small_run(elman, tmp_path, capsys):
    """One pass of each simulation: the report, the pictures and what must hold."""
    assert elman.main(["--scale", "0", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (means,) = re.findall(r"letters 1 to 5 of a word: (.*)", out)
    first, *others = map(float, means.split(", "))
    assert first > max(others)
    before, after = re.findall(r"error (\S+) and cosine (\S+)", out)
    assert float(after[0]) < float(before[0]) and float(after[1]) > float(before[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.png" for name in NAMES
    )
    for name in NAMES:
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width == 840 and 300 < height < 900
        assert f"\n{name}\n" in f"\n{out}" and f"{tmp_path / name}.png" in out


def test_the_same_seed_gives_the_same_report(elman, tmp_path, capsys):
    arguments = ["--only", "words", "--scale", "0", "--out", str(tmp_path), "--seed"]
    reports = []
    for seed in ("3", "3", "4"):
        assert elman.main([*arguments, seed]) == 0
        reports.append(re.findall("of a word.*", capsys.readouterr().out))
    assert reports[0] == reports[1] != reports[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "nothing"], "--only"),
        (["--scale", "nan"], "--scale must be from 0 to 100, not nan"),
        (["--scale", "x"], "--scale"),
        (["--seed", "-1"], "--seed must be from 0 to 2**32 - 1, not -1"),
        (["--seed", "1.5"], "--seed"),
        (["--what"], "--what"),
    ],
)
def test_wrong_options(elman, arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        elman.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("elman_1990: error: ") and words in line


def test_a_place_that_cannot_be_written(elman, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert elman.main(["--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("elman_1990: error: ") and str(tmp_path / "file") in line


def test_interrupted(elman, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(elman.SIMULATIONS, "xor", interrupt)
    assert elman.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "elman_1990: interrupted\n"


def test_a_picture_is_replaced_whole_or_not_at_all(elman, tmp_path):
    class Broken:
        def savefig(self, path, **_):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    picture = tmp_path / "xor.png"
    picture.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        elman.save(Broken(), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["xor.png"]
    assert picture.read_bytes() == b"old"


def test_help_from_the_command_line():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == ""
    for word in [*NAMES, "--scale", "--seed", "--out", "truncate_every=1"]:
        assert word in done.stdout
