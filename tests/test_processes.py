"""Processes: forked, spawned, stopped and given less of the machine.

Each test is a program of its own that is killed if it does not end. A child that would
wait for ever is ended by an alarm, which its exit status shows. No time decides a test
otherwise, but for the slowdown by a CPU quota, whose bound is far off.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scripts
from mlx_recurrent import _native

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

PRELUDE = """
import multiprocessing, os, signal, sys, threading, time
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import mlx_recurrent
from mlx_recurrent import RNN

mx.set_default_device(mx.cpu)

def layer_of(**options):
    mx.random.seed(1)
    layer = RNN(16, 256, **options)
    mx.eval(layer.parameters())
    return layer

X = np.random.default_rng(0).standard_normal((4, 60, 16)).astype("f4")

def everything(layer, x=None):
    # Forward, gradients, a stream and a step of training; all bits.
    x = mx.array(X) if x is None else x
    loss = nn.value_and_grad(layer, lambda m: (m(x) ** 2).mean())
    optimizer = optim.SGD(learning_rate=0.1)
    before = layer.parameters()
    value, gradients = loss(layer)
    stream = layer.stream()(X[0])
    optimizer.update(layer, gradients)
    after = layer(x)
    mx.eval(value, gradients, after)
    layer.update(before)
    arrays = [value, *(gradients[name] for name in ("Wxh", "Whh", "bias")), after]
    return [stream, *map(np.array, arrays)]

def same(a, b):
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status

def own_stream():
    mx.set_default_stream(mx.new_stream(mx.cpu))

STREAM = "mx.set_default_stream(mx.new_stream(mx.cpu))"

def raises(work, words=STREAM):
    try:
        work()
    except RuntimeError as error:
        assert "forked" in str(error) and words in str(error), error
    else:
        raise AssertionError("nothing was raised")
"""


def run(code, prelude=PRELUDE):
    scripts.run("-c", prelude + code)


@needs_fork
def test_fork_before_first_use():
    """Graphs may be there: MLX starts its threads at the first evaluation."""
    run("""
mx.random.seed(1)
layer = RNN(16, 256)  # not evaluated
layer(mx.array(X))
in_child(lambda: everything(layer))
expected = everything(layer)
same(everything(layer_of()), expected)
print("done")
""")


@needs_fork
def test_stream_in_a_forked_child():
    """A child makes streams and goes on with them; it needs no thread of MLX's."""
    run("""
kinds = {
    "plain": layer_of(),
    "leaky": layer_of(leak=mx.full((256,), 0.5)),
    "evenly leaky": layer_of(leak=0.3, zoneout=0.1),
    "that learns its state": layer_of(learn_hidden=True),
    "traced": layer_of(nonlinearity=nn.silu),
}
half = layer_of()
half.set_dtype(mx.bfloat16)
mx.eval(half.parameters())
kinds["half"] = half
streams = {name: layer.stream() for name, layer in kinds.items()}
expected = {name: stream(X[0]) for name, stream in streams.items()}
everything(kinds["plain"])

def child():
    for name, stream in streams.items():
        stream.reset()
        assert np.array_equal(stream(X[0]), expected[name]), name
        if name != "traced":
            assert np.array_equal(kinds[name].stream()(X[0]), expected[name]), name
    x = mx.array(X[0])
    streams["plain"].reset()
    assert np.array_equal(streams["plain"](x), expected["plain"])
    # Another thread of the parent may have held the lock of MLX's allocator.
    mx.reset_peak_memory()
    for name in ("plain", "leaky"):
        kinds[name].stream()(X[0])
    raises(lambda: kinds["plain"](x))
    assert mx.get_peak_memory() == 0

in_child(child)
in_child(lambda: in_child(child))
print("done")
""")


