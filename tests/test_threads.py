"""Threads of the kernels and of the program: right results, and nothing hangs.

Each test is a process of its own, which may spoil its affinity and its threads and is
killed if it does not end. No time decides a test otherwise, but for the one of a bound
to a slowdown, which is generous.
"""

import os
import subprocess
import sys
import threading

import pytest

import scripts

# `check` runs a layer that the kernels share out, forward and backward, and compares
# with what one thread alone makes of the same inputs. Sums over the batch depend on
# its slices, in their last places.
PRELUDE = """
import os, signal, threading
import mlx.core as mx
import mlx_recurrent
from mlx_recurrent import RNN, get_num_threads, rnn, set_num_threads

mx.set_default_device(mx.cpu)
# By units of each step, and by rows of the batch.
CASES = [
    [0.1 * mx.random.normal(s, key=mx.random.key(i)) for i, s in enumerate(shapes)]
    for shapes in (
        [(1, 40, 64), (512, 64), (512, 512)],
        [(8, 20, 64), (256, 64), (256, 256)],
    )
]

def results(case, stream=None):
    def loss(*arrays):
        return (rnn(*arrays, stream=stream) ** 2).sum(stream=stream)
    with mx.stream(stream or mx.default_stream(mx.cpu)):
        states = rnn(*case, stream=stream)
        gradients = mx.grad(loss, [0, 1, 2])(*case)
        mx.eval(states, gradients)
    return states, gradients

def right(case, expected, stream=None):
    states, gradients = results(case, stream)
    with mx.stream(stream or mx.default_stream(mx.cpu)):
        assert mx.array_equal(states, expected[0]).item()
        for ours, theirs in zip(gradients, expected[1], strict=True):
            difference = mx.abs(ours - theirs).max() / mx.abs(theirs).max()
            assert difference.item() < 1e-5, difference.item()

threads = get_num_threads()
set_num_threads(1)
mx.eval(CASES)
EXPECTED = [results(case) for case in CASES]
set_num_threads(threads)

def check(stream=None):
    for case, expected in zip(CASES, EXPECTED, strict=True):
        right(case, expected, stream)
"""


def run(code, prelude=PRELUDE):
    scripts.run("-c", prelude + code)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 64, 1000])
def test_any_number_of_threads(threads):
    run(f"""
set_num_threads({threads})
for _ in range(3):
    check()
print("done")
""")


IN_THREADS = """
failures = []

def work():
    try:
        stream = mx.new_stream(mx.cpu)
        for _ in range(10):
            check(stream)
    except BaseException as error:
        failures.append(error)

workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers:
    worker.start()
"""


def test_layers_in_many_threads():
    run(f"""
set_num_threads(3)
{IN_THREADS}
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
""")


def test_number_of_threads_changed_during_work():
    run(f"""
{IN_THREADS}
n = 0
while any(worker.is_alive() for worker in workers):
    n += 1
    set_num_threads(1 + n % 7)
    assert 1 <= get_num_threads() <= 7
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
""")


# `together` runs each piece of work in a thread of Python's with a stream of MLX's of
# its own, all from one moment on. What it gives is compared to the bit with what the
# same work gives alone.
TOGETHER = """
import sys
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

sys.setswitchinterval(1e-5)
set_num_threads(3)
mx.random.seed(1)
LAYERS = [RNN(64, 256, nonlinearity=f) for f in (None, nn.silu, nn.softmax)]
XS = [case[0] for case in CASES]
mx.eval([layer.parameters() for layer in LAYERS], XS)

def together(*works):
    results = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def one(k):
        with mx.stream(mx.new_stream(mx.cpu)):
            barrier.wait()
            try:
                results[k] = works[k]()
            except BaseException as error:
                results[k] = error

    workers = [threading.Thread(target=one, args=[k]) for k in range(len(works))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results

def done():
    # Not by way of the interpreter's end: a thread that used a compiled function
    # (nn.silu) drops it after join() has returned, and if the interpreter ends
    # meanwhile MLX aborts.
    print("done", flush=True)
    os._exit(0)

def same(a, b):
    assert len(a) == len(b)
    for k, (x, y) in enumerate(zip(a, b)):
        assert np.array_equal(x, y), k

def forward(layer, x):
    return layer(x), mx.grad(lambda x: layer(x).square().sum())(x)

def by_weights(layer, x):
    def loss(*weights):
        return rnn(x, *weights, nonlinearity=layer.nonlinearity).square().sum()
    return mx.grad(loss, [0, 1, 2])(layer.Wxh, layer.Whh, layer.bias)

def values(function, layers=LAYERS):
    arrays = [a for layer in layers for x in XS for a in function(layer, x)]
    mx.eval(arrays)
    return [np.array(a) for a in arrays]

def train(steps=10):
    layer = RNN(64, 256)
    layer.update(LAYERS[0].parameters())
    optimizer = optim.Adam(learning_rate=1e-3)
    step = nn.value_and_grad(layer, lambda m, x: m(x).square().sum())
    losses = []
    for k in range(steps):
        loss, gradients = step(layer, XS[k % len(XS)])
        optimizer.update(layer, gradients)
        mx.eval(loss, layer.parameters(), optimizer.state)
        losses.append(loss.item())
    return [losses, *(np.array(layer[name]) for name in ("Wxh", "Whh", "bias"))]
"""


