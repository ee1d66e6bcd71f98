// exp(x) and exp(x) - 1 of any number.

#pragma once

#include "elementary.h"

namespace {

template <class C>
struct ExponentialRange;

template <>
struct ExponentialRange<float> {
  // exp of less than `least` is smaller than any normal number.
  static constexpr float least = -87.3365448f;
  // Above `greatest` exp is infinite, and below -`unit` exp(x) - 1 is -1.
  static constexpr float greatest = 89.0f;
  static constexpr float unit = 20.0f;
};

template <>
struct ExponentialRange<double> {
  static constexpr double least = -708.39641853226411;
  static constexpr double greatest = 710.0;
  static constexpr double unit = 40.0;
};

// Results that are not normal numbers are zero. NaN stays NaN.
template <class C>
INLINE Vec<C> any_exponential(Vec<C> x) {
  typedef ExponentialRange<C> k;
  typename Simd<C>::ints n;
  Vec<C> bounded = x > k::greatest ? splat<C>(k::greatest) : x;
  bounded = bounded < k::least ? splat<C>(k::least) : bounded;
  Vec<C> e = reduced_exponential<C>(bounded, n) + C(1);
  // 2^n in two factors: the largest is no number of its own.
  auto above = n > 0; // -1 where it is so
  Vec<C> result = (e * (above ? splat<C>(C(2)) : splat<C>(C(1)))) *
      power_of_two<C>(n + above);
  return x < k::least ? Vec<C>{} : result;
}

template <class C>
INLINE Vec<C> exponential_minus_one(Vec<C> x) {
  typedef ExponentialRange<C> k;
  typename Simd<C>::ints n;
  Vec<C> bounded = x > k::greatest ? splat<C>(k::greatest) : x;
  bounded = bounded < -k::unit ? splat<C>(-k::unit) : bounded;
  Vec<C> p = reduced_exponential<C>(bounded, n);
  // (1 + p) 2^n - 1, halved until the end: 2^n may be too large.
  Vec<C> half = power_of_two<C>(n - 1);
  Vec<C> result = half * p + (half - C(0.5));
  return with_sign_of<C>(result + result, x);
}

} // namespace
