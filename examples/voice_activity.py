"""Where somebody speaks: a published voice activity model, chunk by chunk.

    .venv/bin/pip install --no-deps silero-vad
    .venv/bin/pip install onnx onnxruntime
    .venv/bin/python examples/voice_activity.py              # espeak-ng speaks
    .venv/bin/python examples/voice_activity.py talk.wav

The model is Silero VAD (Silero Team, MIT licence), whose weights come with its package
`silero-vad`, in ONNX files. Convolutions see 32 ms of sound and 4 ms before it, an LSTM
remembers, and a logistic unit says how likely somebody speaks:

    s = |STFT(x_t)|,  v_t = conv(conv(conv(conv(s)))),  each followed by relu
    h_t, c_t = LSTM(v_t, h_{t-1}, c_{t-1}),  p_t = sigmoid(w relu(h_t) + b)

The sound is read as it would come from a microphone: each chunk through the
convolutions, in MLX's graph, and through `layer.stream`. ONNX Runtime, where it is
installed, runs the original on the same chunks, in turn: the example fails if a
probability differs by more than 1e-4.

Without a WAV file, espeak-ng says some sentences with pauses between and noise below
them, so that it is known when there is speech. The folder `--out` receives
`segments.csv`, the picture `voice_activity.png`, and `speech.wav` where one was made.

Exit status: 0, 2 for an error (one line on stderr) and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

try:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    import onnx
    from google.protobuf.message import DecodeError
    from matplotlib.figure import Figure
    from scipy.signal import resample_poly

    from mlx_recurrent import LSTM, Linear
    from mlx_recurrent.interop import torch_weights
except ImportError as missing:
    print(
        f"voice_activity: error: {missing} "
        "(pip install 'mlx-recurrent[cpu,examples,interop]')",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
except KeyboardInterrupt:
    print("voice_activity: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

RATE, CHUNK, BEFORE = 16_000, 512, 64  # samples: of a second, of a chunk, seen again
NEAR = 1e-4  # how far a probability may be from ONNX Runtime's
START, END = 0.5, 0.35  # speech begins at a probability of START and ends below END
SHORTEST, PAUSE, MARGIN = 0.25, 0.1, 0.03  # s: of speech, of silence, and around speech
LONGEST = 3600  # s of sound
SLOWEST, FASTEST = 8000, 384_000  # Hz
SENTENCES = [
    "A recurrent network carries a state from each step to the next.",
    "It hears thirty two milliseconds at a time.",
    "Yes.",
    "Between two sentences there is nothing but noise, and it should say so.",
]
NOISE = 25.0  # dB below the speech
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"


class Failure(Exception):
    """What the user can mend: shown as one line, exit status 2."""


class Convolution(Linear):
    """A convolution over time, ``(N, L, C) -> (N, L', O)``, as one product of windows.

    It computes what :class:`mlx.nn.Conv1d` does; one product is faster on a CPU.

    Args:
        inputs (int): Features of the input, ``C``.
        outputs (int): Features of the output, ``O``.
        width (int): Steps of a window.
        stride (int, optional): Steps from one window to the next. Default: ``1``.
        padding (int, optional): Zeros on either side. Default: ``0``.
        bias (bool, optional): Whether to have a bias. Default: ``True``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__(width * inputs, outputs, bias)
        self.width, self.stride, self.padding = width, stride, padding

    def __call__(self, x: mx.array) -> mx.array:
        if self.padding:
            x = mx.pad(x, [(0, 0), (self.padding, self.padding), (0, 0)])
        N, L, C = x.shape
        shape = N, (L - self.width) // self.stride + 1, self.width * C
        return super().__call__(mx.as_strided(x, shape, (L * C, self.stride * C, 1)))


class VoiceActivity(nn.Module):
    """Silero VAD for sound of 16,000 samples a second."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = Convolution(1, 258, 256, stride=128, bias=False)
        self.encoder = [
            Convolution(129, 128, 3, padding=1),
            Convolution(128, 64, 3, stride=2, padding=1),
            Convolution(64, 64, 3, stride=2, padding=1),
            Convolution(64, 128, 3, padding=1),
        ]
        self.rnn = LSTM(128, 128)
        self.head = Linear(128, 1)

    def features(self, x: mx.array) -> mx.array:
        """What the LSTM reads, ``(N, 128)``, of ``N`` chunks with what was before."""
        x = mx.concatenate([x, x[:, -2 : -2 - BEFORE : -1]], axis=1)  # mirrored
        wave = self.stft(x[..., None])
        x = mx.sqrt(wave[..., :129].square() + wave[..., 129:].square())
        for convolution in self.encoder:
            x = nn.relu(convolution(x))
        return x[:, 0]

    def __call__(self, x: mx.array) -> mx.array:
        """Probabilities ``(L,)`` of a whole sound ``(L, BEFORE + CHUNK)`` at once."""
        hidden, _ = self.rnn(self.features(x))
        return mx.sigmoid(self.head(nn.relu(hidden)))[..., 0]

    def sanitize(self, weights: dict[str, np.ndarray]) -> dict[str, mx.array]:
        """The weights of the published file by the names here.

        PyTorch has a convolution's weights as ``(O, C, width)``.
        """
        own = {
            f"rnn.{name}": a
            for name, a in torch_weights(weights, self.rnn, "model.decoder.rnn").items()
        }
        names = {
            "model.stft.forward_basis_buffer": "stft.weight",
            "model.decoder.decoder.2.weight": "head.weight",
            "model.decoder.decoder.2.bias": "head.bias",
        }
        for i in range(len(self.encoder)):
            for kind in ("weight", "bias"):
                there = f"model.encoder.{i}.reparam_conv.{kind}"
                names[there] = f"encoder.{i}.{kind}"
        for there, here in names.items():
            a = mx.array(weights[there])
            own[here] = a if a.ndim == 1 else a.swapaxes(1, 2).reshape(len(a), -1)
        return own


def package() -> Path:
    """The folder of the package's models, without importing what needs PyTorch."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise Failure("silero-vad is not installed (pip install --no-deps silero-vad)")
    return Path(found.submodule_search_locations[0]) / "data"


def load(path: Path) -> VoiceActivity:
    """The model with the weights of an ONNX file. `Failure` says what does not fit."""
    model = VoiceActivity()
    try:
        # Of the package's files, this one has its weights by PyTorch's names.
        graph = onnx.load(path, load_external_data=False).graph
        held = {a.name: onnx.numpy_helper.to_array(a) for a in graph.initializer}
        model.load_weights(list(model.sanitize(held).items()))
    except KeyError as error:
        raise Failure(f"{path} is not the model of 16,000 Hz: no {error}") from None
    except (DecodeError, ValueError, TypeError) as error:
        raise Failure(f"{path} is not the model of 16,000 Hz: {error}") from None
    mx.eval(model.parameters())
    return model


class Stream:
    """The model in real time: a chunk in, a probability out.

    Args:
        model (VoiceActivity): The model.
    """

    def __init__(self, model: VoiceActivity):
        self.features, self.rnn = mx.compile(model.features), model.rnn.stream()
        self.weight = np.array(model.head.weight)[0]
        self.bias = np.array(model.head.bias)[0]
        self.seen = np.zeros((1, BEFORE + CHUNK), np.float32)
        mx.eval(self.features(mx.array(self.seen)))  # the first call compiles

    def __call__(self, chunk: np.ndarray) -> float:
        """How likely somebody speaks in a chunk ``(CHUNK,)``."""
        self.seen[0, :BEFORE] = self.seen[0, CHUNK:]
        self.seen[0, BEFORE:] = chunk
        features = np.array(self.features(mx.array(self.seen)))
        hidden = self.rnn(features[0])
        return 1 / (1 + math.exp(-(self.weight @ np.maximum(hidden, 0) + self.bias)))


class Original:
    """The same in ONNX Runtime, on one core as the package runs it."""

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.seen = np.zeros((1, BEFORE + CHUNK), np.float32)
        self.state, self.rate = np.zeros((2, 1, 128), np.float32), np.array(RATE)

    def __call__(self, chunk: np.ndarray) -> float:
        self.seen[0, :BEFORE] = self.seen[0, CHUNK:]
        self.seen[0, BEFORE:] = chunk
        inputs = {"input": self.seen, "state": self.state, "sr": self.rate}
        probability, self.state = self.session.run(None, inputs)
        return float(probability[0, 0])


def read_wav(path: Path) -> np.ndarray:
    """Sound ``(T,)`` of 16,000 samples a second, the mean of its channels."""
    try:
        with wave.open(str(path)) as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            rate, frames = file.getframerate(), file.getnframes()
            if not SLOWEST <= rate <= FASTEST:
                raise Failure(
                    f"{path} has {rate} samples a second: must be from {SLOWEST} to "
                    f"{FASTEST}"
                )
            # One that was cut short has fewer frames than it says.
            content = file.readframes(min(frames, LONGEST * rate + 1))
    except (wave.Error, EOFError, RuntimeError) as error:
        reason = str(error) or "it ends too early"
        raise Failure(f"{path} is not a WAV file of PCM samples: {reason}") from None
    if not 1 <= width <= 4:
        raise Failure(f"{path} has samples of {width} bytes: must be from 1 to 4")
    count = len(content) // (width * channels)
    if count == 0:
        raise Failure(f"{path} has no samples")
    if count > LONGEST * rate:
        raise Failure(f"{path} is longer than {LONGEST} s: cut it")
    raw = np.frombuffer(content, np.uint8, count * width * channels)
    left = np.zeros((count * channels, 4), np.uint8)  # aligned: any width is 32 bits
    left[:, 4 - width :] = raw.reshape(-1, width)
    if width == 1:  # the only one without a sign
        left[:, 3] ^= 0x80
    sound = left.view("<i4")[:, 0].reshape(count, channels) / 2.0**31
    common = math.gcd(RATE, rate)
    return resample_poly(sound.mean(axis=1), RATE // common, rate // common)


def write_wav(path: Path, sound: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((32767 * np.clip(sound, -1, 1)).astype("<i2").tobytes())


def speak(sentences: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences with pauses, in noise: sound ``(T,)``, and where it is speech."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise Failure("espeak-ng is not installed (or give a WAV file)")
    rng, pieces, spoken = np.random.default_rng(seed), [], []

    def add(sound: np.ndarray, speech: bool) -> None:
        pieces.append(sound)
        spoken.append(np.full(len(sound), speech))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentence.wav"
        for sentence in sentences:
            add(np.zeros(int(rng.uniform(0.8, 1.6) * RATE)), False)
            command = [program, "-w", str(path), "--", sentence]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.returncode or not path.exists():
                lines = done.stderr.strip().splitlines() or ["it wrote no file"]
                raise Failure(f"espeak-ng could not say {sentence!r}: {lines[-1]}")
            sound = read_wav(path)
            heard = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
            if not len(heard):
                raise Failure(f"espeak-ng says nothing for {sentence!r}")
            add(sound[heard[0] : heard[-1] + 1], True)
    add(np.zeros(RATE), False)
    sound, speech = np.concatenate(pieces), np.concatenate(spoken)
    loudness = np.sqrt(np.square(sound[speech]).mean())
    noise = rng.standard_normal(len(sound)) * loudness * 10 ** (-NOISE / 20)
    return 0.5 * (sound + noise) / np.abs(sound).max(), speech


def chunks_of(sound: np.ndarray) -> np.ndarray:
    """Sound as chunks ``(L, CHUNK)``, the last one filled up with silence."""
    padded = np.zeros(-(-len(sound) // CHUNK) * CHUNK, np.float32)
    padded[: len(sound)] = sound
    return padded.reshape(-1, CHUNK)


def segments_of(probabilities: np.ndarray, seconds: float) -> list[tuple[float, float]]:
    """From when to when there is speech, in seconds: with hysteresis.

    Speech begins at `START`, and ends where it stays below `END` for `PAUSE`. What is
    shorter than `SHORTEST` is dropped, the rest made longer by `MARGIN` on each side.
    """
    chunk, found = CHUNK / RATE, []
    begin: int | None = None
    quiet = 0
    for i, p in enumerate(probabilities):
        if begin is None:
            if p >= START:
                begin, quiet = i, 0
            continue
        quiet = quiet + 1 if p < END else 0
        if quiet * chunk >= PAUSE:
            found.append((begin, i + 1 - quiet))
            begin = None
    if begin is not None:
        found.append((begin, len(probabilities) - quiet))
    kept = [(a * chunk, b * chunk) for a, b in found if (b - a) * chunk >= SHORTEST]
    return [(max(0.0, a - MARGIN), min(seconds, b + MARGIN)) for a, b in kept]


def inside(segments: Sequence[tuple[float, float]], times: np.ndarray) -> np.ndarray:
    """Whether each time lies in a segment."""
    found = np.zeros(times.shape, bool)
    for begin, end in segments:
        found |= (begin <= times) & (times < end)
    return found


def listen(
    chunks: np.ndarray, ways: dict[str, Stream | Original]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Probabilities ``(L,)`` and seconds of each chunk, by way; these take turns."""
    results = {name: np.empty(len(chunks)) for name in ways}
    times = {name: np.empty(len(chunks)) for name in ways}
    for i, chunk in enumerate(chunks):
        for name, way in ways.items():
            begun = time.perf_counter()
            results[name][i] = way(chunk)
            times[name][i] = time.perf_counter() - begun
    return results, times


def at_once(model: VoiceActivity, chunks: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities of the whole sound in one call, and seconds for a chunk."""
    before = np.zeros((len(chunks), BEFORE), np.float32)
    before[1:] = chunks[:-1, -BEFORE:]
    x = mx.array(np.concatenate([before, chunks], axis=1))
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        mx.eval(probabilities := model(x))
        seconds.append(time.perf_counter() - begun)
    return np.array(probabilities), min(seconds) / len(chunks)


def draw(
    sound: np.ndarray,
    results: dict[str, np.ndarray],
    segments: list[tuple[float, float]],
    speech: np.ndarray | None,
) -> bytes:
    """Sound, segments and probabilities over time, as a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    # The highest and the lowest of each piece: more would not be seen.
    size = max(1, len(sound) // 4000)
    pieces = sound[: len(sound) // size * size].reshape(-1, size)
    at = np.arange(len(pieces)) * size / RATE
    shade = {"color": "0.35", "lw": 0.5}
    top.fill_between(at, pieces.min(axis=1), pieces.max(axis=1), **shade)
    for axes in (top, bottom):
        for i, (begin, end) in enumerate(segments):
            label = "found" if axes is top and i == 0 else None
            axes.axvspan(begin, end, color=GREEN, alpha=0.2, lw=0, label=label)
    if speech is not None:
        edges = np.flatnonzero(np.diff(speech.astype(int), prepend=0, append=0))
        low = -1.12 * np.abs(sound).max()
        for begin, end in edges.reshape(-1, 2) / RATE:
            label = "spoken" if begin == edges[0] / RATE else None
            top.plot([begin, end], [low, low], color=ORANGE, lw=3, label=label)
    middles = (np.arange(len(results["this package"])) + 0.5) * CHUNK / RATE
    bottom.axhline(START, color="0.6", lw=0.8, ls=":")
    bottom.plot(middles, results["this package"], color=BLUE, label="this package")
    if "ONNX Runtime" in results:
        style = {"color": ORANGE, "ls": "none", "marker": ".", "ms": 3}
        bottom.plot(middles, results["ONNX Runtime"], label="ONNX Runtime", **style)
    top.set(ylabel="sound")
    top.set_title("Where somebody speaks", loc="left")
    bottom.set(xlabel="seconds", ylabel="probability", ylim=(-0.05, 1.05))
    bottom.set_xlim(0, len(sound) / RATE)
    for axes in (top, bottom):
        if axes.get_legend_handles_labels()[0]:
            place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98)}
            axes.legend(frameon=False, ncols=2, borderaxespad=0, **place)
        axes.grid(alpha=0.25)
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


def report(times: dict[str, np.ndarray], whole: float) -> None:
    print(f"\n{'microseconds a chunk':30}{'median':>8}{'99 % below':>12}")
    for name, seconds in times.items():
        median, high = 1e6 * np.quantile(seconds, (0.5, 0.99))
        print(f"  {name + ', as it comes':28}{median:8.0f}{high:12.0f}")
    print(f"  {'this package, all at once':28}{1e6 * whole:8.0f}")


def run(arguments: argparse.Namespace) -> None:
    """Listens to a sound, and says when there is speech."""
    weights = arguments.weights or package() / "silero_vad_16k_op15.onnx"
    model = load(weights)
    out, speech = arguments.out, None
    out.mkdir(parents=True, exist_ok=True)
    if arguments.wav:
        name, sound = str(arguments.wav), read_wav(arguments.wav)
    else:
        name = "espeak-ng"
        sound, speech = speak(arguments.say, arguments.seed)
        write_wav(out / "speech.wav", sound)
    chunks, seconds = chunks_of(sound), len(sound) / RATE
    milliseconds = 1000 * CHUNK // RATE
    print(f"{name}: {seconds:.2f} s, {len(chunks)} chunks of {milliseconds} ms\n")

    ways: dict[str, Stream | Original] = {"this package": Stream(model)}
    if importlib.util.find_spec("onnxruntime"):
        ways["ONNX Runtime"] = Original(weights)
    results, times = listen(chunks, ways)
    ours = results["this package"]
    segments = segments_of(ours, seconds)
    for begin, end in segments:
        print(f"  {begin:8.2f} to {end:8.2f} s")
    print(f"Segments of speech: {len(segments)}")
    if speech is not None:
        chunk_times = (np.arange(len(sound)) + 0.5) / RATE
        right = (inside(segments, chunk_times) == speech).mean()
        print(f"Of the time, what was spoken or not is right for {right:.1%}")

    whole, per_chunk = at_once(model, chunks)
    report(times, per_chunk)
    print(f"\nAll at once differs by at most {np.abs(whole - ours).max():.1e}")
    if "ONNX Runtime" in results:
        furthest = np.abs(results["ONNX Runtime"] - ours).max()
        print(f"ONNX Runtime differs by at most {furthest:.1e}")
        if not furthest <= NEAR:
            raise Failure(
                f"a probability is {furthest:.1e} from ONNX Runtime's: must be {NEAR}"
            )
    else:
        print("ONNX Runtime is not installed: nothing to compare with")
    lines = ["begin,end", *(f"{begin:.3f},{end:.3f}" for begin, end in segments)]
    write(out / "segments.csv", "\n".join([*lines, ""]).encode())
    write(out / "voice_activity.png", draw(sound, results, segments, speech))
    made = ["segments.csv", "voice_activity.png"]
    if speech is not None:
        made.append("speech.wav")
    print("Files:", ", ".join(str(out / name) for name in made))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise Failure(message)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("voice_activity.py", description=__doc__, formatter_class=raw)
    add, home = parser.add_argument, Path("runs/voice_activity")
    add("wav", nargs="?", type=Path, help="PCM samples at any usual rate")
    text = "what espeak-ng says, without a file (default: four sentences)"
    add("--say", nargs="+", metavar="SENTENCE", default=SENTENCES, help=text)
    text = "seed of the pauses and the noise (default: 0)"
    add("--seed", type=int, default=0, metavar="X", help=text)
    text = "an ONNX file with the weights (default: the package's)"
    add("--weights", type=Path, metavar="FILE", help=text)
    add("--out", type=Path, metavar="DIR", default=home, help=f"(default: {home})")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.seed < 2**32:
        parser.error(f"--seed must be from 0 to 2**32 - 1, not {arguments.seed}")
    if arguments.wav and arguments.say is not SENTENCES:
        parser.error("--say is for no file")
    return arguments


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
    except subprocess.TimeoutExpired as error:
        status, message = 2, f"error: espeak-ng took more than {error.timeout:.0f} s"
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        status, message = 2, f"error: {error.strerror or error}{place}"
    print("voice_activity:", " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
