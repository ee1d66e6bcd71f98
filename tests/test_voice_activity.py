"""`examples/voice_activity.py`: a published model, equal to ONNX Runtime's run."""

import importlib.util
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tolerances import PUBLISHED

pytest.importorskip("matplotlib", reason="the example draws with it")
pytest.importorskip("scipy", reason="the example resamples with it")
onnx = pytest.importorskip("onnx", reason="the example reads the weights with it")
SCRIPT = Path(__file__).parents[1] / "examples" / "voice_activity.py"
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="silero-vad has the weights"
)


@pytest.fixture(scope="module")
def vad():
    spec = importlib.util.spec_from_file_location("voice_activity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(vad):
    return vad.package() / "silero_vad_16k_op15.onnx"


def sounds(rng):
    """Chunks of noise of every loudness, silence, clicks, and vowels with gaps."""
    t = np.arange(40 * 512) / 16_000
    pitch = 120 * t + 5 * np.sin(2 * np.pi * 1.5 * t)  # in turns
    formants = [(700, 130), (1200, 160), (2600, 200)]  # of an a, in Hz
    voice = sum(
        np.exp(-(((120 * k - at) / width) ** 2)) * np.sin(2 * np.pi * k * pitch)
        for k in range(1, 30)
        for at, width in formants
    )
    loudness = np.repeat(10.0 ** rng.uniform(-5, 0.5, 40), 512)
    clicks = np.where(rng.random(t.shape) < 0.01, 1.0, 0.0)
    pieces = [
        loudness * rng.standard_normal(t.shape),
        np.zeros(5 * 512),
        0.2 * voice * (np.sin(2 * np.pi * 3 * t) > 0),
        clicks,
    ]
    return np.concatenate(pieces).astype(np.float32).reshape(-1, 512)


@needs_model
@pytest.mark.parametrize("file", ["silero_vad_16k_op15.onnx", "silero_vad.onnx"])
def test_equal_to_onnx_runtime(file, vad, weights, rng):
    """Chunk by chunk and all at once; a wide range of probabilities."""
    runtime = pytest.importorskip("onnxruntime")
    model, chunks = vad.load(weights), sounds(rng)
    session = runtime.InferenceSession(
        vad.package() / file, providers=["CPUExecutionProvider"]
    )
    state, before, expected = np.zeros((2, 1, 128), np.float32), np.zeros(64), []
    for chunk in chunks:
        x = np.concatenate([before, chunk]).astype(np.float32)[None]
        inputs = {"input": x, "state": state, "sr": np.array(16_000)}
        probability, state = session.run(None, inputs)
        expected.append(probability.item())
        before = chunk[-64:]
    assert min(expected) < 0.01 and max(expected) > 0.5
    stream = vad.Stream(model)
    ours = [stream(chunk) for chunk in chunks]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=PUBLISHED)
    whole, _ = vad.at_once(model, chunks)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=PUBLISHED)


def test_convolution_is_mlx_own(vad, rng):
    for width, stride, padding, bias in [
        (3, 1, 1, True),
        (4, 2, 0, False),
        (1, 1, 0, 1),
    ]:
        ours = vad.Convolution(5, 7, width, stride, padding, bias)
        x = mx.array(rng.standard_normal((2, 9, 5), np.float32))
        weight = ours.weight.reshape(7, width, 5)
        expected = mx.conv1d(x, weight, stride, padding)
        if bias:
            expected = expected + ours.bias
        assert ours(x).shape == expected.shape
        assert mx.allclose(ours(x), expected, rtol=PUBLISHED, atol=PUBLISHED)


