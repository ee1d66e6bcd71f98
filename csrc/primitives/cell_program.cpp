#include "primitives/cell_program.h"

#include <numeric>
#include <stdexcept>

namespace mlx_recurrent {

namespace {

int arguments_of(const kernels::CellShape& shape) {
  return shape.slabs() + shape.states + shape.parameters;
}

Expression pullback_of(
    const kernels::CellShape& shape,
    const Expression& step,
    mx::Dtype dtype) {
  std::vector<int> all(shape.states);
  std::iota(all.begin(), all.end(), 0);
  return gradients(step, arguments_of(shape), all, dtype);
}

} // namespace

CellProgram::CellProgram(
    const kernels::CellShape& shape,
    const Expression& step,
    mx::Dtype dtype)
    : step_(step.simplified(dtype)),
      compiled_(step_, arguments_of(shape)),
      pullback_(
          pullback_of(shape, step_, dtype),
          arguments_of(shape) + shape.states),
      programs_{shape, compiled_.program(), pullback_.program()} {
  int arguments = arguments_of(shape);
  int paths = 0, slab_paths = 0;
  for (int state = 0; state < shape.states; ++state) {
    Expression all =
        gradients(step_, arguments, {state}, dtype).at_one(arguments, dtype);
    slopes_.emplace_back();
    for (int k = 0; k < arguments; ++k) {
      Expression one = all.only(k, dtype);
      bool zero = one.constant_result() == 0;
      slopes_[state].push_back(
          zero ? nullptr : std::make_shared<Traced>(one, dtype, arguments));
      slab_paths += !zero && k < shape.slabs();
      paths += !zero && k >= shape.slabs() && k < shape.slabs() + shape.states;
    }
  }
  // A state that may keep units passes on to itself.
  if (paths + shape.states > kernels::kMostScanPaths ||
      slab_paths > kernels::kMostScanPaths) {
    throw std::invalid_argument(
        "has more than " + std::to_string(kernels::kMostScanPaths) +
        " ways from its pre-activations, or states, to its states");
  }
}

} // namespace mlx_recurrent