@needs_fork
def test_forked_child_is_told_what_to_do():
    """Where MLX would wait for ever, an error says so at the call."""
    run("""
layer = layer_of()
lazy, softmax = RNN(16, 256), layer_of(nonlinearity=nn.softmax)
x = mx.array(X)
expected = everything(layer)
pending = x + 1
lengths = mx.array([3] * len(X)) + 0

def child():
    raises(lambda: layer(x))
    raises(lambda: layer.step(x[:, 0]))
    raises(lambda: mx.grad(lambda x: layer(x).sum())(x))
    raises(lambda: mlx_recurrent.scan(x[..., :4], layer.Whh[:4, :4]))
    raises(lambda: mlx_recurrent.matmul(x, layer.Wxh))
    raises(lambda: softmax(x))
    raises(lambda: layer(x, lengths=lengths))
    raises(lambda: RNN(16, 256, leak=mx.full((256,), 0.5)))
    raises(lambda: mlx_recurrent.init.orthogonal_(layer))
    raises(lambda: lazy.stream())
    raises(lambda: RNN(16, 256, leak=0.5).stream())
    raises(lambda: layer.stream()(pending[0]))
    own_stream()
    raises(lambda: layer(pending))
    raises(lambda: layer(x, lengths=lengths))
    raises(lambda: lazy(x))
    same(everything(layer), expected)

in_child(child)
same(everything(layer), expected)
print("done")
""")


@needs_fork
def test_forked_child_with_a_stream_of_its_own():
    """The cure: everything works, compiled functions and children's children too."""
    run("""
layer = layer_of()
expected = everything(layer)
x = mx.array(X)
compiled = mx.compile(lambda x: mx.sin(layer(x)).sum())
total = compiled(x).item()

def child(deeper):
    own_stream()
    same(everything(layer), expected)
    assert compiled(x).item() == total
    with mx.stream(mx.new_stream(mx.cpu)):
        same(everything(layer), expected)
    if deeper:
        def grandchild():
            raises(lambda: layer(x))
            child(False)
        in_child(grandchild)

in_child(lambda: child(True))
same(everything(layer), expected)
print("done")
""")


# The parent has used a layer, and written what the children read. `network` is like
# `layer` in its weights.
FILES = """
from mlx_recurrent import Bidirectional, Linear, Stack, interop
from mlx_recurrent.interop import weights

layer = layer_of()
expected = everything(layer)
x = mx.array(X)
values = np.array(layer(x))
for file in ("w.npz", "w.safetensors"):
    layer.save_weights(file)
np.save("x.npy", X)
np.save("state.npy", np.zeros((4, 256), "f4"))

def hand_over():
    return [(name, mx.array(a)) for name, a in np.load("w.npz").items()]
"""


@needs_fork
def test_forked_child_cannot_read_files(tmp_path):
    """Once the parent has read one MLX would wait for ever; the cures work."""
    run(f"""
os.chdir({str(tmp_path)!r})
{FILES}
networks = [
    layer,
    Linear(16, 256),
    Stack([RNN(16, 8), Bidirectional(RNN(8, 8))]),
    interop.Reversed(RNN(16, 8)),
]
for k, network in enumerate(networks):
    network.save_weights(f"{{k}}.npz")
weights.write(layer, "converted.safetensors")
mx.eval(mx.load("0.npz"), [network.parameters() for network in networks])
pending, loaded = mx.load("w.npz"), mx.load("w.npz")
mx.eval(loaded)

def child():
    own_stream()
    for k, network in enumerate(networks):
        raises(lambda: network.load_weights(f"{{k}}.npz"), "numpy.load")
        raises(lambda: network.load_weights(f"{{k}}.npz", strict=False), "numpy.load")
    uses = [
        lambda: layer.load_weights("w.safetensors"),
        lambda: layer.load_weights(list(pending.items())),
        lambda: layer(mx.load("x.npy")),
        lambda: layer(mx.load("x.npy").astype(mx.float16) * 2 + 1),
        lambda: layer(x, mx.load("state.npy")),
        lambda: layer(x, lengths=mx.load("state.npy")[:, 0].astype(mx.int32)),
        lambda: layer.step(mx.load("x.npy")[:, 0]),
        lambda: layer.stream()(mx.load("x.npy")[0]),
        lambda: networks[1](mx.load("x.npy")),
        lambda: mlx_recurrent.rnn(x, pending["Wxh"], pending["Whh"]),
        lambda: mlx_recurrent.scan(x, mx.load("x.npy")[0, :16]),
        lambda: mlx_recurrent.matmul(x, pending["Wxh"]),
        lambda: mx.grad(lambda x: layer(x).sum())(mx.load("x.npy")),
        lambda: mx.vmap(layer)(mx.load("x.npy")),
        lambda: mx.vmap(networks[1])(mx.load("x.npy")),
        lambda: weights.read("converted.safetensors", weights.Unsaid()),
    ]
    for use in uses:
        raises(use, "numpy.load")
    layer.update(mx.load("w.npz"))
    of_layer = [
        lambda: layer(x),
        lambda: layer.step(x[:, 0]),
        lambda: layer.stream(),
        lambda: interop.to_flax(layer),
        lambda: mlx_recurrent.init.spectral_radius_(layer, 1),
        lambda: layer.save_weights("again.npz"),
    ]
    for use in of_layer:
        raises(use, "numpy.load")
    for cure in (list(loaded.items()), hand_over()):
        layer.load_weights(cure)
        same(everything(layer), expected)

def last():
    raises(lambda: layer.load_weights("w.npz"), "numpy.load")
    sys.exit()  # by way of MLX's end

in_child(child)
child = os.fork()
if child == 0:
    signal.alarm(100)
    last()
assert os.waitpid(child, 0)[1] == 0
print("done")
""")


