// sin and cos. Coefficients: minimax polynomials, found by the Remez algorithm
// with 60 digits (mpmath).

#pragma once

#include "elementary.h"
#include "lanes.h"
#include "library.h"

namespace {

template <class C>
struct TrigonometricConstants;

template <>
struct TrigonometricConstants<float> {
  // (sin(r) / r - 1) / r^2 in r^2, on |r| <= pi / 4; error 4e-9 of sin(r).
  static constexpr float sin_terms[] = {
      -0.166666549974f,
      0.00833218048341f,
      -0.000195175354035f};
  // (cos(r) - 1 + r^2 / 2) / r^4; error 1e-10.
  static constexpr float cos_terms[] = {
      0.0416666468791f,
      -0.00138873678814f,
      2.44384735641e-5f};
};

template <>
struct TrigonometricConstants<double> {
  // Error 4e-18.
  static constexpr double sin_terms[] = {
      -0.166666666666666327848,
      0.00833333333332255513117,
      -0.000198412698298999190602,
      0.00000275573137191363206479,
      -2.50507618557710933816e-8,
      1.58969899773721783549e-10};
  // Error 5e-20.
  static constexpr double cos_terms[] = {
      0.0416666666666666002933,
      -0.00138888888888742423613,
      0.0000248015872895462695414,
      -2.75573143687675368853e-7,
      2.08757252916109943292e-9,
      -1.13597434886872991027e-11};
};

// Larger angles are left to the C library.
constexpr double kLargestAngle = 1 << 20;

// An angle as n quarter turns and r, |r| <= pi / 4.
template <class C>
struct Turned {
  Vec<C> r;
  Vec<C> n;
};

INLINE Turned<double> turned(Vec<double> x) {
  // Three parts of pi / 2: n times the first two is exact, and so are the
  // differences where they cancel.
  constexpr double first = 0x1.921fb544p+0;
  constexpr double second = 0x1.0b4611a6p-34;
  constexpr double third = 0x1.3198a2e037073p-69;
  constexpr double shift = Constants<double>::round_shift;
  Vec<double> n = (x * 0.63661977236758134308 + shift) - shift;
  return {((x - n * first) - n * second) - n * third, n};
}

INLINE Turned<float> turned(Vec<float> x) {
  Widened wide = widened(x);
  Turned<double> low = turned(wide.low), high = turned(wide.high);
  return {narrowed({low.r, high.r}), narrowed({low.n, high.n})};
}

// sin(x + ahead * pi / 2) of the angles that are not too large.
template <class C>
INLINE Vec<C> sine_ahead(Vec<C> x, int ahead) {
  typedef TrigonometricConstants<C> k;
  typedef typename Simd<C>::ints ints;
  Turned<C> t = turned(x);
  Vec<C> z = t.r * t.r;
  Vec<C> sine = t.r + t.r * z * polynomial<C>(k::sin_terms, z);
  Vec<C> cosine = C(1) - (z * C(0.5) - z * z * polynomial<C>(k::cos_terms, z));
  ints quarters = (ints)(t.n + Constants<C>::round_shift) + ahead;
  Vec<C> result = (quarters & 1) == 0 ? sine : cosine;
  return (quarters & 2) == 0 ? result : -result;
}

// `result`, but f of those x that are too large.
template <class C, class F>
INLINE Vec<C> with_large_angles(Vec<C> x, Vec<C> result, F f) {
  Vec<C> large = magnitude<C>(x) > C(kLargestAngle) ? x : Vec<C>{};
  if (!any_bits<C>(large)) {
    return result;
  }
  return large != C(0) ? f(large) : result;
}

template <class C>
INLINE Vec<C> sine(Vec<C> x) {
  Vec<C> result = sine_ahead<C>(x, 0);
  result = x == C(0) ? x : result; // -0 stays
  return with_large_angles<C>(x, result, library_sin<C>);
}

template <class C>
INLINE Vec<C> cosine(Vec<C> x) {
  return with_large_angles<C>(x, sine_ahead<C>(x, 1), library_cos<C>);
}

} // namespace
