// Zeros that MLX passes as the cotangent of an output that nobody used.
//
// Fault: its vjp makes them and does not tell them from a cotangent, so that a
// derivative computes with them what it could leave out.
// MLX: 0.32.0 to 0.32.4.
// Shown by: test_one_of_both_results

#pragma once

#include "mlx/array.h"

namespace mlx_recurrent {

// Whether a cotangent is such zeros, by the operations that MLX makes them of.
// One that is zero but not known to be is right, only slower.
bool is_unused(const mlx::core::array& cotangent);

} // namespace mlx_recurrent