@needs_fork
def test_forked_child_reads_files_where_its_parent_has_not(tmp_path):
    """Nothing is refused that MLX can do; its own child is told again."""
    run(f"""
os.chdir({str(tmp_path)!r})
{FILES}
def grandchild():
    own_stream()
    raises(lambda: layer.load_weights("w.npz"), "numpy.load")

def child():
    raises(lambda: layer(mx.load("x.npy")))
    raises(lambda: layer.save_weights("again.safetensors"))
    own_stream()
    layer.save_weights("again.safetensors")
    for file in ("w.npz", "w.safetensors"):
        layer.load_weights(file)
        same(everything(layer), expected)
        layer.update(mx.load(file))
        same([layer(mx.load("x.npy"))], [values])
    in_child(grandchild)

in_child(child)
print("done")
""")


@needs_fork
def test_pool_worker_that_loads_weights(tmp_path):
    """The error reaches the parent, and by NumPy the worker has them."""
    run(f"""
os.chdir({str(tmp_path)!r})
{FILES}
layer.load_weights("w.npz")
mx.eval(layer.parameters())

def by_mlx(row):
    return np.array(RNN(16, 256).load_weights("w.npz")(mx.array(X[row])))

def by_numpy(row):
    return np.array(RNN(16, 256).load_weights(hand_over())(mx.array(X[row])))

with multiprocessing.get_context("fork").Pool(2, own_stream) as pool:
    raises(lambda: pool.map_async(by_mlx, range(4)).get(100), "numpy.load")
    rows = pool.map_async(by_numpy, range(4)).get(100)
same([np.array(layer(mx.array(row))) for row in X], rows)
print("done")
""")


@needs_fork
def test_forked_child_inside_exporting():
    """The composed path of MLX's own operations raises as the kernels do."""
    run("""
from mlx_recurrent import Bidirectional, Linear, exporting

layers = {"plain": layer_of(), "masks": layer_of(zoneout=0.1)}
layers["softmax"] = layer_of(nonlinearity=nn.softmax)
layers["PReLU"] = layer_of(nonlinearity=nn.PReLU())
layers["leak"] = layer_of(leak=mx.full((256,), 0.5), learn_hidden=True)
layers["both"] = Bidirectional(RNN(16, 8))
layers["linear"] = Linear(16, 8)
layers["complex"] = Linear(16, 8)
layers["complex"].weight = layers["complex"].weight.astype(mx.complex64)
mx.eval([layer.parameters() for layer in layers.values()])
layer, x, z = layers["plain"], mx.array(X), mx.array(X[..., :4])
with exporting():
    expected = np.array(layer(x))
late = x + 1

def child():
    uses = [lambda layer=layer: layer(x) for layer in layers.values()]
    uses.append(lambda: layer.step(x[:, 0]))
    uses.append(lambda: layer(x[:, :0]))
    uses.append(lambda: mlx_recurrent.scan(z, layer.Whh[:4, :4]))
    uses.append(lambda: mlx_recurrent.matmul(x, layer.Wxh))
    uses.append(lambda: mx.grad(lambda x: layer(x).sum())(x))
    with exporting():
        for use in uses:
            raises(use)
        own_stream()
        mx.random.seed(1)
        raises(lambda: layer(late))
        raises(lambda: layers["linear"](late))
        mx.eval([use() for use in uses[:-4]])
        same([layer(x)], [expected])

in_child(child)
print("done")
""")


