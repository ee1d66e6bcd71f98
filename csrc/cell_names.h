// The cells that the kernels have, by their names in Python, and those that are
// told.

#pragma once

#include <stdexcept>
#include <string>
#include <variant>

#include "primitives/recurrence.h"

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

// What runs over a sequence: a cell by its name, an Elman cell's callable, or a
// user's cell.
typedef std::variant<std::string, TracedReference, CellReference> AnyCell;

inline RecurrenceForm form_of(const AnyCell& any) {
  RecurrenceForm form;
  if (const auto* name = std::get_if<std::string>(&any)) {
    NamedCell cell = cell_named(*name);
    form.kind = cell.kind;
    form.activation = cell.activation;
  } else if (const auto* cell = std::get_if<CellReference>(&any)) {
    form.kind = kernels::CellKind::program;
    form.activation = kernels::Activation::identity; // it has none
    form.program = cell->program;
  } else {
    form.activation = kernels::Activation::traced;
    form.function = std::get<TracedReference>(any).traced;
  }
  return form;
}

} // namespace mlx_recurrent
