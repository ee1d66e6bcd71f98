"""What this machine can compute on, as data."""

from typing import Literal, TypeAlias

import mlx.core as mx

StreamOrDevice: TypeAlias = (
    mx.Stream | mx.ThreadLocalStream | mx.Device | mx.DeviceType | None
)


class Machine:
    """A machine's devices, and which of them a stream is on.

    Args:
        gpu (str, optional): What its GPU is programmed in, ``"metal"`` or ``"cuda"``.
            ``None`` where there is none.
        unified (bool): Whether CPU and GPU see the same memory.
        cpu (Stream or Device): Where what is moved to the CPU runs.
    """

    def __init__(
        self,
        gpu: Literal["metal", "cuda"] | None,
        unified: bool,
        cpu: StreamOrDevice = mx.cpu,
    ) -> None:
        self.gpu = gpu
        self.unified = unified
        self.cpu = cpu

    def on_cpu(self, stream: StreamOrDevice) -> bool:
        """Return whether a stream is on the CPU.

        Args:
            stream (Stream or Device, optional): The stream. ``None`` is the default
                one.
        """
        if stream is None:
            return mx.default_device() == mx.cpu
        device = getattr(stream, "device", stream)
        return bool(getattr(device, "type", device) == mx.cpu)


def _found() -> Machine:
    if mx.metal.is_available():  # all of Apple's that MLX runs on share memory
        return Machine("metal", unified=True)
    return Machine("cuda" if mx.cuda.is_available() else None, unified=False)


_here = _found()


def here() -> Machine:
    """Return this machine."""
    return _here


def on_cpu(stream: StreamOrDevice) -> bool:
    """Return whether a stream is on the CPU of this machine."""
    return _here.on_cpu(stream)
