// sin and cos. Coefficients: minimax polynomials, found by the Remez algorithm
// with 60 digits (mpmath).

#pragma once

#include "elementary.h"
#include "library.h"

namespace {

template <class C>
struct TrigonometricConstants;

template <>
struct TrigonometricConstants<float> {
  // Larger angles are left to the C library.
  static constexpr float greatest = 199.0f;
  // pi / 2 in three parts: the quarter turns in `greatest` times the first two
  // are exact, and so are the differences where they cancel.
  static constexpr float quarter[] = {
      0x1.921fp+0f,
      0x1.6a88p-17f,
      0x1.0b461p-34f};
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
  static constexpr double greatest = 1 << 20;
  static constexpr double quarter[] = {
      0x1.921fb544p+0,
      0x1.0b4611a6p-34,
      0x1.3198a2e037073p-69};
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

// sin(x + ahead * pi / 2) for |x| <= greatest.
template <class C>
INLINE Vec<C> sine_ahead(Vec<C> x, int ahead) {
  typedef TrigonometricConstants<C> k;
  typedef typename Simd<C>::ints ints;
  Vec<C> shifted = x * C(0.63661977236758134308) + Constants<C>::round_shift;
  Vec<C> n = shifted - Constants<C>::round_shift;
  Vec<C> high = x - n * k::quarter[0];
  Vec<C> middle = high - n * k::quarter[1];
  // What the difference lost.
  Vec<C> low = (high - middle) - n * k::quarter[1];
  Vec<C> r = middle + (low - n * k::quarter[2]);
  Vec<C> z = r * r;
  Vec<C> sine = r + r * z * polynomial<C>(k::sin_terms, z);
  Vec<C> cosine = C(1) - (z * C(0.5) - z * z * polynomial<C>(k::cos_terms, z));
  // The low bits of `shifted` hold n.
  ints quarters = (ints)shifted + ahead;
  Vec<C> result = (quarters & 1) == 0 ? sine : cosine;
  return (quarters & 2) == 0 ? result : -result;
}

template <class C>
INLINE auto is_large_angle(Vec<C> x) {
  return magnitude<C>(x) > TrigonometricConstants<C>::greatest;
}

// Both for |x| <= greatest.
template <class C>
INLINE Vec<C> sine_of_small(Vec<C> x) {
  return x == C(0) ? x : sine_ahead<C>(x, 0); // -0 stays
}

template <class C>
INLINE Vec<C> cosine_of_small(Vec<C> x) {
  return sine_ahead<C>(x, 1);
}

template <class C>
INLINE Vec<C> sine(Vec<C> x) {
  return is_large_angle<C>(x) ? library_sin<C>(x) : sine_of_small<C>(x);
}

template <class C>
INLINE Vec<C> cosine(Vec<C> x) {
  return is_large_angle<C>(x) ? library_cos<C>(x) : cosine_of_small<C>(x);
}

} // namespace