@pytest.mark.parametrize(
    ("chunks", "found"),
    [
        ([], []),
        ([0.4] * 20, []),
        # 8 chunks are 0.256 s, 7 too short; margins of 0.03 s, within the sound.
        ([0.9] * 8 + [0.0] * 12, [(0, 0.286)]),
        ([0.9] * 7 + [0.0] * 13, []),
        ([0.0] * 5 + [0.9] * 15, [(0.13, 0.64)]),
        # Between the two thresholds speech goes on, and does not begin.
        ([0.4] * 5 + [0.5] + [0.4] * 9 + [0.3] * 5, [(0.13, 0.51)]),
        # 3 quiet chunks are a gap of 0.096 s, 4 end it.
        ([0.9] * 8 + [0.1] * 3 + [0.9] * 9, [(0, 0.64)]),
        ([0.9] * 8 + [0.1] * 4 + [0.9] * 8, [(0, 0.286), (0.354, 0.64)]),
        ([0.9] * 18 + [0.1] * 2, [(0, 0.606)]),
    ],
)
def test_segments(chunks, found, vad):
    segments = vad.segments_of(np.array(chunks), 0.032 * len(chunks))
    assert len(segments) == len(found)
    assert np.allclose(segments, found, rtol=0, atol=1e-9)


def save(path, samples, rate=16_000, channels=1, width=2):
    """Samples, or their bytes, as a WAV file."""
    data = samples if width != 2 else samples.astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths_of_samples(width, vad, rng, tmp_path):
    values = rng.integers(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1), 1000)
    stored = values + 128 if width == 1 else values
    data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in stored)
    samples = values if width == 2 else data
    path = save(tmp_path / "sound.wav", samples, width=width)
    expected = values / 2.0 ** (8 * width - 1)
    np.testing.assert_array_equal(vad.read_wav(path), expected)


def test_channels_and_rates(vad, tmp_path):
    t = np.arange(44_100) / 44_100
    left, right = 8000 * np.sin(2 * np.pi * 440 * t), 4000 * np.sin(2 * np.pi * 220 * t)
    stereo = np.stack([left, right], axis=-1)
    path = save(tmp_path / "sound.wav", stereo, 44_100, 2)
    sound = vad.read_wav(path)
    assert sound.shape == (16_000,)
    at = np.arange(16_000) / 16_000
    expected = 4000 * np.sin(2 * np.pi * 440 * at) + 2000 * np.sin(2 * np.pi * 220 * at)
    middle = slice(200, -200)  # a filter sees silence beyond the ends
    assert np.abs(sound - expected / 2**15)[middle].max() < 1e-3


def test_a_recording_that_was_cut_short(vad, rng, tmp_path):
    path = save(tmp_path / "sound.wav", rng.integers(-9, 9, 1000))
    path.write_bytes(path.read_bytes()[:-401])
    assert vad.read_wav(path).shape == (799,)


