#include "primitives/traced.h"

#include <list>
#include <stdexcept>
#include <unordered_map>

#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "primitives/reading.h"

namespace mlx_recurrent {

namespace {

// Callables whose numbers change at each call would fill any memory.
constexpr size_t kMostKept = 128;

struct Key {
  Expression expression;
  mx::Dtype::Val dtype;

  bool operator==(const Key& other) const = default;
};

struct Hash {
  size_t operator()(const Key& key) const {
    return key.expression.hash() * 31 + static_cast<size_t>(key.dtype);
  }
};

// The functions that were used last.
class Recent {
 public:
  std::shared_ptr<Traced> find(const Key& key) {
    std::lock_guard lock(mutex_);
    auto found = places_.find(key);
    if (found == places_.end()) {
      return nullptr;
    }
    order_.splice(order_.begin(), order_, found->second);
    return found->second->second;
  }

  // What another thread has kept meanwhile stays.
  std::shared_ptr<Traced> keep(const Key& key, std::shared_ptr<Traced> made) {
    std::lock_guard lock(mutex_);
    if (auto found = places_.find(key); found != places_.end()) {
      return found->second->second;
    }
    order_.emplace_front(key, made);
    places_[key] = order_.begin();
    if (order_.size() > kMostKept) {
      places_.erase(order_.back().first);
      order_.pop_back();
    }
    return made;
  }

 private:
  typedef std::pair<Key, std::shared_ptr<Traced>> Entry;
  std::mutex mutex_;
  std::list<Entry> order_;
  std::unordered_map<Key, std::list<Entry>::iterator, Hash> places_;
};

Recent& recent() {
  // Never destroyed: a stream's thread may outlive the static objects.
  static Recent* all = new Recent;
  return *all;
}

// Operations that a derivative may have.
constexpr int kMostOfDerivative = 4096;

} // namespace

std::shared_ptr<Traced> Traced::of(
    const Expression& expression,
    mx::Dtype dtype) {
  if (auto found = known(expression, dtype)) {
    return found;
  }
  auto made = std::make_shared<Traced>(expression, dtype);
  made->derivative();
  return recent().keep({expression, dtype.val()}, std::move(made));
}

std::shared_ptr<Traced> Traced::known(
    const Expression& expression,
    mx::Dtype dtype) {
  return recent().find({expression, dtype.val()});
}

Traced::Traced(const Expression& expression, mx::Dtype dtype)
    : expression_(expression.simplified(dtype)),
      dtype_(dtype),
      function_(expression_, 1) {
}

// By MLX's own rules for the operations of f.
const Expression& Traced::pulled_back() const {
  std::lock_guard lock(mutex_);
  if (pulled_back_) {
    return *pulled_back_;
  }
  // Placeholders: two places, so that no shape is taken for a number's. The
  // gradient is one of what the function was given, not of the first of them.
  mx::array c = mx::zeros({2}, dtype_);
  std::vector<mx::array> given;
  auto gradient = mx::vjp(
      [&](const std::vector<mx::array>& in) {
        given = in;
        return std::vector<mx::array>{expression_.replay(in)};
      },
      {mx::zeros({2}, dtype_)},
      {c});
  Reading reading = read(gradient.second[0], {given[0], c}, kMostOfDerivative);
  if (!reading.obstacle.empty()) {
    throw std::invalid_argument("has a derivative that " + reading.obstacle);
  }
  pulled_back_ = reading.expression.simplified_derivative(expression_, dtype_);
  return *pulled_back_;
}

const kernels::Program& Traced::derivative() const {
  std::lock_guard lock(mutex_);
  if (!derivative_) {
    derivative_ = std::make_unique<CompiledExpression>(pulled_back(), 2);
  }
  return derivative_->program();
}

std::shared_ptr<const Traced> Traced::slope() const {
  std::lock_guard lock(mutex_);
  if (!slope_) {
    try {
      slope_ = std::make_shared<Traced>(pulled_back().at_one(dtype_), dtype_);
    } catch (const std::invalid_argument&) {
      return nullptr;
    }
  }
  return slope_;
}

} // namespace mlx_recurrent
