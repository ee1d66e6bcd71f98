// Elementwise functions of arrays, in the formulas of the kernels.

#pragma once

#include "kernels/kernels.h"
#include "primitives/primitive.h"

namespace mlx_recurrent {

// f(a), where f is not a program.
mx::array activated(
    kernels::Activation f,
    const mx::array& a,
    const mx::Stream& stream);

// f'(a) from h = f(a), where that is not 1.
std::optional<mx::array> activation_slope(
    kernels::Activation f,
    const mx::array& h,
    const mx::Stream& stream);

// 1 - a and -a.
mx::array complement(const mx::array& a, const mx::Stream& stream);
mx::array negative(const mx::array& a, const mx::Stream& stream);

} // namespace mlx_recurrent