@needs_model
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a WAV file of PCM samples: it ends too early"),
        (
            b"a text, and no sound at all\n",
            "is not a WAV file of PCM samples: file does",
        ),
        (np.zeros(0), "has no samples"),
        ({"rate": 4000}, "has 4000 samples a second: must be from 8000 to 384000"),
        (None, "No such file or directory"),
        ("float", "is not a WAV file of PCM samples: unknown format: 3"),
    ],
)
def test_sounds_that_cannot_be_read(content, words, vad, tmp_path, capsys):
    path = tmp_path / "sound.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        options = content if isinstance(content, dict) else {}
        samples = content if isinstance(content, np.ndarray) else np.zeros(100)
        save(path, samples, **options)
    if isinstance(content, str):
        data = bytearray(path.read_bytes())
        data[20] = 3  # the format's number
        path.write_bytes(data)
    assert vad.main([str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("voice_activity: error: ") and words in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a text", "is not the model of 16,000 Hz"),
        (b"", "is not the model of 16,000 Hz: "),
        (None, "No such file or directory"),
    ],
)
def test_weights_that_cannot_be_read(content, words, vad, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    assert vad.main(["--weights", str(path), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and str(path) in line


@needs_model
@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.decoder.rnn.weight_hh", (8, 2), "(8, 2) and (512, 128)"),
        ("model.encoder.2.reparam_conv.weight", (64, 64, 5), "shape"),
        ("model.decoder.decoder.2.bias", None, "no 'model.decoder.decoder.2.bias'"),
    ],
)
def test_weights_of_another_model(name, shape, words, vad, weights, tmp_path, capsys):
    model = onnx.load(weights)
    (tensor,) = [a for a in model.graph.initializer if a.name == name]
    model.graph.initializer.remove(tensor)
    if shape:
        other = onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
        model.graph.initializer.append(other)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert vad.main(["--weights", str(path), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not the model of 16,000 Hz" in line and words in line


def test_without_the_package(vad, monkeypatch, capsys):
    monkeypatch.setattr(vad.importlib.util, "find_spec", lambda _: None)
    assert vad.main([]) == 2
    assert capsys.readouterr().err == (
        "voice_activity: error: silero-vad is not installed "
        "(pip install --no-deps silero-vad)\n"
    )


@needs_model
def test_without_espeak(vad, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vad.main(["--out", str(tmp_path)]) == 2
    assert "espeak-ng is not installed (or give a WAV file)" in capsys.readouterr().err


@needs_model
def test_a_probability_that_differs_fails(vad, monkeypatch, capsys, tmp_path, rng):
    pytest.importorskip("onnxruntime")
    call = vad.Original.__call__
    monkeypatch.setattr(
        vad.Original, "__call__", lambda self, chunk: call(self, chunk) + 2e-4
    )
    path = save(tmp_path / "sound.wav", rng.integers(-99, 99, 3000))
    assert vad.main([str(path), "--out", str(tmp_path)]) == 2
    assert "from ONNX Runtime's: must be 0.0001" in capsys.readouterr().err


@needs_model
@pytest.mark.parametrize("alone", [False, True])
def test_a_run(alone, vad, rng, tmp_path, capsys, monkeypatch):
    """Of a WAV file, with ONNX Runtime beside it and without."""
    if alone:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            vad.importlib.util,
            "find_spec",
            lambda name: None if name == "onnxruntime" else find(name),
        )
    elif importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    chunks = sounds(rng)
    path = save(tmp_path / "sound.wav", 2**15 * np.clip(chunks.ravel() / 2, -1, 0.99))
    assert vad.main([str(path), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"{len(chunks)} chunks of 32 ms" in out
    wanted = "is not installed: nothing" if alone else "differs by at most"
    assert f"ONNX Runtime {wanted}" in out and ("ONNX Runtime, as it" in out) != alone
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["segments.csv", "voice_activity.png"]
    assert (tmp_path / "out" / "voice_activity.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "out" / "segments.csv").read_text().splitlines()
    assert lines[0] == "begin,end"
    assert f"Segments of speech: {len(lines) - 1}\n" in out


@needs_model
@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng speaks")
def test_speech_is_found(vad, tmp_path, capsys):
    assert vad.main(["--say", "One two three.", "Yes.", "--out", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert "Segments of speech: 2" in out and (tmp_path / "speech.wav").exists()
    (share,) = [line.split()[-1] for line in out.splitlines() if "spoken" in line]
    assert float(share.rstrip("%")) > 90
    sound, speech = vad.speak(["Yes."], 0)
    again, _ = vad.speak(["Yes."], 0)
    assert np.array_equal(sound, again) and sound.shape == speech.shape
    assert vad.main(["--say", " ", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "espeak-ng" in line and "' '" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], "--seed must be from 0 to 2**32 - 1, not -1"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["sound.wav", "--say", "x"], "--say is for no file"),
        (["--what"], "--what"),
    ],
)
def test_wrong_arguments(arguments, words, vad, capsys):
    assert vad.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("voice_activity: error: ") and words in line


@needs_model
def test_control_c(vad, monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(vad, "speak", interrupted)
    assert vad.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "voice_activity: interrupted\n"


def test_help_as_a_program():
    shown = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0 and "--say" in shown.stdout and not shown.stderr
