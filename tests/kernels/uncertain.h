// A number of the reference: its value in float64, and how far a kernel that
// rounds after each operation may be from it.

#pragma once

#include <cmath>

#include "tolerances.h"

namespace kernel_tests {

struct Uncertain {
  double value = 0;
  double spread = 0; // of the error, in the measure of `Rounding`

  Uncertain() = default;
  Uncertain(double value, double spread = 0) : value(value), spread(spread) {
  }
};

// Arithmetic with rounding errors of at most `unit` relative to each result.
// Errors of different numbers are taken for independent, so that their squares
// add up; those of equal numbers, which are equal, add up themselves.
struct Rounding {
  double unit;
  bool equal;

  double measure(double a) const {
    return equal ? std::fabs(a) : a * a;
  }
  // The error that is allowed.
  double allowed(Uncertain a) const {
    return equal ? kEqualErrors * a.spread : kDeviations * std::sqrt(a.spread);
  }

  Uncertain round(Uncertain a) const {
    return {a.value, a.spread + measure(unit * a.value)};
  }
  Uncertain add(Uncertain a, Uncertain b) const {
    return round({a.value + b.value, a.spread + b.spread});
  }
  Uncertain multiply(Uncertain a, Uncertain b) const {
    return round(
        {a.value * b.value,
         a.spread * measure(b.value) + measure(a.value) * b.spread});
  }
  // sum += a * b, both rounded.
  void accumulate(Uncertain& sum, Uncertain a, Uncertain b) const {
    sum = add(sum, multiply(a, b));
  }
};

} // namespace kernel_tests
