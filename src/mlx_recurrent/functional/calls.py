"""A call of each function, judged from what the user gave."""

from typing import TYPE_CHECKING, Any

from mlx_recurrent.functional.cells import (
    ELMAN,
    GRU,
    GRU_RESET_BEFORE,
    LSTM,
    DeclaredCell,
)
from mlx_recurrent.functional.devices import StreamOrDevice
from mlx_recurrent.functional.dispatch import Nonlinearity, choose, choose_cell
from mlx_recurrent.functional.examining import examine
from mlx_recurrent.functional.foreign import judge_keywords
from mlx_recurrent.functional.judging import (
    judge_array,
    judge_flag,
    judge_nonlinearity,
    judge_stream,
)
from mlx_recurrent.functional.operands import (
    Judged,
    Sequence,
    judge,
    judge_projected,
    judge_projection,
)
from mlx_recurrent.functional.options import (
    GRUOptions,
    LSTMOptions,
    Options,
    ScanOptions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Unpack


def judge_rnn(
    x: Any,
    Wxh: Any,
    Whh: Any,
    bias: Any = None,
    hidden: Any = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    stream: StreamOrDevice = None,
    **options: "Unpack[Options]",
) -> Judged:
    """Judge a call of :func:`mlx_recurrent.rnn`, whose arguments these are.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a shape, a dtype or a value does not fit.
    """
    judge_keywords(options, Options)
    sequence = judge_projection(x, Wxh, bias)
    return _judge_elman(sequence, Whh, hidden, nonlinearity, stream, options)


def judge_scan(
    z: Any,
    Whh: Any,
    hidden: Any = None,
    *,
    nonlinearity: Nonlinearity | None = None,
    stream: StreamOrDevice = None,
    **options: "Unpack[ScanOptions]",
) -> Judged:
    """Judge a call of :func:`mlx_recurrent.scan`, as :func:`judge_rnn`."""
    judge_keywords(options, ScanOptions)
    sequence = judge_projected(z)
    return _judge_elman(sequence, Whh, hidden, nonlinearity, stream, options)


def judge_gru(
    x: Any,
    Wx: Any,
    Wh: Any,
    b: Any = None,
    bhn: Any = None,
    hidden: Any = None,
    *,
    reset_after: bool = True,
    stream: StreamOrDevice = None,
    **options: "Unpack[GRUOptions]",
) -> Judged:
    """Judge a call of :func:`mlx_recurrent.gru`, as :func:`judge_rnn`."""
    judge_keywords(options, GRUOptions, ("hidden", "reset_after"))
    cell = GRU if judge_flag("reset_after", reset_after) else GRU_RESET_BEFORE
    if bhn is not None and not reset_after:
        judge_array("bhn", bhn)
        raise ValueError(
            "bhn must be None where reset_after is False: the product with Wh is then "
            f"of the state after the reset, but has shape {bhn.shape}"
        )
    sequence = judge_projection(x, Wx, b, cell)
    judge_stream(stream)
    return judge(sequence, Wh, (hidden,), choose_cell(cell), options, bhn, stream)


def judge_lstm(
    x: Any,
    Wx: Any,
    Wh: Any,
    bias: Any = None,
    hidden: Any = None,
    cell: Any = None,
    *,
    stream: StreamOrDevice = None,
    **options: "Unpack[LSTMOptions]",
) -> Judged:
    """Judge a call of :func:`mlx_recurrent.lstm`, as :func:`judge_rnn`."""
    judge_keywords(options, LSTMOptions, LSTM.states)
    sequence = judge_projection(x, Wx, bias, LSTM)
    judge_stream(stream)
    states = (hidden, cell)
    return judge(sequence, Wh, states, choose_cell(LSTM), options, None, stream)


def judge_declared(
    cell: DeclaredCell, /, x: Any, *, stream: StreamOrDevice = None, **arguments: Any
) -> Judged:
    """Judge a call of a declared cell, as :func:`judge_rnn`.

    Args:
        cell (DeclaredCell): The cell.
        x (array): The sequence.
        stream (Stream or Device, optional): The stream. ``None`` is the default one.
        arguments: By name: the weights ``Wx``, ``Wh``, ``b`` and ``bh`` and the
            parameters, as many as the cell has, states, and options.
    """

    def given(name: str) -> Any:
        return arguments.pop(name, None)

    sequence = judge_projection(x, given(cell.Wx), given(cell.bias), cell)
    Wh, hidden_bias = given(cell.Wh), given(cell.hidden_bias)
    states = tuple(map(given, cell.states))
    parameters = tuple(map(given, cell.parameters))
    judge_stream(stream)
    choice = choose_cell(cell)
    call = judge(
        sequence, Wh, states, choice, arguments, hidden_bias, stream, parameters
    )
    found = examine(cell, call.dtype, sequence.H)
    bias, rows = sequence.bias, (cell.input_rows * sequence.H,)
    if bias is not None and bias.shape != rows:
        found = f"has a bias {bias.shape} that is not {rows}"
    return call._replace(choice=choice.after_examining(cell, found))


def _judge_elman(
    sequence: Sequence,
    Whh: Any,
    hidden: Any,
    nonlinearity: Nonlinearity | None,
    stream: StreamOrDevice,
    options: "Mapping[str, Any]",
) -> Judged:
    assert sequence.cell is ELMAN
    judge_stream(stream)
    if nonlinearity is not None:
        judge_nonlinearity(nonlinearity)
    choice = choose(nonlinearity)
    return judge(sequence, Whh, (hidden,), choice, options, None, stream)