@needs_fork
def test_forked_child_that_draws_random_numbers():
    """With a stream of its own it lacks the key: the error says mx.random.seed."""
    run("""
from mlx_recurrent import Bidirectional, Linear, Stack, exporting, init

layer, x = layer_of(), mx.array(X)
dropping = layer_of(zoneout=0.1, input_dropout=0.2, recurrent_dropout=0.3)
composed = layer_of(zoneout=0.1, nonlinearity=nn.softmax)
noisy = layer_of(nonlinearity=lambda a: mx.tanh(a + mx.random.normal(a.shape)))
expected = everything(layer)
mx.random.normal((2,))  # the key after it is not computed
own = mx.random.split(mx.random.key(1))[0]

def after_many():
    for _ in range(1000):
        mx.random.normal((2,))
    return RNN(16, 8)(x)

def exported():
    with exporting():
        return dropping(x)

uses = [
    lambda: RNN(16, 8)(x),
    lambda: RNN(16, 8, learn_hidden=True).step(x[:, 0]),
    lambda: mx.array(RNN(16, 8).stream()(X[0])),
    lambda: Linear(16, 8)(x),
    lambda: Stack([RNN(16, 8), Bidirectional(RNN(8, 8))])(x),
    lambda: mlx_recurrent.accelerate(nn.RNN(16, 8))(x),
    lambda: init.orthogonal_(layer).Whh,
    lambda: layer(mx.random.normal(x.shape)),
    lambda: dropping(x),
    lambda: dropping.step(x[:, 0]),
    lambda: composed(x),
    lambda: noisy(x),
    lambda: [noisy.plan(x), noisy(x)][1],
    after_many,
    exported,
]
SEED = "Begin the child with mx.random.seed(...), beside " + STREAM

def child():
    before = layer.parameters()
    raises(uses[0])
    own_stream()
    for use in uses:
        raises(use, SEED)
    raises(lambda: layer(mx.random.normal(x.shape, key=own)), "evaluate before")
    same(everything(layer), expected)
    mx.random.seed(1)
    mx.eval([use() for use in uses])
    layer.update(before)
    same(everything(layer), expected)

in_child(child)
print("done")
""")


@needs_fork
def test_fork_while_others_compute():
    """Streams work in the child whatever MLX and the pool do at the fork.

    What makes an array of MLX's may not: a lock that another thread held in MLX's
    allocator at the fork stays locked.
    """
    run("""
layer = layer_of()
mlx_recurrent.set_num_threads(3)
expected = everything(layer)
over = threading.Event()

def busy():
    with mx.stream(mx.new_stream(mx.cpu)):
        mine, x = layer_of(), mx.array(X)
        while not over.is_set():
            mx.eval(mine(x))

workers = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for worker in workers:
    worker.start()

stream, x = layer.stream(), mx.array(X)

def child():
    assert np.array_equal(stream(X[0]), expected[0])
    assert np.array_equal(layer.stream()(X[0]), expected[0])
    raises(lambda: layer(x))

for _ in range(6):
    in_child(child)
over.set()
for worker in workers:
    worker.join()
print("done")
""")


@needs_fork
def test_fork_while_mlx_has_much_to_do():
    """A child with a stream of its own evaluates: it waits for nobody's tasks."""
    run("""
layer, x = layer_of(), mx.array(X)
large = mx.ones((3000, 3000))
expected = everything(layer)
mx.eval(large)
over = threading.Event()

def busy():
    with mx.stream(mx.new_stream(mx.cpu)):
        y = large
        for _ in range(200):  # tasks of some ten ms
            y = mx.sin(y)
        mx.eval(y)

workers = [threading.Thread(target=busy) for _ in range(3)]
for worker in workers:
    worker.start()

def child():
    own_stream()
    same(everything(layer), expected)

for _ in range(5):
    in_child(child)
print("done", flush=True)
os._exit(0)
""")


