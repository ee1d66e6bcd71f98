// Vectorisation (`vmap`) that all primitives share.

#pragma once

#include <functional>

#include "primitives/primitive.h"

namespace mlx_recurrent {

using Function = std::function<Arrays(const Arrays&)>;

// `joins[i]` says that input i has leading axes, which a mapped axis can join;
// `outputs_join` that every output has them too. Where each mapped input joins,
// the whole is one call; otherwise one call for each index of the mapped axes.
std::pair<Arrays, Ints> vectorize(
    const Function& function,
    const std::vector<bool>& joins,
    bool outputs_join,
    const Arrays& inputs,
    const Ints& axes,
    const mx::Stream& stream);

} // namespace mlx_recurrent
