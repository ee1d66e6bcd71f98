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
// Operations of programs, in the same units: those that the processor rounds
// once, our functions on vectors, and the C library's, by its own word.
constexpr double kRoundedOnce = 0.501; // the reference is rounded too
constexpr double kVectorUlps = 2;
constexpr double kLibraryUlps = 3;
// A program of a few operations, together, in units of kDeviations.
constexpr double kProgramUlps = 1;
// Half types, computed in float32 and rounded once: one half, and what
// float32's own error can add to it near a tie.
constexpr double kHalfUlps = 0.51;
// Numbers on the way to a result that are not normal are zero: it may be wrong
// by so many of the smallest normal numbers.
constexpr double kVanishes = 2;

} // namespace kernel_tests
