"""Recurrent layers in NumPy, slow and obvious: the truth that tests compare with.

Letters: ``L`` steps, ``D`` input features, ``H`` hidden features; any leading axes.

Everything is at least float64. Longdouble stays longdouble, and complex stays complex,
so that a derivative can be taken by a complex step. Nothing conjugates.

``cells`` has the mathematics of each cell, ``recurrence`` all that cells share: the
optional terms, and back-propagation by hand. ``plain`` is the Elman recurrence once
more, without terms. It imports nothing of the package.
"""

from .activations import activate as activate
from .cells import CELLS as CELLS
from .cells import GRU as GRU
from .cells import LSTM as LSTM
from .cells import Elman as Elman
from .declared import DECLARED as DECLARED
from .declared import Declared as Declared
from .differences import complex_step as complex_step
from .differences import finite_difference as finite_difference
from .differences import gradient as gradient
from .masks import INPUT_DROPOUT as INPUT_DROPOUT
from .masks import RECURRENT_DROPOUT as RECURRENT_DROPOUT
from .masks import ZONEOUT as ZONEOUT
from .masks import ZONEOUT_CELL as ZONEOUT_CELL
from .masks import factors as factors
from .masks import hits as hits
from .masks import threefry as threefry
from .masks import zoneout_of as zoneout_of
from .plain import matmul as matmul
from .plain import matmul_grad as matmul_grad
from .plain import rnn as rnn
from .plain import rnn_grad as rnn_grad
from .plain import rnn_hessian_vector as rnn_hessian_vector
from .plain import rnn_tangent as rnn_tangent
from .plain import scan as scan
from .plain import scan_grad as scan_grad
from .recurrence import Terms as Terms
from .recurrence import border_states as border_states
from .recurrence import recurrence as recurrence
from .recurrence import recurrence_grad as recurrence_grad
from .recurrence import recurrence_tangent as recurrence_tangent
