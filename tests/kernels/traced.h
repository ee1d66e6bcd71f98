// Activations as programs, and the same functions as formulas.

#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Instruction;
using mlx_recurrent::kernels::Program;

// Programs of swish, gelu and so on, by the names in case.cpp.
constexpr int kTraced = 9;

// A program and what it points to.
struct OwnedProgram {
  std::vector<Instruction> code;
  std::vector<double> constants;
  int32_t inputs, slots, result;

  Program program() const {
    return {
        code.data(),
        static_cast<int32_t>(code.size()),
        constants.data(),
        static_cast<int32_t>(constants.size()),
        inputs,
        slots,
        &result,
        1};
  }
};

struct Traced {
  OwnedProgram function;   // f(a)
  OwnedProgram derivative; // c f'(a)
  double (*value)(double a);
  double (*slope)(double a);
  double curvature;          // a bound of |f''| between the kinks
  double jump;               // of the slope at a kink
  std::vector<double> kinks; // where the slope jumps
};

const Traced& traced(int64_t which);

} // namespace kernel_tests
