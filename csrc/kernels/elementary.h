// exp and tanh on vectors, free of branches. Coefficients: Chebyshev fits of
// the functions named beside them, computed with 50 digits (mpmath.chebyfit).

#pragma once

#include "vec.h"

namespace {

template <class C>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float log2e = 1.44269504f;
  // ln 2 in two parts; the first has zeros enough for n * ln2_high to be exact.
  static constexpr float ln2_high = 0x1.62e4p-1f;
  static constexpr float ln2_low = 0x1.7f7d1cf8p-20f;
  static constexpr float round_shift = 0x1.8p23f;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  // Above this tanh rounds to 1 (9.01 in float32), with room to spare.
  static constexpr float tanh_saturation = 20.0f;
  // Below -this exp(x) is no longer a normal number.
  static constexpr float exp_range = 87.0f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, error 8e-9 of exp(r).
  static constexpr float exp_terms[] = {
      0.5f,
      0.16666575985420823f,
      0.041666553362644262f,
      0.0083633458109871111f,
      0.0013926391896140632f};
  // (tanh(x) / x - 1) / x^2 in x^2, on |x| <= 0.56, error 5e-10.
  static constexpr float tanh_terms[] = {
      -0.33333333286363057f,
      0.13333322523330471f,
      -0.053964198283397108f,
      0.021813261130634413f,
      -0.0085047696114240264f,
      0.0024953795604686838f};
};

template <>
struct Constants<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0x1.62e42fefa0000p-1;
  static constexpr double ln2_low = 0x1.cf79abc9e3b39p-40;
  static constexpr double round_shift = 0x1.8p52;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr double tanh_saturation = 40.0;
  static constexpr double exp_range = 708.0;
  // Error 1.7e-19 of exp(r).
  static constexpr double exp_terms[] = {
      0.5,
      0.16666666666666671113,
      0.041666666666666669842,
      0.0083333333333259731077,
      0.0013888888888883632605,
      0.00019841269875385479525,
      0.000024801587325951109373,
      2.7557254685728802533e-6,
      2.7557273132896040925e-7,
      2.5105513541847084876e-8,
      2.0914898727175524234e-9};
  // Error 3.4e-19.
  static constexpr double tanh_terms[] = {
      -0.333333333333333333,
      0.13333333333333302482,
      -0.053968253968206970419,
      0.02186948853334610774,
      -0.0088632354429728005662,
      0.0035921264450435887216,
      -0.0014558158462893047369,
      0.00058988447449066338778,
      -0.00023838728841244364023,
      0.000094334204309829723112,
      -0.000033409675084595598225,
      7.6821491450967478023e-6};
};

template <class C, int Count>
INLINE Vec<C> polynomial(const C (&terms)[Count], Vec<C> x) {
  Vec<C> sum = splat<C>(terms[Count - 1]);
#pragma GCC unroll 16
  for (int i = Count - 2; i >= 0; --i) {
    sum = sum * x + terms[i];
  }
  return sum;
}

template <class C>
INLINE Vec<C> magnitude(Vec<C> x) {
  typedef typename Simd<C>::bits bits;
  return (Vec<C>)(((bits)x << 1) >> 1);
}

template <class C>
INLINE Vec<C> with_sign_of(Vec<C> x, Vec<C> sign) {
  typedef typename Simd<C>::bits bits;
  bits top = (bits)sign ^ (bits)magnitude<C>(sign);
  return (Vec<C>)((bits)x | top);
}

// exp(x) = (1 + p) 2^n with p = exp(r) - 1, |r| <= ln(2) / 2; NaN stays NaN in
// p.
template <class C>
INLINE Vec<C> reduced_exponential(Vec<C> x, typename Simd<C>::ints& n) {
  typedef Constants<C> k;
  typedef typename Simd<C>::ints ints;
  Vec<C> shifted = x * k::log2e + k::round_shift;
  Vec<C> whole = shifted - k::round_shift;
  Vec<C> r = (x - whole * k::ln2_high) - whole * k::ln2_low;
  // The low bits of `shifted` hold n.
  n = (ints)shifted - (ints)(Vec<C>{} + k::round_shift);
  return (r * r) * polynomial<C>(k::exp_terms, r) + r;
}

// 2^n. The scale is a factor, not an addition to the exponent, so that NaN is
// not turned into a number.
template <class C>
INLINE Vec<C> power_of_two(typename Simd<C>::ints n) {
  typedef Constants<C> k;
  return (Vec<C>)((n + k::exponent_bias) << k::mantissa_bits);
}

// exp(x) for |x| <= exp_range; NaN stays NaN.
template <class C>
INLINE Vec<C> exponential(Vec<C> x) {
  typename Simd<C>::ints n;
  Vec<C> p = reduced_exponential<C>(x, n);
  return (p + C(1)) * power_of_two<C>(n);
}

// Within 2 ulp of the true value, never beyond 1.
template <class C>
INLINE Vec<C> hyperbolic_tangent(Vec<C> x) {
  typedef Constants<C> k;
  Vec<C> a = magnitude<C>(x);
  Vec<C> squared = a * a;
  Vec<C> small = a + (a * squared) * polynomial<C>(k::tanh_terms, squared);
  Vec<C> bounded = a > k::tanh_saturation ? splat<C>(k::tanh_saturation) : a;
  Vec<C> large = C(1) - C(2) / (exponential<C>(bounded + bounded) + C(1));
  return with_sign_of<C>(a < C(0.55) ? small : large, x);
}

// Results below the smallest normal number, and some just above it, become
// zero.
template <class C>
INLINE Vec<C> logistic(Vec<C> x) {
  typedef Constants<C> k;
  Vec<C> a = magnitude<C>(x);
  Vec<C> bounded = a > k::exp_range ? splat<C>(k::exp_range) : a;
  Vec<C> t = exponential<C>(-bounded);
  Vec<C> lower = x < -k::exp_range ? Vec<C>{} : t;
  return (x < C(0) ? lower : splat<C>(C(1))) / (C(1) + t);
}

} // namespace