def test_layers_shared_by_threads():
    """Native, traced and composed: outputs and gradients, by the weights too."""
    run(f"""{TOGETHER}
def work():
    return [*values(forward), *values(by_weights)]

expected = work()
for results in together(*[lambda: [work() for _ in range(3)]] * 4):
    for result in results:
        same(result, expected)
done()
""")


def test_callables_read_by_threads():
    """All read the same new callables at the same time, then each one of its own."""
    run(f"""{TOGETHER}
def work(own):
    slopes = [*range(1, 9), own]
    layers = [RNN(64, 32, nonlinearity=lambda a, s=s: mx.sin(a * s)) for s in slopes]
    for layer in layers:
        layer.update({{name: LAYERS[0][name][:32, ...] for name in ("Wxh", "bias")}})
        layer.update({{"Whh": LAYERS[0].Whh[:32, :32]}})
        assert layer.plan(XS[0]).path == "traced"
    return [*values(forward, layers), *values(by_weights, layers)]

works = [lambda k=k: work(10 + k) for k in range(6)]
for result, alone in zip(together(*works), works):
    same(result, alone())
done()
""")


def test_streams_step_while_another_thread_trains():
    """The layer itself is trained: a stream has a copy of its weights."""
    run(f"""{TOGETHER}
steps = np.random.default_rng(0).standard_normal((40, 64)).astype("f4")
made = [layer.stream() for layer in LAYERS]

def stepping(stream):
    stream.reset()
    return [stream(steps[:10]), *map(stream, steps[10:])]

def training():
    results = train()
    LAYERS[0].update(dict(zip(("Wxh", "Whh", "bias"), map(mx.array, results[1:]))))
    mx.eval(LAYERS[0].parameters())
    return results

streams = [stepping(stream) for stream in made]
trained = train()
works = [lambda s=s: [stepping(s) for _ in range(20)] for s in made]
*stepped, result = together(*works, training)
same(result, trained)
for results, alone in zip(stepped, streams):
    for one in results:
        same(one, alone)
done()
""")


def test_number_of_threads_changed_while_layers_are_shared():
    """States keep their bits. A gradient has those of one number of threads."""
    run(f"""{TOGETHER}
def all_of():
    stream = LAYERS[0].stream()
    return values(forward), values(by_weights, LAYERS[:2]), stream(np.array(XS[0][0]))

expected = []
for n in range(1, 5):
    set_num_threads(n)
    expected.append(all_of())
over = threading.Event()

def change():
    n = 0
    while not over.is_set():
        n += 1
        set_num_threads(1 + n % 4)
        over.wait(0.0005)

changing = threading.Thread(target=change)
changing.start()
try:
    found = together(*[lambda: [all_of() for _ in range(3)]] * 4)
finally:
    over.set()
    changing.join()
for states, gradients, stream in (one for results in found for one in results):
    same(states, expected[0][0])
    same([stream], [expected[0][2]])
    for k, gradient in enumerate(gradients):
        assert any(np.array_equal(gradient, e[1][k]) for e in expected), k
done()
""")


def test_parameters_that_another_thread_has_not_evaluated():
    """An error that names the cure; nothing else is refused."""
    run(f"""{TOGETHER}
lazy = RNN(64, 256)
step = np.ones(64, "f4")
{RAISED}
import copy, pickle
leaky, copied = RNN(64, 256, leak=0.5), copy.deepcopy(lazy)
assert CURE in raised(lambda: lazy(XS[0]))
assert CURE in raised(lambda: lazy.step(XS[0][:, 0]))
assert CURE in raised(lambda: leaky(XS[0]))
assert CURE in raised(lambda: lazy.stream())
assert CURE in raised(lambda: copied(XS[0]))
assert pickle.loads(pickle.dumps(leaky))(XS[0]).shape == leaky(XS[0]).shape
# The thread that made them computes this: one that works on its stream asks for it.
here, graphs = mx.default_stream(mx.cpu), []
def ask():
    mx.set_default_stream(here)
    graphs.append(lazy(XS[0] + 1))
together(ask)
same([np.array(graphs[0])], [np.array(lazy(XS[0] + 1))])
# So it may be another stream of theirs that has something to compute.
with mx.stream(mx.new_stream(mx.cpu)):
    beside = XS[0] + 1
def ask_for_both():
    mx.set_default_stream(here)
    graphs[:] = [lazy(beside)]
together(ask_for_both)
same([np.array(graphs[0])], [np.array(lazy(beside))])
# Weights that are this thread's, of which some are not computed yet.
shared = RNN(64, 256)
mx.eval(shared.parameters())
def train():
    shared.Wxh = shared.Wxh + 1
    mx.eval(shared(XS[0]), RNN(64, 256)(XS[0]))
together(train)
stream = LAYERS[0].stream()
later = mx.array(step) + 1
before = stream.state
assert "mx.eval" in raised(lambda: stream(later))
same([stream.state], [before])
mx.eval(lazy.parameters(), later)
same(*together(lambda: values(forward, [lazy])), values(forward, [lazy]))
together(lambda: lazy.stream()(step), lambda: stream(later))
done()
""")


