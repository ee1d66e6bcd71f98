// Vectorisation (`vmap`) that all primitives share.

#pragma once

#include <functional>

#include "primitives/primitive.h"

namespace mlx_recurrent {

// Called with inputs that have the mapped axis in place, and the number of axes
// that became leading axes of sets: 1 or 0.
using Function = std::function<Arrays(const Arrays& inputs, int more_sets)>;

// The inputs that take part, with the mapped axis at `at`; where one has none,
// it is repeated along it, without a copy.
Arrays with_axis(
    const Arrays& inputs,
    const Ints& axes,
    const std::vector<bool>& takes_part,
    int at,
    const mx::Stream& stream);

// `joins[i]` says that input i has axes of a batch, which begin behind the
// `sets` axes; `outputs_join` that every output has them too. Where each mapped
// input joins, the mapped axis is one more axis of the batch; otherwise it is
// one more axis of sets, and all inputs have it.
std::pair<Arrays, Ints> vectorize(
    const Function& function,
    const std::vector<bool>& joins,
    bool outputs_join,
    int sets,
    const Arrays& inputs,
    const Ints& axes,
    const mx::Stream& stream);

} // namespace mlx_recurrent
