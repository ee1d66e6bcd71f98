// The gated cells once more, as the programs of a cell that a user declares.

#pragma once

#include "kernels/kernels.h"

namespace kernel_tests {

using mlx_recurrent::kernels::CellKind;
using mlx_recurrent::kernels::CellPrograms;

// Of a GRU or an LSTM.
const CellPrograms& cell_programs(CellKind kind);

} // namespace kernel_tests
