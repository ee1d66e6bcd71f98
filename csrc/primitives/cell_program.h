// A user's cell as the kernels run it, with its derivatives.

#pragma once

#include "primitives/traced.h"

namespace mlx_recurrent {

// The arguments of a step are the slabs, in the order of kernels::CellShape,
// the states before and the parameters; its results are the states after.
class CellProgram {
 public:
  // Raises an std::invalid_argument where the kernels cannot run its
  // derivative.
  CellProgram(
      const kernels::CellShape& shape,
      const Expression& step,
      mx::Dtype dtype);

  const kernels::CellPrograms& programs() const {
    return programs_;
  }
  const kernels::CellShape& shape() const {
    return programs_.shape;
  }
  const Expression& expression() const {
    return step_;
  }

  // The derivative of a state after by an argument; null where it is zero.
  const std::shared_ptr<const Traced>& slope(int state, int argument) const {
    return slopes_[state][argument];
  }

 private:
  Expression step_;
  CompiledExpression compiled_;
  CompiledExpression pullback_;
  kernels::CellPrograms programs_;
  std::vector<std::vector<std::shared_ptr<const Traced>>> slopes_;
};

// Python's reference to one.
struct CellReference {
  std::shared_ptr<const CellProgram> program;
};

} // namespace mlx_recurrent
