// Every number that decides whether a result is right.

#pragma once

namespace kernel_tests {

// A result may differ from the reference by so many times the root of the sum
// of squares of all roundings on the way, each taken at its largest; beside the
// rounding to its type. Chance alone stays below 3. The rest is for what the
// estimate leaves out: the reference's own roundings in float64, and errors of
// one step that meet again in a later one.
constexpr double kDeviations = 12;
// The same where operands repeat, times the plain sum of all roundings: a
// bound, doubled for the reference's own, and again for another order of
// summation.
constexpr double kEqualErrors = 4;

// tanh, in units in the last place of the true value: what elementary.h says.
constexpr double kTanhUlps = 2;
// The logistic function: the quotient of an exponential (1 ulp) and a sum.
constexpr double kLogisticUlps = 3;
// Half types, computed in float32 and rounded once: one half, and what
// float32's own error can add to it near a tie.
constexpr double kHalfUlps = 0.51;
// The logistic function is zero below this many smallest normal numbers: see
// elementary.h.
constexpr double kLogisticVanishes = 2;

} // namespace kernel_tests
