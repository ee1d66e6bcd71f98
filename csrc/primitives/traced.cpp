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

Expression gradients(
    const Expression& function,
    int arguments,
    const std::vector<int>& results,
    mx::Dtype dtype) {
  // Placeholders: two places, so that no shape is taken for a number's. The
  // gradients are of what the function was given, not of the first of them.
  std::vector<mx::array> at(arguments, mx::array(0));
  std::vector<mx::array> cotangents;
  for (mx::array& a : at) {
    a = mx::zeros({2}, dtype);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    cotangents.push_back(mx::zeros({2}, dtype));
  }
  std::vector<mx::array> given;
  auto found = mx::vjp(
      [&](const std::vector<mx::array>& in) {
        given = in;
        std::vector<mx::array> all = function.replay(in);
        std::vector<mx::array> wanted;
        for (int result : results) {
          wanted.push_back(all[result]);
        }
        return wanted;
      },
      at,
      cotangents);
  given.insert(given.end(), cotangents.begin(), cotangents.end());
  Reading reading = read(found.second, given, kMostOfDerivative);
  if (!reading.obstacle.empty()) {
    throw std::invalid_argument("has a derivative that " + reading.obstacle);
  }
  return reading.expression.simplified_derivative(function, dtype);
}

Traced::Traced(const Expression& expression, mx::Dtype dtype, int arguments)
    : expression_(expression.simplified(dtype)),
      dtype_(dtype),
      arguments_(arguments),
      function_(expression_, arguments),
      pulled_back_(arguments),
      slopes_(arguments) {
}

const Expression& Traced::pulled_back(int argument) const {
  std::lock_guard lock(mutex_);
  if (!pulled_back_[argument]) {
    Expression all = gradients(expression_, arguments_, {0}, dtype_);
    for (int i = 0; i < arguments_; ++i) {
      pulled_back_[i] = all.only(i, dtype_);
    }
  }
  return *pulled_back_[argument];
}

const kernels::Program& Traced::derivative() const {
  std::lock_guard lock(mutex_);
  if (!derivative_) {
    derivative_ = std::make_unique<CompiledExpression>(pulled_back(0), 2);
  }
  return derivative_->program();
}

std::shared_ptr<const Traced> Traced::slope(int argument) const {
  std::lock_guard lock(mutex_);
  auto& slope = slopes_[argument];
  if (!slope) {
    try {
      slope = std::make_shared<Traced>(
          pulled_back(argument).at_one(arguments_, dtype_), dtype_, arguments_);
    } catch (const std::invalid_argument&) {
      return nullptr;
    }
  }
  return slope;
}

} // namespace mlx_recurrent