@needs_fork
def test_fork_while_a_stream_runs():
    """The child is told that it cannot have it: who runs it is not there."""
    run("""
layer = layer_of()
stream, x = layer.stream(), np.ones((20000, 16), "f4")
out = np.empty((20000, 256), "f4")
started = threading.Event()

def work():
    while True:
        started.set()
        stream(x, out=out)

threading.Thread(target=work, daemon=True).start()
started.wait()

def is_refused(use):
    try:
        use()
    except RuntimeError as error:
        assert "make a new stream" in str(error), error
        return True

def child():
    uses = [lambda: stream(x[0]), lambda: stream.state, stream.reset]
    refused = [use for use in uses if is_refused(use)]
    assert np.array_equal(layer.stream()(X[0]), layer.stream()(X[0]))
    os._exit(len(refused))

statuses = set()
for _ in range(40):  # until it runs at the fork
    if os.fork() == 0:
        signal.alarm(100)
        child()
    statuses.add(os.waitstatus_to_exitcode(os.wait()[1]))
    if 3 in statuses:
        break
assert 3 in statuses and statuses <= {0, 3}, statuses
print("done", flush=True)
os._exit(0)
""")


POOL = """
def prepare():
    if METHOD == "fork":
        own_stream()

def work(row):
    layer = layer_of()
    return everything(layer, mx.array(X[row : row + 1]))

if __name__ == "__main__":
    mlx_recurrent.set_num_threads(2)
    expected = [work(row) for row in range(4)]
    context = multiprocessing.get_context(METHOD)
    with context.Pool(2, prepare) as pool:
        results = pool.map_async(work, range(4)).get(200)
    for a, b in zip(results, expected, strict=True):
        same(a, b)
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pool(tmp_path, method):
    """After first use in the parent; a forked worker gets a stream of its own."""
    if method != "spawn" and not hasattr(os, "fork"):
        pytest.skip("no fork")
    file = tmp_path / "pool.py"
    file.write_text(f"{PRELUDE}\nMETHOD = {method!r}\n{POOL}")
    scripts.run(file)


def test_python_ends_while_a_stream_runs():
    """A daemon thread in the middle of a large chunk, where Python ends."""
    run("""
layer, x = layer_of(), np.ones((4000, 16), "f4")
started = threading.Barrier(3)

def work():
    stream = layer.stream()
    stream(x)
    started.wait()
    while True:
        stream(x)

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
started.wait()

class Last:
    def __init__(self, stream):
        self.stream = stream

    def __del__(self, write=os.write):
        self.stream.state  # of a stream that one of them has, or had
        write(1, b"done\\n")

shared = layer.stream()

def share():
    while True:
        shared(x)

threading.Thread(target=share, daemon=True).start()
sys.last = Last(shared)
""")


def test_python_ends_after_threads_that_read_a_callable():
    """MLX frees what it keeps of a thread's random numbers after Python's join."""
    code = """
traced, dropping = layer_of(nonlinearity=nn.silu), layer_of(zoneout=0.5)
x = mx.array(X)

def work():
    with mx.stream(mx.new_stream(mx.cpu)):
        mx.eval(RNN(2, 3).parameters(), traced(x), dropping(x))

for _ in range(3):
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
print("done")
"""
    for _ in range(3):
        run(code)


@needs_fork
def test_stopped_and_continued():
    """SIGSTOP in the middle of calls, again and again."""
    code = """
mlx_recurrent.set_num_threads(3)
layer = layer_of()
expected = everything(layer)
print("ready", flush=True)
for _ in range(60):
    same(everything(layer), expected)
print("done", flush=True)
"""
    # The one who stops it is a process beside it.
    run(f"""
import subprocess
work = subprocess.Popen(
    [sys.executable, "-c", {PRELUDE + code!r}], stdout=subprocess.PIPE, text=True
)
assert work.stdout.readline() == "ready\\n"
signal.alarm(280)
while work.poll() is None:
    work.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, work.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    work.send_signal(signal.SIGCONT)
    threading.Event().wait(0.005)
