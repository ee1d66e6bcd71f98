"""The main job: `examples/char_lm.py`, run as its user runs it, at a small size."""

import errno
import importlib.util
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tolerances import DEMO, DEMO_COUNTED

SCRIPT = Path(__file__).parents[1] / "examples" / "char_lm.py"
LAYERS = ["rnn", "gru", "lstm"]
# Sizes at which a step takes a millisecond.
SMALL = "--embedding 5 --hidden 7 --batch 3 --chunk 6 --every 4 --compare 0".split()


@pytest.fixture(scope="session")
def char_lm():
    spec = importlib.util.spec_from_file_location("char_lm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["char_lm"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = "to be or not to be, that is the question: whether \u2019tis nobler\n"
    path.write_text(words * 20, encoding="utf-8")
    return path


@pytest.fixture
def train(char_lm, text, tmp_path):
    """Trains in a folder under tmp_path; returns the exit status."""

    def run(*arguments, out="run", text=text):
        common = ["--text", str(text), "--out", str(tmp_path / out)]
        return char_lm.main(["train", *common, *SMALL, *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def finished(char_lm, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    common = ["--text", str(text), "--out", str(folder)]
    arguments = ["--steps", "100", "--learning-rate", "0.02", "--quiet"]
    assert char_lm.main(["train", *common, *SMALL, *arguments]) == 0
    return folder


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of a finished run, at the place where `train` looks for it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def arrays(folder):
    record = json.loads((folder / "checkpoint.json").read_text())
    return mx.load(str(folder / record["arrays"]))


def assert_same_bits(one, other):
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array(a[name]).tobytes() == np.array(b[name]).tobytes(), name


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def error_line(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert lines and lines[-1].startswith("char_lm: error: "), lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def start(*arguments, code=None, **keywords):
    command = [sys.executable, str(SCRIPT)] if code is None else ["-c", code]
    if code is not None:
        command.insert(0, sys.executable)
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **keywords,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_train_reports_everything(layer, train, text, tmp_path, capsys):
    assert train("--steps", 12, "--compare", 1, "--layer", layer) == 0
    out, err = capsys.readouterr()
    assert f"{layer} with" in err
    for library in ("mlx_recurrent", "mlx.nn"):
        assert f"{library}.{layer.upper()}, mlx.nn.Linear" in out
    for word in ("unigram", "trigram", "xz", "this model", "Sample", "curves.png"):
        assert word in out
    assert out.count(" ms ") == 3
    assert err.count("step ") == 3 and "char/s" in err and "s left" in err
    folder = tmp_path / "run"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(files(folder)) == 3


def test_quiet_writes_nothing_to_stderr(train, capsys):
    assert train("--steps", 4, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_learns(trained, char_lm, text):
    run = char_lm.Run.load(trained)
    content = char_lm.Text(text.read_text(encoding="utf-8"), run.options)
    score = char_lm.heldout_bits(run.model, content.heldout)
    assert score < char_lm.ngram_bits(content, 1)
    assert score == pytest.approx(run.heldout[-1][1], rel=DEMO)
    assert score == pytest.approx(
        char_lm.heldout_bits(run.model, content.heldout, 7), rel=DEMO
    )


def test_progress_bar_on_a_terminal(text, tmp_path):
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24, 120, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    arguments = ["train", "--text", text, "--out", tmp_path / "run", *SMALL]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments), "--steps", "40"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"char/s" in shown and b"bits/char" in shown and b"100%" in shown


def test_chunks_follow_each_other(char_lm):
    options = char_lm.Options(batch=3, chunk=4)
    ids = np.arange(31, dtype=np.int32)
    inputs, targets = char_lm.chunk_at(ids, 0, options)
    assert inputs.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    for step in range(1, 20):
        following, next_targets = char_lm.chunk_at(ids, step, options)
        assert targets[:, -1].tolist() == following[:, 0].tolist()
        assert next_targets.tolist() == ((np.array(following) + 1) % 31).tolist()
        targets = next_targets


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_stops_at_the_border_of_a_chunk(layer, char_lm):
    """One step from a state equals plain MLX from the same state held constant."""
    options = char_lm.Options(layer, 4, 6, batch=2, chunk=5, steps=10, dropout=0.0)
    run = char_lm.Run(options, "abc", None, "")
    ids = np.array([0, 1, 2, 2, 1] * 6, np.int32)
    run.advance(ids)
    upstream = char_lm.with_last_states(getattr(nn, layer.upper()))
    plain = char_lm.CharLM(3, options, upstream, nn.Linear)
    plain.update(run.model.parameters())
    inputs, targets = char_lm.chunk_at(ids, 1, options)
    logits, states = plain(inputs, run.states)
    loss = nn.losses.cross_entropy(logits, targets, reduction="mean")
    bits = loss.item() / math.log(2)
    assert run.advance(ids) == pytest.approx(bits, rel=DEMO)
    assert len(states) == len(run.states) == 1 + (layer == "lstm")
    for found, expected in zip(run.states, states, strict=True):
        assert mx.allclose(found, expected, rtol=DEMO, atol=DEMO)


def by_hand(training, heldout, vocabulary, order):
    """Witten-Bell, character by character, from the definition."""

    def p(context, character):
        shorter = p(context[1:], character) if context else 1 / len(vocabulary)
        after = [
            training[i + len(context)]
            for i in range(len(training) - len(context))
            if training[i : i + len(context)] == context
        ]
        if not after:
            return shorter
        kinds = len(set(after))
        return (after.count(character) + kinds * shorter) / (len(after) + kinds)

    whole, bits = training + heldout, 0.0
    for i in range(len(training), len(whole)):
        bits -= math.log2(p(whole[i - order + 1 : i], whole[i]))
    return bits / len(heldout)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngrams_agree_with_a_calculation_by_hand(char_lm, order):
    training, heldout = "abracadabra abba cab" * 2 + "d", "zbrc"
    text = char_lm.Text(training + heldout, char_lm.Options(batch=1, chunk=1))
    assert text.content[: text.split] == training
    expected = by_hand(training, heldout, set(training + heldout), order)
    assert char_lm.ngram_bits(text, order) == pytest.approx(expected, rel=DEMO_COUNTED)


def test_unigram_of_a_tiny_text(char_lm):
    # Training "aabb", held out "c": 5 characters seen or smoothed: 4 + T = 6,
    # p(c) = 2/6 * 1/3.
    text = char_lm.Text("aabbc", char_lm.Options(batch=1, chunk=1))
    assert char_lm.ngram_bits(text, 1) == pytest.approx(
        -math.log2(2 / 6 / 3), rel=DEMO_COUNTED
    )


def test_xz_counts_what_the_heldout_part_adds(char_lm):
    options = char_lm.Options(batch=1, chunk=1)
    noise = "".join(map(chr, np.random.default_rng(0).integers(97, 113, 9000)))
    assert char_lm.xz_bits(char_lm.Text(noise + noise[:1000], options)) < 0.5
    other = "".join(map(chr, np.random.default_rng(1).integers(97, 113, 1000)))
    assert 4 <= char_lm.xz_bits(char_lm.Text(noise + other, options)) < 5


def test_default_text_has_each_paragraph_once(char_lm):
    content = char_lm.read_text(None)
    paragraphs = content.split("\n\n")
    assert len(paragraphs) == len(set(paragraphs))
    assert len(content) > 100_000 and content == char_lm.read_text(None)


@pytest.mark.parametrize("layer", LAYERS)
def test_resume_gives_the_same_bits(
    layer, char_lm, train, tmp_path, monkeypatch, capsys
):
    assert train("--steps", 23, "--layer", layer, out="whole") == 0

    advance, steps = char_lm.Run.advance, []

    def interrupted(run, ids):
        steps.append(run.step)
        if len(steps) % 6 == 5:
            signal.raise_signal(signal.SIGINT)
        return advance(run, ids)

    monkeypatch.setattr(char_lm.Run, "advance", interrupted)
    assert train("--steps", 23, "--layer", layer, out="cut") == 130
    while (status := train("--resume", out="cut")) == 130:
        assert "--resume" in capsys.readouterr().err
    assert status == 0
    assert steps == list(range(23))
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (
        json.loads((tmp_path / out / "checkpoint.json").read_text())
        for out in ("whole", "cut")
    )
    assert whole["heldout"] == cut["heldout"]


def test_resume_after_the_end_reports_again(train, trained, capsys):
    before = files(trained)
    before.pop("curves.png")
    assert train("--resume") == 0
    assert "this model" in capsys.readouterr().out
    assert before.items() <= files(trained).items()


def test_control_c_in_a_process(text, tmp_path, train):
    arguments = ["train", "--text", text, "--out", tmp_path / "cut", *SMALL]
    process = start(*arguments, "--steps", 300)
    while "step 8/300" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("char_lm: stopped after step ")
    assert "Traceback" not in err
    step = json.loads((tmp_path / "cut" / "checkpoint.json").read_text())["step"]
    assert 8 <= step < 300
    assert train("--resume", "--quiet", out="cut") == 0
    assert train("--steps", 300, "--quiet", out="whole") == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


# Kills the process at the n-th of the moments that matter in writing checkpoints.
KILL = """
import os, runpy, signal, sys
script, moment, *arguments = sys.argv[1:]
moments = 0
def dangerous(function):
    def call(*a):
        global moments
        moments += 1
        if moments == int(moment):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*a)
    return call
os.fsync, os.replace = dangerous(os.fsync), dangerous(os.replace)
os.unlink = dangerous(os.unlink)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def test_a_kill_at_any_moment_leaves_a_checkpoint(char_lm, text, tmp_path, train):
    assert train("--steps", 23, "--quiet", out="whole") == 0
    processes = []
    for moment in range(7, 15):
        out = tmp_path / str(moment)
        arguments = ["train", "--text", text, "--out", out, *SMALL, "--steps", 23]
        processes.append((out, start(SCRIPT, moment, *arguments, code=KILL)))
        if len(processes) % 2 == 0:
            for _, process in processes[-2:]:
                process.communicate(timeout=60)
    seen = set()
    for out, process in processes:
        assert process.returncode == -signal.SIGKILL
        seen.add(char_lm.Run.load(out).step)
        assert train("--resume", "--quiet", out=out.name) == 0
        assert_same_bits(tmp_path / "whole", out)
        assert len(files(out)) == 3  # nothing of the killed run is left
    assert seen == {0, 4}


@pytest.mark.parametrize("failing, step", [(5, 0), (7, 0), (9, 4), (11, 4)])
def test_full_disk(failing, step, char_lm, train, tmp_path, monkeypatch, capsys):
    """A write that fails ends the run; the checkpoint before stays."""
    assert train("--steps", 8, "--quiet", out="whole") == 0
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(char_lm.os, "fsync", full)
    status = train("--steps", 8)
    monkeypatch.undo()
    assert status == 2
    assert os.strerror(errno.ENOSPC) in error_line(capsys)
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert char_lm.Run.load(tmp_path / "run").step == step
    assert train("--resume") == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_behind_stdout(trained):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, SCRIPT, "generate", "--checkpoint", trained],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1 and "No space left" in process.stderr


def test_reader_that_goes_away(trained):
    process = start("generate", "--checkpoint", trained, "--length", 10**6)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()


def test_two_runs_in_a_folder(train, text, tmp_path, char_lm):
    """The last checkpoint written counts, and has its arrays."""
    processes = []
    for seed in (1, 2):
        arguments = ["train", "--text", text, "--out", tmp_path / "run", *SMALL]
        more = ["--overwrite", "--steps", 60, "--every", 1, "--seed", seed, "--quiet"]
        processes.append(start(*arguments, *more))
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert char_lm.Run.load(tmp_path / "run").step == 60
    assert len(files(tmp_path / "run")) == 3


def test_files_of_others_stay(train, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    names = ["checkpoint-500.safetensors", "checkpoint-best.safetensors.bak"]
    for name in names:
        (run / name).write_text("mine")
    assert train("--steps", 4) == 0
    assert [(run / name).read_text() for name in names] == ["mine", "mine"]


def test_unwritable_folder(train, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train("--steps", 4, out="file") == 2
    assert str(tmp_path / "file") in error_line(capsys)
    assert train("--steps", 4, out="file/below") == 2
    assert str(tmp_path / "file") in error_line(capsys)


@pytest.fixture
def nobody():
    """A user whom permissions bind: root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_folder_without_permission(train, tmp_path, capsys, request):
    (tmp_path / "run").mkdir(mode=0o500)
    request.getfixturevalue("nobody")
    assert train("--steps", 4) == 2
    assert os.strerror(errno.EACCES) in error_line(capsys)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"", "too short"),
        (b"to be or not to be", "too short"),
        (b"to be \xff or not" * 100, "not UTF-8"),
        ("folder", "Is a directory"),
    ],
)
def test_text_that_cannot_be_used(content, words, train, tmp_path, capsys):
    path = tmp_path / "input.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert train("--steps", 4, text=path) == 2
    assert words in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_missing_default_text(char_lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert char_lm.main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "--text" in error_line(capsys)


@pytest.mark.parametrize("content", ["a" * 99, "\ufeffab\r\n" * 99, "😀é\u2028\0" * 99])
def test_odd_texts_are_fine(content, train, char_lm, tmp_path, capsys):
    path = tmp_path / "odd.txt"
    path.write_text(content, encoding="utf-8", newline="")
    assert train("--steps", 4, text=path) == 0
    assert char_lm.main(["generate", "--checkpoint", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "train --layer elman",
        "train --steps -3",
        "train --steps 0",
        "train --steps 1.5",
        "train --steps many",
        "train --hidden 0",
        "train --hidden 1000000000000",
        "train --learning-rate nan",
        "train --learning-rate inf",
        "train --learning-rate 0",
        "train --clip -1",
        "train --seed -1",
        "train --every 0",
        "train --compare -1",
        "train --step 5",
        "train --resume --overwrite",
        "train --text",
        "generate --temperature -0.1",
        "generate --temperature nan",
        "generate --temperature inf",
        "generate --length -1",
        "generate --seed x",
        "dance",
        "",
    ],
)
def test_bad_options(arguments, char_lm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert char_lm.main(arguments.split()) == 2
    error_line(capsys)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_no_checkpoint(char_lm, train, tmp_path, capsys):
    assert train("--resume") == 2
    assert "no checkpoint" in error_line(capsys)
    assert char_lm.main(["generate", "--checkpoint", str(tmp_path)]) == 2
    assert "no checkpoint" in error_line(capsys)


def test_an_existing_checkpoint_is_not_replaced_unasked(train, trained, capsys):
    before = files(trained)
    assert train("--steps", 4, "--seed", 1) == 2
    assert "--resume" in error_line(capsys)
    assert files(trained) == before
    assert train("--steps", 4, "--seed", 1, "--overwrite") == 0
    assert len(files(trained)) == 3
    assert files(trained)["checkpoint.json"] != before["checkpoint.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        "--hidden 9",
        "--steps 200",
        "--seed 3",
        "--learning-rate 0.1",
        "--layer gru",
        "--layer lstm",
    ],
)
def test_resume_with_other_options(arguments, train, trained, capsys):
    before = files(trained)
    assert train("--resume", *arguments.split()) == 2
    assert arguments.split()[0] in error_line(capsys)
    assert files(trained) == before


def test_resume_with_another_text(train, trained, tmp_path, capsys):
    before = files(trained)
    other = tmp_path / "other.txt"
    other.write_text("something else entirely\n" * 50)
    assert train("--resume", text=other) == 2
    assert "not the one" in error_line(capsys)
    assert files(trained) == before


def test_a_loss_that_is_not_finite(char_lm, train, tmp_path, monkeypatch, capsys):
    advance = char_lm.Run.advance

    def spoilt(run, ids):
        if run.step == 6:
            run.model.head.bias = run.model.head.bias + mx.nan
        return advance(run, ids)

    monkeypatch.setattr(char_lm.Run, "advance", spoilt)
    assert train("--steps", 12) == 2
    assert "--learning-rate" in error_line(capsys)
    assert char_lm.Run.load(tmp_path / "run").step == 4


def damage_record(change):
    def damage(folder, char_lm):
        path = folder / "checkpoint.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def damage_arrays(change):
    """Another set of arrays, with the names and checksums that it would have."""

    def damage(folder, char_lm):
        path = folder / "checkpoint.json"
        record = json.loads(path.read_text())
        values = arrays(folder)
        change(values)
        mx.save_safetensors(str(folder / record["arrays"]), values)
        del record["sha256"]
        data = (folder / record["arrays"]).read_bytes()
        record["sha256"] = char_lm.checksum(record, data)
        path.write_text(json.dumps(record))

    return damage


def forged(change):
    """A record that says something else, with the checksum that it would have."""

    def damage(folder, char_lm):
        path = folder / "checkpoint.json"
        record = json.loads(path.read_text())
        del record["sha256"]
        change(record)
        data = b""
        if isinstance(record.get("arrays"), str):
            data = (folder / record["arrays"]).read_bytes()
        record["sha256"] = char_lm.checksum(record, data)
        path.write_text(json.dumps(record))

    return damage


def forged_header(**changes):
    """Another entry of an array, with the checksum that the record would have."""

    def damage(folder, char_lm):
        (path,) = folder.glob("*.safetensors")
        data = path.read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:length])
        header["model.rnn.bias"] |= changes
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[length:])
        forged(lambda record: None)(folder, char_lm)

    return damage


