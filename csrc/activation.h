// The activations that the kernels have, by their names in Python.

#pragma once

#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace mlx_recurrent {

inline kernels::Activation activation_named(const std::string& name) {
  if (name == "tanh") {
    return kernels::Activation::tanh;
  }
  if (name == "relu") {
    return kernels::Activation::relu;
  }
  if (name == "sigmoid") {
    return kernels::Activation::sigmoid;
  }
  if (name == "identity") {
    return kernels::Activation::identity;
  }
  throw std::invalid_argument("[mlx_recurrent] no activation named " + name);
}

} // namespace mlx_recurrent
