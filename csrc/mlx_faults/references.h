// Who refers to an array.

#pragma once

#include "mlx/array.h"

namespace mlx_recurrent {

// How many arrays, in graphs, in Python and in lists of outputs, share what `a`
// is.
long references(const mlx::core::array& a);

} // namespace mlx_recurrent
