// A number of the reference: its value in float64, and how far a kernel that
// rounds after each operation may be from it.

#pragma once

#include <cmath>

#include "tolerances.h"

namespace kernel_tests {

struct Uncertain {
  double value = 0;
  // Of the error, in the measure of `Rounding`: squares of what may be tiny,
  // for which a double has too few exponents.
  long double spread = 0;

  Uncertain() = default;
  Uncertain(double value, long double spread = 0)
      : value(value), spread(spread) {
  }
};

// Arithmetic with rounding errors of at most `unit` relative to each result.
// Errors of different numbers are taken for independent, so that their squares
// add up; those of equal numbers, which are equal, add up themselves.
struct Rounding {
  double unit;
  bool equal;

  long double measure(double a) const {
    long double wide = a;
    return equal ? std::fabs(wide) : wide * wide;
  }
  // The error that is allowed.
  double allowed(Uncertain a) const {
    long double bound =
        equal ? kEqualErrors * a.spread : kDeviations * std::sqrt(a.spread);
    return static_cast<double>(bound);
  }

  // That of an error which is at most so large: what is allowed then.
  long double spread_of(double error) const {
    long double wide = error;
    return equal ? wide / kEqualErrors
                 : wide * wide / (kDeviations * kDeviations);
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
