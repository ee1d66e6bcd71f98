// The cells that the kernels have, by their names in Python.

#pragma once

#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace mlx_recurrent {

struct NamedCell {
  kernels::CellKind kind;
  kernels::Activation activation; // of an Elman cell
};

inline NamedCell cell_named(const std::string& name) {
  using kernels::Activation;
  using kernels::CellKind;
  if (name == "gru") {
    return {CellKind::gru, Activation::tanh};
  }
  if (name == "lstm") {
    return {CellKind::lstm, Activation::tanh};
  }
  if (name == "tanh") {
    return {CellKind::elman, Activation::tanh};
  }
  if (name == "relu") {
    return {CellKind::elman, Activation::relu};
  }
  if (name == "sigmoid") {
    return {CellKind::elman, Activation::sigmoid};
  }
  if (name == "identity") {
    return {CellKind::elman, Activation::identity};
  }
  throw std::invalid_argument("[mlx_recurrent] no cell named " + name);
}

} // namespace mlx_recurrent
