// The mathematics of the Elman cell, once: h = f(a), and f'(a) from h alone,
// where f is not a program.
// `Value` is a vector in the kernels and an array in the graph; `Ops` says how
// either computes the functions that a formula needs.

#pragma once

#include "kernels.h"

namespace mlx_recurrent {

// One pre-activation, which the state takes the place of.
template <kernels::Activation f>
struct Elman {
  static constexpr kernels::Activation activation = f;
  static constexpr int state_only = 0;
  static constexpr int shared = 1;
  static constexpr int input_only = 0;
  static constexpr int states = 1;
  static constexpr int saved = 1; // the pre-activation
};

namespace elman {

template <kernels::Activation f, class Ops, class Value>
__attribute__((always_inline)) inline Value activate(Value a) {
  using kernels::Activation;
  if constexpr (f == Activation::tanh) {
    return Ops::tanh(a);
  } else if constexpr (f == Activation::relu) {
    return Ops::positive_part(a);
  } else if constexpr (f == Activation::sigmoid) {
    return Ops::logistic(a);
  } else {
    static_assert(f == Activation::identity);
    return a;
  }
}

// `one` is a Value of ones.
template <kernels::Activation f, class Ops, class Value>
__attribute__((always_inline)) inline Value slope(Value h, Value one) {
  using kernels::Activation;
  if constexpr (f == Activation::tanh) {
    return one - h * h;
  } else if constexpr (f == Activation::relu) {
    return Ops::where_positive(h, one);
  } else if constexpr (f == Activation::sigmoid) {
    return h * (one - h);
  } else {
    static_assert(f == Activation::identity);
    return one;
  }
}

} // namespace elman

} // namespace mlx_recurrent
