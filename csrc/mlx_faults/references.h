// Who refers to an array.
//
// Fault: MLX keeps the count private, and what a callable captured, or a
// derivative will want, shows in nothing else. MLX: 0.32.0 to 0.32.4. Shown by:
// test_what_others_hold_is_not_its_own,
//   test_pre_activations_are_kept_for_a_derivative_alone

#pragma once

#include "mlx/array.h"

namespace mlx_recurrent {

// How many arrays, in graphs, in Python and in lists of outputs, share what `a`
// is. Where MLX does not tell it, more than there can be: nothing is then taken
// for one call's own, and all is kept that a derivative may want.
long references(const mlx::core::array& a);

} // namespace mlx_recurrent