RAISED = """
CURE = "mx.eval(layer.parameters())"

def raised(work):
    def attempt():
        try:
            work()
        except RuntimeError as error:
            return str(error)
        raise AssertionError("nothing was raised")
    return together(attempt)[0]
"""


def test_whatever_another_thread_has_not_evaluated():
    """Each parameter, and each argument, by every way that a call may take."""
    run(f"""{TOGETHER}
{RAISED}
from mlx_recurrent import Bidirectional, Linear, Stack, exporting, interop, scan
from mlx_recurrent import matmul

x, half = XS[1], XS[1].astype(mx.float16)
reset = mx.zeros(x.shape[:2], mx.bool_)
mx.eval(half, reset)

def evaluated(layer):
    mx.eval(layer.parameters())
    return layer

def exported(layer, x):
    with exporting():
        return layer(x)

def refused(*works):
    for k, work in enumerate(works):
        found = raised(work)
        assert found.startswith("[mlx_recurrent]") and CURE in found, (k, found)

full = evaluated(RNN(64, 256, leak=mx.full((256,), 0.5), learn_hidden=True))
stack = evaluated(Stack([RNN(64, 256), Bidirectional(RNN(256, 8))]))
both = evaluated(Bidirectional(RNN(64, 256)))  # in one call
backward = interop.Reversed(evaluated(RNN(64, 256)))
linear = evaluated(Linear(64, 8))
owners = [(full, name) for name in full.parameters() if name != "nonlinearity"]
for name in ("Wxh", "Whh", "bias"):
    for layer in (stack.layers[0], stack.layers[1].backward, both.forward):
        owners.append((layer, name))
    owners.append((backward.backward, name))
owners += [(linear, "weight"), (linear, "bias")]
assert len(owners) == 5 + 3 * 4 + 2
networks = {{id(full): full, id(linear): linear, id(backward.backward): backward,
            id(stack.layers[0]): stack, id(stack.layers[1].backward): stack,
            id(both.forward): both}}
long = mx.random.normal((8, 20, 64))
mx.eval(long)
for owner, name in owners:
    network, before = networks[id(owner)], owner[name]
    owner[name] = before + 0
    refused(
        lambda: network(x),
        lambda: network(half),
        lambda: network(long),
        lambda: exported(network, x),
        lambda: mx.grad(lambda x: network(x).sum())(x),
        lambda: mx.compile(lambda x: network(x))(x),
    )
    if network is full:
        for f in (None, nn.silu, nn.softmax):
            full.nonlinearity = f or mx.tanh
            for full.zoneout in (0.0, 0.2):
                for mode in (full.eval, full.train):
                    mode()
                    refused(lambda: full(x))
        refused(lambda: full.step(x[:, 0]), lambda: full(x, reset=reset))
        refused(lambda: full.stream(), lambda: full(x, return_state="only"))
        full.nonlinearity, full.zoneout = mx.tanh, 0.0
    owner[name] = before
    together(lambda: mx.eval(network(x)))

late, hidden = x + 1, mx.zeros((8, 256)) + 1
lengths, starts = mx.array([3] * 8) + 0, reset | reset
Wxh, Whh = LAYERS[0].Wxh + 0, LAYERS[0].Whh + 0
layer = LAYERS[0]
refused(
    lambda: layer(late),
    lambda: layer(late[:, ::2] * 2),
    lambda: layer(x, hidden),
    lambda: layer(x, mx.zeros((3, 8, 256)) + hidden),
    lambda: layer(x, lengths=lengths),
    lambda: layer(x, reset=starts),
    lambda: layer.step(late[:, 0]),
    lambda: mx.vmap(layer)(late),
    lambda: mx.vmap(linear)(late),
    lambda: layer.step(x[:, 0], hidden),
    lambda: linear(late),
    lambda: exported(linear, late),
    lambda: rnn(x, Wxh, layer.Whh),
    lambda: rnn(x, layer.Wxh, Whh),
    lambda: mx.grad(lambda w: rnn(x, layer.Wxh, w).sum())(Whh),
    lambda: scan(x[..., :4], Whh[:4, :4]),
    lambda: matmul(x, Wxh),
    lambda: exported(lambda x: matmul(x, Wxh), x),
)
module = evaluated(RNN(64, 8, nonlinearity=nn.PReLU()))
module.nonlinearity.weight = module.nonlinearity.weight + 0
refused(lambda: module(x))
done()
""")


