// A user's callable as the kernels run it, with its derivatives; and functions
// of several numbers, which cells are made of.

#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include "primitives/expression.h"

namespace mlx_recurrent {

class Traced {
 public:
  // The function of an expression, for elements of a type. It is made when it
  // is first asked for and kept; `known` is null before. Raises an
  // std::invalid_argument where the kernels cannot run its derivative.
  static std::shared_ptr<Traced> of(
      const Expression& expression,
      mx::Dtype dtype);
  static std::shared_ptr<Traced> known(
      const Expression& expression,
      mx::Dtype dtype);

  Traced(const Expression& expression, mx::Dtype dtype, int arguments = 1);

  int arguments() const {
    return arguments_;
  }

  // f of (a), or of several.
  const kernels::Program& function() const {
    return function_.program();
  }
  // c f'(a), of (a, c).
  const kernels::Program& derivative() const;
  // The derivative by an argument, with derivatives of its own; null where the
  // kernels cannot run it.
  std::shared_ptr<const Traced> slope(int argument = 0) const;

  const Expression& expression() const {
    return expression_;
  }

  // Whether the kernels were found to compute it as MLX does.
  enum class Verdict { unknown, different, equal };
  std::atomic<Verdict> verdict{Verdict::unknown};

 private:
  // c f', of the arguments and c, made when it is first asked for: the
  // derivative of a derivative may be large, and nobody may want it.
  const Expression& pulled_back(int argument) const;

  Expression expression_;
  mx::Dtype dtype_;
  int arguments_;
  CompiledExpression function_;
  mutable std::recursive_mutex mutex_;
  mutable std::vector<std::optional<Expression>> pulled_back_; // by argument
  mutable std::unique_ptr<CompiledExpression> derivative_;
  mutable std::vector<std::shared_ptr<const Traced>> slopes_;
};

// The gradients of some results of a function by its arguments, with MLX's own
// rules for its operations, as functions of the arguments and of the cotangents
// of these results. Raises an std::invalid_argument where the kernels cannot
// run one.
Expression gradients(
    const Expression& function,
    int arguments,
    const std::vector<int>& results,
    mx::Dtype dtype);

// Python's reference to one: a value, since to share a pointer with Python
// would allocate where nothing can be raised.
struct TracedReference {
  std::shared_ptr<Traced> traced;
};

} // namespace mlx_recurrent
