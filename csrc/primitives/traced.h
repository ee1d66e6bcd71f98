// A user's callable as the kernels run it, with its derivatives.

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

  Traced(const Expression& expression, mx::Dtype dtype);

  // f of (a).
  const kernels::Program& function() const {
    return function_.program();
  }
  // c f'(a), of (a, c).
  const kernels::Program& derivative() const;
  // f', with derivatives of its own; null where the kernels cannot run it.
  std::shared_ptr<const Traced> slope() const;

  const Expression& expression() const {
    return expression_;
  }

  // Whether the kernels were found to compute it as MLX does.
  enum class Verdict { unknown, different, equal };
  std::atomic<Verdict> verdict{Verdict::unknown};

 private:
  // c f'(a), made when it is first asked for: the derivative of a derivative
  // may be large, and nobody may want it.
  const Expression& pulled_back() const;

  Expression expression_;
  mx::Dtype dtype_;
  CompiledExpression function_;
  mutable std::recursive_mutex mutex_;
  mutable std::optional<Expression> pulled_back_;
  mutable std::unique_ptr<CompiledExpression> derivative_;
  mutable std::shared_ptr<const Traced> slope_;
};

// Python's reference to one: a value, since to share a pointer with Python
// would allocate where nothing can be raised.
struct TracedReference {
  std::shared_ptr<Traced> traced;
};

} // namespace mlx_recurrent