def test_layers_whose_weights_are_not_computed(tmp_path):
    """All that leaves them so: files, dtypes, updates, optimizers, presets."""
    run(f"""
import os
os.chdir({str(tmp_path)!r})
{TOGETHER}
{RAISED}
from mlx_recurrent import accelerate, init

def optimized(layer):
    loss = nn.value_and_grad(layer, lambda m: m(XS[0]).square().sum())
    optim.Adam(1e-3).update(layer, loss(layer)[1])

ways = [
    lambda layer: layer.load_weights("w.npz"),
    lambda layer: layer.load_weights("w.safetensors"),
    lambda layer: layer.update(mx.load("w.npz")),
    lambda layer: layer.set_dtype(mx.float16),
    lambda layer: layer.update({{"bias": layer.bias * 2}}),
    optimized,
    init.orthogonal_,
    init.identity_,
    lambda layer: init.spectral_radius_(layer, 0.9),
]
for file in ("w.npz", "w.safetensors"):
    RNN(64, 16).save_weights(file)
layers = [accelerate(nn.RNN(64, 16))]
for way in ways:
    layers.append(RNN(64, 16))
    mx.eval(layers[-1].parameters())
    way(layers[-1])
for k, layer in enumerate(layers):
    assert CURE in raised(lambda: layer(XS[0])), k
    assert CURE in raised(lambda: layer.save_weights("again.npz")), k
mx.eval([layer.parameters() for layer in layers])
for layer in layers:
    same(*together(lambda: values(forward, [layer])), values(forward, [layer]))
done()
""")


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="Linux sets affinities"
)


@needs_affinity
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_core(when):
    """Set before the package is loaded it is counted; later threads stay."""
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    if when == "before":
        run(
            "assert threads == 1\nset_num_threads(3)\ncheck()\nprint('done')",
            one + PRELUDE,
        )
    else:
        run(
            f"set_num_threads(3)\ncheck()\n{one}{IN_THREADS}"
            + """
for worker in workers:
    worker.join()
assert not failures, failures
print("done")
"""
        )


@needs_affinity
def test_cores_busy_with_other_work():
    """Each core has a process that never rests, and more threads than cores wait."""
    cores = sorted(os.sched_getaffinity(0))[:4]
    spin = (
        "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
    )
    busy = [subprocess.Popen([sys.executable, "-c", spin, str(c)]) for c in cores]
    try:
        run("""
for n in (2, 4):
    set_num_threads(n)
    for _ in range(3):
        check()
print("done")
""")
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_slowdown_beside_busy_processes_is_bounded():
    """Four that never rest on each core leave a fifth of it; threads meet at each step.

    One thread alone takes 5 times as long there, and two about 10 times what they take
    on free cores. Members that yield to each other in place of sleeping take 150 times.
    """
    run("""
import subprocess, sys, time
set_num_threads(2)
x, Wxh, Whh = (0.1 * mx.random.normal(s) for s in [(1, 400, 64), (512, 64), (512, 512)])

def seconds():
    begun = time.perf_counter()
    for _ in range(20):
        mx.eval(rnn(x, Wxh, Whh))
    return time.perf_counter() - begun

seconds()
free = sorted(seconds() for _ in range(5))[2]
spin = [sys.executable, "-c", "print(flush=True)\\nwhile True: pass"]
busy = [
    subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(4 * os.cpu_count())
]
try:
    for process in busy:
        process.stdout.readline()
    taken = seconds()
finally:
    for process in busy:
        process.kill()
        process.wait()
        process.stdout.close()
assert taken < 60 * free + 1, (taken, free)
print("done")
""")


def test_processes_at_once():
    errors = []

    def one():
        try:
            run("set_num_threads(4)\nfor _ in range(10): check()\nprint('done')")
        except BaseException as error:
            errors.append(error)

    runs = [threading.Thread(target=one) for _ in range(4)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_before_first_use():
    """MLX's streams are threads, so a child works if nothing was evaluated before."""
    prelude = PRELUDE.replace(
        "\nmx.set_default_device",
        """
child = os.fork()
signal.alarm(200)  # ends a child that hangs, which holds the pipe of the output
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
mx.set_default_device""",
    )
    run(
        """
set_num_threads(3)
check()
if child == 0:
    os._exit(0)
print("done")
""",
        prelude,
    )
