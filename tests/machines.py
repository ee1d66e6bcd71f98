"""Two CPU streams in the place of two devices, for the tests of placement."""

import re
import threading

import mlx.core as mx

from mlx_recurrent.functional.devices import Machine


class TwoStreams(Machine):
    """The default stream stands for the GPU's, one of its own for the CPU's."""

    def __init__(self, cpu=None):
        super().__init__("metal", unified=True, cpu=cpu or mx.new_stream(mx.cpu))

    def on_cpu(self, stream):
        return stream is not None


def stream_of(a):
    """The index of the first stream that an array waits for, if it does.

    It must have been made by this thread: another one is asked to evaluate it, and MLX
    says which stream that one lacks.
    """
    found = []

    def evaluate():
        try:
            mx.eval(a)
        except RuntimeError as error:
            found.append(re.search(r"Stream\((\w+), (\d+)\)", str(error)).groups())

    thread = threading.Thread(target=evaluate)
    thread.start()
    thread.join()
    return found[0] if found else None