def on_files(pattern, change):
    def damage(folder, char_lm):
        (path,) = folder.glob(pattern)
        change(path)

    return damage


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "json empty": on_files("*.json", lambda p: p.write_bytes(b"")),
    "json cut": on_files("*.json", lambda p: p.write_bytes(p.read_bytes()[:-9])),
    "json a list": on_files("*.json", lambda p: p.write_text("[1, 2]")),
    "json not text": on_files("*.json", lambda p: p.write_bytes(b"\xff\x00\x80")),
    "json deep": on_files("*.json", lambda p: p.write_text("[" * 10**5)),
    "json changed": damage_record(lambda r: r["options"].update(clip=2.0)),
    "json lacks": damage_record(lambda r: r.pop("arrays")),
    "json a folder": on_files("*.json", lambda p: (p.unlink(), p.mkdir())),
    "arrays missing": on_files("*.safetensors", lambda p: p.unlink()),
    "arrays empty": on_files("*.safetensors", lambda p: p.write_bytes(b"")),
    "arrays cut": on_files(
        "*.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-50])
    ),
    "arrays flipped": on_files("*.safetensors", lambda p: flip(p, -9)),
    "header flipped": on_files("*.safetensors", lambda p: flip(p, 3)),
    "array missing": damage_arrays(lambda a: a.pop("model.rnn.Whh")),
    "array unknown": damage_arrays(lambda a: a.update(more=mx.zeros(3))),
    "other shape": damage_arrays(lambda a: a.update(hidden=mx.zeros((3, 8)))),
    "other dtype": damage_arrays(
        lambda a: a.update(hidden=a["hidden"].astype(mx.float16))
    ),
    "other format": forged(lambda r: r.update(format=2)),
    "entry missing": forged(lambda r: r.pop("step")),
    "option missing": forged(lambda r: r["options"].pop("clip")),
    "option unknown": forged(lambda r: r["options"].update(depth=2)),
    "option wrong": forged(lambda r: r["options"].update(hidden=-7)),
    "layer unknown": forged(lambda r: r["options"].update(layer="elman")),
    "layer a list": forged(lambda r: r["options"].update(layer=["rnn"])),
    "another layer": forged(lambda r: r["options"].update(layer="gru")),
    "option of a type": forged(lambda r: r["options"].update(hidden="7")),
    "options a list": forged(lambda r: r.update(options=[1])),
    "other size": forged(lambda r: r["options"].update(hidden=8)),
    "step wrong": forged(lambda r: r.update(step=3)),
    "step huge": forged(lambda r: r.update(step=10**30)),
    "vocabulary short": forged(lambda r: r.update(vocabulary="ab")),
    "vocabulary a number": forged(lambda r: r.update(vocabulary=7)),
    "heldout wrong": forged(lambda r: r.update(heldout=[[1]])),
    "text missing": forged(lambda r: r.update(text={})),
    "arrays a number": forged(lambda r: r.update(arrays=3)),
    "arrays elsewhere": forged(lambda r: r.update(arrays=f"../run/{r['arrays']}")),
    "arrays a device": damage_record(lambda r: r.update(arrays="/dev/zero")),
    "arrays another's": damage_record(lambda r: r.update(arrays="curves.png")),
    "text a number": forged(lambda r: r["text"].update(file=7)),
    "text no path": forged(lambda r: r["text"].update(file="a\0b")),
    "vocabulary unsorted": forged(lambda r: r.update(vocabulary=r["vocabulary"][::-1])),
    "vocabulary a list": forged(lambda r: r.update(vocabulary=list(r["vocabulary"]))),
    "seconds not finite": forged(lambda r: r.update(seconds=math.nan)),
    "seconds none": forged(lambda r: r.update(seconds=0)),
    "heldout huge": forged(lambda r: r.update(heldout=[[10**400, 1.0]])),
    "heldout not finite": forged(lambda r: r["heldout"][-1].__setitem__(1, math.inf)),
    "heldout empty": forged(lambda r: r.update(heldout=[])),
    "bits not finite": damage_arrays(lambda a: a.update(bits=a["bits"] * mx.nan)),
    "header negative": forged_header(shape=[-7]),
    "header wraps": forged_header(shape=[-1], data_offsets=[0, 2**64 - 4]),
    "header of many axes": forged_header(shape=[1] * 100_000 + [7]),
    "header outside": forged_header(data_offsets=[10**9, 10**9 + 28]),
    "header after 2^64": forged_header(data_offsets=[2**64 - 36, 2**64 - 8]),
    "header of another dtype": forged_header(dtype="I32"),
    "header no entry": forged_header(dtype=None, shape=None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint(kind, char_lm, train, trained, capsys):
    folder = trained
    DAMAGE[kind](folder, char_lm)
    before = None if kind == "json a folder" else files(folder)
    assert train("--resume") == 2
    assert str(folder) in error_line(capsys)
    assert char_lm.main(["generate", "--checkpoint", str(folder)]) == 2
    assert str(folder) in error_line(capsys)
    assert before is None or files(folder) == before


def test_generate(char_lm, trained, capsys):
    def generate(*arguments):
        folder = str(trained)
        status = char_lm.main(
            ["generate", "--checkpoint", folder, "--length", "80", *arguments]
        )
        assert status == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    first = generate("--seed", "5", "--temperature", "1.5")
    assert len(first) == 81 and first[-1] == "\n"
    assert generate("--seed", "5", "--temperature", "1.5") == first
    assert generate("--seed", "6", "--temperature", "1.5") != first
    greedy = generate("--temperature", "0")
    assert generate("--temperature", "0", "--seed", "9") == greedy
    assert generate("--temperature", "1e-5", "--seed", "9") == greedy
    assert generate("--temperature", "1e6") != greedy
    assert generate("--prompt", "to be")[:5] == "to be"
    assert len(generate("--prompt", "to be")) == 86
    assert generate("--length", "0", "--prompt", "to") == "to\n"


def test_a_checkpoint_from_before_there_were_layers(char_lm, trained):
    forged(lambda record: record["options"].pop("layer"))(trained, char_lm)
    run = char_lm.Run.load(trained)
    assert run.options.layer == "rnn" and run.step == 100


@pytest.mark.parametrize("layer", LAYERS)
def test_generate_carries_the_state(layer, char_lm, train, tmp_path):
    """A step at a time gives what the whole text gives at once."""
    assert train("--steps", 8, "--quiet", "--layer", layer) == 0
    run = char_lm.Run.load(tmp_path / "run")
    written = "".join(char_lm.continuation(run.model, run.vocabulary, "to", 30, 0, 0))
    whole = "to" + written
    ids = mx.array([[run.vocabulary.index(c) for c in whole]])
    likeliest = mx.argmax(run.model(ids)[0], axis=-1)[0].tolist()
    assert "".join(run.vocabulary[i] for i in likeliest[1:-1]) == written


@pytest.mark.parametrize("prompt", ["€", "to\x1b", "\udcff"])
def test_prompt_outside_the_vocabulary(prompt, char_lm, trained, capsys):
    arguments = ["generate", "--checkpoint", str(trained), "--prompt", prompt]
    assert char_lm.main(arguments) == 2
    assert f"U+{ord(prompt[-1]):04X}" in error_line(capsys)
    assert capsys.readouterr().out == ""


def test_step_times_refuses_different_results(char_lm, trained, text):
    run = char_lm.Run.load(trained)
    ids = char_lm.Text(text.read_text(encoding="utf-8"), run.options).training
    times = char_lm.step_times(run, ids, 2)
    assert len(times) == 3 and min(times.values()) > 0

    class Wrong(nn.RNN):
        def __call__(self, x, hidden=None):
            return super().__call__(x * 2, hidden)

    with pytest.MonkeyPatch.context() as patch:
        wrong = char_lm.LAYERS["rnn"]._replace(upstream=Wrong)
        patch.setitem(char_lm.LAYERS, "rnn", wrong)
        with pytest.raises(char_lm.Failure, match="different losses"):
            char_lm.step_times(run, ids, 1)
