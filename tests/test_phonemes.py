"""`examples/phonemes.py`: a published model, equal to a loop in NumPy."""

import ast
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tolerances import PUBLISHED

pytest.importorskip("matplotlib", reason="the example draws with it")
SCRIPT = Path(__file__).parents[1] / "examples" / "phonemes.py"
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("g2p_en") is None, reason="g2p-en has the weights"
)
SHAPES = {
    "enc_emb": (29, 256),
    "dec_emb": (74, 256),
    "fc_w": (74, 256),
    "fc_b": (74,),
    **{f"{side}_w_{of}": (768, 256) for side in ("enc", "dec") for of in ("ih", "hh")},
    **{f"{side}_b_{of}": (768,) for side in ("enc", "dec") for of in ("ih", "hh")},
}


@pytest.fixture(scope="module")
def phonemes():
    spec = importlib.util.spec_from_file_location("phonemes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(rng, tmp_path):
    """A file of random weights of the same shapes."""
    path = tmp_path / "checkpoint.npz"
    weights = {
        name: rng.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    np.savez(path, **weights)
    return path


def exact(weights, word, phonemes):
    """Probabilities of the network in float64, gate by gate as PyTorch writes them."""
    w = {name: a.astype(np.float64) for name, a in weights.items()}

    def step(side, x, h):
        def of(gate, a, name):
            rows = slice(256 * gate, 256 * gate + 256)
            return w[f"{side}_w_{name}"][rows] @ a + w[f"{side}_b_{name}"][rows]

        r = 1 / (1 + np.exp(-of(0, x, "ih") - of(0, h, "hh")))
        z = 1 / (1 + np.exp(-of(1, x, "ih") - of(1, h, "hh")))
        n = np.tanh(of(2, x, "ih") + r * of(2, h, "hh"))
        return (1 - z) * n + z * h

    h = np.zeros(256)
    for letter in word:
        h = step("enc", w["enc_emb"][3 + ord(letter) - ord("a")], h)
    h = step("enc", w["enc_emb"][2], h)
    said, rows = 2, []
    while len(rows) < 20 and said != 3:
        h = step("dec", w["dec_emb"][said], h)
        logits = np.exp(w["fc_w"] @ h + w["fc_b"])
        rows.append(logits / logits.sum())
        said = int(logits.argmax())
    return [phonemes[row.argmax()] for row in rows if row.argmax() != 3], rows


@needs_model
def test_letters_and_phonemes_are_the_package_s(phonemes):
    """As its source lists them, which cannot be imported without its corpora."""
    source = phonemes.package().with_name("g2p.py").read_text("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has escapes that are none
        tree = ast.parse(source)
    listed = {
        node.targets[0].attr: eval(compile(ast.Expression(node.value), "", "eval"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and node.targets[0].attr in ("graphemes", "phonemes")
    }
    assert listed == {"graphemes": phonemes.LETTERS, "phonemes": phonemes.PHONEMES}


def test_words_together_are_words_alone(phonemes, checkpoint):
    """With random weights, most of which say as much as may be said."""
    model, loop = phonemes.load(checkpoint)
    words = ["a", "recurrent", "xyz", "be"]
    spoken, likely = phonemes.Speaker(model, 4)(words)
    with np.load(checkpoint) as weights:
        held = dict(weights)
    speaker = phonemes.Speaker(model, 1)
    for word, *together in zip(words, spoken, likely, strict=True):
        expected, truth = exact(held, word, phonemes.PHONEMES)
        alone = [a[0] for a in speaker([word])]
        for said, rows in (together, alone, loop(word)):
            assert said == expected
            np.testing.assert_allclose(rows[: len(truth)], truth, 0, PUBLISHED)


@needs_model
def test_what_the_package_shows(phonemes):
    """Its own page spells this word so; the others are in every dictionary."""
    model, _ = phonemes.load(phonemes.package())
    known = {
        "activationist": "AE2 K T IH0 V EY1 SH AH0 N IH0 S T",
        "cat": "K AE1 T",
        "phone": "F OW1 N",
    }
    spoken, _ = phonemes.Speaker(model, len(known))(list(known))
    assert [" ".join(said) for said in spoken] == list(known.values())


@needs_model
def test_equal_to_the_network_in_float64(phonemes):
    path = phonemes.package()
    model, loop = phonemes.load(path)
    with np.load(path) as weights:
        held = dict(weights)
    spoken, likely = phonemes.Speaker(model, len(phonemes.WORDS))(phonemes.WORDS)
    for word, said, row in zip(phonemes.WORDS, spoken, likely, strict=True):
        expected, truth = exact(held, word, phonemes.PHONEMES)
        assert said == expected == loop(word)[0]
        np.testing.assert_allclose(row[: len(truth)], truth, 0, PUBLISHED)


def test_a_run(phonemes, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["Café", "quokka", "--draw", "quokka"]
    arguments = [*words, "--weights", str(checkpoint), "--out", str(out)]
    assert phonemes.main(arguments) == 0
    shown, err = capsys.readouterr()
    assert err == "" and "The loop in NumPy says the same" in shown
    for name in ("NumPy, a word", "this package, a word", "this package, 64 at once"):
        assert f"  {name}" in shown
    assert (out / "phonemes.png").read_bytes()[:4] == b"\x89PNG"
    header, first, second = (out / "phonemes.csv").read_text().splitlines()
    assert header == "word,phonemes" and first.startswith("cafe,")
    assert second.startswith("quokka,")


def test_what_differs_from_the_loop_fails(
    phonemes, checkpoint, tmp_path, capsys, monkeypatch
):
    model, loop = phonemes.load(checkpoint)
    loop.weights["fc_b"] = loop.weights["fc_b"] + 100 * (np.arange(74) == 5)
    monkeypatch.setattr(phonemes, "load", lambda _: (model, loop))
    arguments = ["word", "--weights", str(checkpoint), "--out", str(tmp_path)]
    assert phonemes.main(arguments) == 2
    assert "the loop says AA1 AA1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["don't"], 'must be of the letters a to z, but "don\'t" has "\'"'),
        (["x" * 101], "must have from 1 to 100 letters"),
        ([""], "must have from 1 to 100 letters, but '' has 0"),
        (["北京"], "has '北'"),
        (["a", "--draw", "b"], "--draw must be one of the words, but is 'b'"),
        (["--what"], "--what"),
    ],
)
def test_words_that_cannot_be_said(words, message, phonemes, checkpoint, capsys):
    assert phonemes.main([*words, "--weights", str(checkpoint)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("phonemes: error: ") and message in line


def damaged(path, how, tmp_path):
    """A file that is not the checkpoint."""
    other = tmp_path / "other.npz"
    with np.load(path) as file:
        weights = dict(file)
    if how == "missing":
        del weights["dec_b_hh"]
    elif how == "shape":
        weights["fc_w"] = weights["fc_w"][:70]
    elif how == "cell":
        weights["enc_w_hh"] = weights["enc_w_hh"][:, :12]
    elif how == "dtype":
        weights["enc_w_hh"] = weights["enc_w_hh"].astype(np.int32)
    elif how == "objects":
        weights["fc_b"] = np.array([None] * 74)
    np.savez(other, **weights)
    content = other.read_bytes()
    if how == "text":
        content = b"no checkpoint\n"
    elif how == "empty":
        content = b""
    elif how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content = content[:5000] + bytes(100) + content[5100:]
    elif how == "one array":
        with other.open("wb") as file:
            np.save(file, weights["fc_w"])
        content = other.read_bytes()
    other.write_bytes(content)
    return other


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "no 'dec_b_hh'"),
        ("shape", "(70, 256)"),
        ("cell", "(768, 12)"),
        ("dtype", "int32"),
        ("objects", "allow_pickle=False"),
        ("text", ""),
        ("empty", ""),
        ("cut", ""),
        ("flipped", ""),
        ("one array", "it holds one array"),
    ],
)
def test_files_that_are_not_the_checkpoint(
    how, words, phonemes, checkpoint, tmp_path, capsys
):
    path = damaged(checkpoint, how, tmp_path)
    assert phonemes.main(["word", "--weights", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is not g2p-en's checkpoint: " in line and words in line


def test_files_that_are_not_there(phonemes, tmp_path, capsys, checkpoint):
    assert phonemes.main(["--weights", str(tmp_path / "none.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"No such file or directory: {tmp_path / 'none.npz'}" in line
    out = tmp_path / "file"
    out.write_text("")
    arguments = ["word", "--weights", str(checkpoint), "--out", str(out)]
    assert phonemes.main(arguments) == 2
    assert str(out) in capsys.readouterr().err


def test_without_the_package(phonemes, monkeypatch, capsys):
    monkeypatch.setattr(phonemes.importlib.util, "find_spec", lambda _: None)
    assert phonemes.main([]) == 2
    assert capsys.readouterr().err == (
        "phonemes: error: g2p-en is not installed (pip install --no-deps g2p-en)\n"
    )


def test_control_c(phonemes, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phonemes, "load", interrupted)
    monkeypatch.setattr(phonemes, "package", lambda: None)
    assert phonemes.main([]) == 130
    assert capsys.readouterr().err == "phonemes: interrupted\n"


def test_help_as_a_program():
    shown = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0 and "--draw" in shown.stdout and not shown.stderr
