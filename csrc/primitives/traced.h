// A user's callable as the kernels run it, with its derivatives.

#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

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

  Traced(const Expression& expression, mx::Dtype dtype);

  // f of (a).
  const kernels::Program& function() const {
    return function_.program();
  }
  // c f'(a), of (a, c).
  const kernels::Program& derivative() const {
    return derivative_.program();
  }
  // f', with derivatives of its own.
  std::shared_ptr<const Traced> slope() const;

  const Expression& expression() const {
    return expression_;
  }

  // What comparing it with the callable showed: nothing yet, a difference, or
  // none.
  enum class Verdict { unknown, different, equal };
  std::atomic<Verdict> verdict{Verdict::unknown};

 private:
  Traced(
      const Expression& expression,
      const Expression& pulled_back,
      mx::Dtype dtype);

  Expression expression_;
  Expression pulled_back_; // c f'(a)
  mx::Dtype dtype_;
  CompiledExpression function_;
  CompiledExpression derivative_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Traced> slope_;
};

} // namespace mlx_recurrent