assert work.returncode == 0 and work.stdout.read() == "done\\n"
print("done")
""")


@pytest.fixture
def enter():
    """A function of a number of cores: a program's first line, which limits it to them.

    The line moves the process into a control group inside of one that has the quota.
    """
    groups = Path("/sys/fs/cgroup")
    second = (groups / "cgroup.controllers").exists()  # version 2 of control groups
    outer = groups / ("" if second else "cpu") / f"mlx-recurrent-{os.getpid()}"
    inner = outer / "inner"

    def limit(cores):
        quota, period = str(round(cores * 100_000)), "100000"
        if second:
            (outer / "cpu.max").write_text(f"{quota} {period}")
        else:
            (outer / "cpu.cfs_period_us").write_text(period)
            (outer / "cpu.cfs_quota_us").write_text(quota)
        file = str(inner / "cgroup.procs")
        return f"import os; open({file!r}, 'w').write(str(os.getpid()))\n"

    try:
        try:
            outer.mkdir()
            inner.mkdir()
            (inner / "cgroup.procs").read_text()  # a control group, not any folder
            subprocess.run([sys.executable, "-c", limit(1.5)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no CPU quota can be set here: {error}")
        yield limit
    finally:
        for group in (inner, outer):
            if group.exists():
                group.rmdir()


QUOTA = """
from mlx_recurrent import _native
threads = mlx_recurrent.get_num_threads()
mlx_recurrent.set_num_threads(2)
layer = layer_of()

def work():
    # By units of each step, and by rows of the batch.
    x = np.concatenate([X] * 4)
    return [*everything(layer), *everything(layer, mx.array(x))]

arrays = work()
wall, processor = time.perf_counter(), time.process_time()
for _ in range(30):
    same(work(), arrays)
wall, processor = time.perf_counter() - wall, time.process_time() - processor
np.savez(FILE, *arrays, usable=_native.usable_cores(), threads=threads, wall=wall,
         processor=processor, quota=_native.cpu_quota() or 0)
print("done")
"""


def test_quota(tmp_path, enter):
    """The same bits as without one, and no slower than the quota makes everything.

    Barriers must not spend the little time that there is: two threads, of which each is
    stopped for most of every period.
    """

    def worked(first_line=""):
        file = tmp_path / "results.npz"
        run(f"FILE = {str(file)!r}\n{QUOTA}", first_line + PRELUDE)
        with np.load(file) as results:
            return dict(results)

    free, limited = worked(), worked(enter(0.2))
    assert limited["usable"] == limited["threads"] == 1
    assert limited["quota"] == 0.2
    names = [name for name in free if name.startswith("arr_")]
    assert len(names) == 12
    for name in names:
        assert np.array_equal(free[name], limited[name]), name
    # On a busy machine the work had to wait for a core without a quota too.
    explained = max(free["processor"], free["wall"]) / 0.2
    print(f"{free['wall']:.2f} s, with the quota {limited['wall']:.2f} s")
    print(f"{free['processor']:.2f} and {limited['processor']:.2f} s of processor time")
    assert limited["wall"] < 3 * explained + 1


@pytest.mark.parametrize("cores", [0.2, 1, 1.5])
def test_threads_of_a_quota(enter, cores):
    """As many as the quota has begun; the doctor says why."""
    around = _native.cpu_quota()  # of this process
    least = cores if around is None else min(cores, around)
    run(
        f"""
import contextlib, io, math
from mlx_recurrent import _native
from mlx_recurrent.command import doctor
usable = min(_native.cores_by_kind()[0], math.ceil({least}))
assert _native.usable_cores() == mlx_recurrent.get_num_threads() == usable
assert _native.cpu_quota() == {least}
found, text = doctor.Findings(), io.StringIO()
with contextlib.redirect_stdout(text):
    doctor.cores(found, _native)
assert "{least} by the control group's quota" in text.getvalue(), text.getvalue()
if {least} < os.cpu_count():
    said = f"The control group allows {least} of {{os.cpu_count()}} cores"
    assert any(said in sentence for sentence in found.slow), found.slow
print("done")
""",
        enter(cores) + PRELUDE,
    )
