// Every number that decides whether a result is right.

#pragma once

namespace kernel_tests {

// A result may differ from the reference by so many times the root of the sum
// of squares of all roundings on the way, each taken at its largest; beside the
// rounding to its type. Much of it is for what that estimate leaves out: the
// reference's own roundings in float64, and errors of one step that meet again
// in a later one, as they do where a matrix of few columns keeps one direction.
// 240,000 random cases used at most 0.69 of all that is allowed.
constexpr double kDeviations = 16;
// And by so many roundings of the largest value of the result. What has died
// away over many steps keeps the errors of when it was large.
constexpr double kVanishing = 1;
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
