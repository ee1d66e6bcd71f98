#include "primitives/graph_value.h"

#include "primitives/arithmetic.h"
#include "primitives/broadcast.h"
#include "primitives/elementwise.h"

namespace mlx_recurrent {

GraphValue GraphValue::one() {
  GraphValue value;
  value.number_ = 1;
  return value;
}

GraphValue operator+(const GraphValue& a, const GraphValue& b) {
  if (a.is_zero() || b.is_zero()) {
    return a.is_zero() ? b : a;
  }
  const GraphValue& there = a.array_ ? a : b;
  const mx::Stream& s = there.stream_.value();
  auto array_of = [&](const GraphValue& v) {
    return v.array_ ? *v.array_ : filled(*there.array_, 1, s);
  };
  return {add(array_of(a), array_of(b), s), s};
}

GraphValue operator-(const GraphValue& a, const GraphValue& b) {
  if (b.is_zero()) {
    return a;
  }
  if (!b.array_) {
    return a.is_one()
        ? GraphValue()
        : a + GraphValue(filled(*a.array_, -1, *a.stream_), *a.stream_);
  }
  const mx::Stream& s = b.stream_.value();
  return a.is_one() ? GraphValue(complement(*b.array_, s), s)
                    : a + GraphValue(negative(*b.array_, s), s);
}

GraphValue operator*(const GraphValue& a, const GraphValue& b) {
  if (a.is_zero() || b.is_zero()) {
    return {};
  }
  if (a.is_one() || b.is_one()) {
    return a.is_one() ? b : a;
  }
  const mx::Stream& s = a.stream_.value();
  return {multiply(*a.array_, *b.array_, s), s};
}

GraphValue GraphValue::tanh() const {
  return {
      activated(kernels::Activation::tanh, array_.value(), *stream_), *stream_};
}

GraphValue GraphValue::logistic() const {
  return {
      activated(kernels::Activation::sigmoid, array_.value(), *stream_),
      *stream_};
}

} // namespace mlx_recurrent
