"""The native loops that measure the machine: figures one can divide by."""

import math

import pytest

import mlx_recurrent
from mlx_recurrent import _native


def positive(figure):
    return math.isfinite(figure) and figure > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_rates(threads):
    assert positive(_native.measure_multiply_add(threads))
    assert positive(_native.measure_read(threads, 16384))


def test_a_read_of_no_bytes_reads_some():
    assert positive(_native.measure_read(1, 0))


def test_tanh_takes_time():
    assert positive(_native.measure_tanh())


def test_exchange_takes_time_where_there_is_a_second_thread():
    seconds = _native.measure_exchange()
    assert seconds == 0 or positive(seconds)


def test_instruction_set_is_one_of_those_available():
    assert _native.isa() in _native.available_isas().split(", ")
    assert 1 <= mlx_recurrent.get_num_threads()
    assert _native.usable_cores() >= 1
