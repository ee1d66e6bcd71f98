// A number of each unit and step as an array of the graph, for the formulas of
// cells. Zero and one are known as such, and leave no operation behind.

#pragma once

#include "primitives/primitive.h"

namespace mlx_recurrent {

class GraphValue {
 public:
  GraphValue() = default; // zero
  GraphValue(mx::array a, const mx::Stream& stream)
      : array_(std::move(a)), stream_(stream) {
  }
  static GraphValue one();

  // Absent: the number below.
  const std::optional<mx::array>& array() const {
    return array_;
  }
  bool is_zero() const {
    return !array_ && number_ == 0;
  }
  bool is_one() const {
    return !array_ && number_ == 1;
  }

  friend GraphValue operator+(const GraphValue& a, const GraphValue& b);
  friend GraphValue operator-(const GraphValue& a, const GraphValue& b);
  friend GraphValue operator*(const GraphValue& a, const GraphValue& b);

  GraphValue tanh() const;
  GraphValue logistic() const;

 private:
  std::optional<mx::array> array_;
  std::optional<mx::Stream> stream_;
  int number_ = 0; // or 1
};

// What the formulas ask for by name.
struct GraphOps {
  static GraphValue tanh(const GraphValue& a) {
    return a.tanh();
  }
  static GraphValue logistic(const GraphValue& a) {
    return a.logistic();
  }
  // An array is of the type that it is stored in.
  static GraphValue stored(const GraphValue& a) {
    return a;
  }
};

} // namespace mlx_recurrent
