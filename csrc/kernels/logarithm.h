// Logarithms, and what is made of them. Coefficients: minimax polynomials,
// found by the Remez algorithm with 60 digits (mpmath).

#pragma once

#include "arithmetic.h"
#include "exponential.h"
#include "lanes.h"
#include "library.h"

namespace {

template <class C>
struct LogarithmConstants;

template <>
struct LogarithmConstants<float> {
  static constexpr float whole = 0x1p23f;
  static constexpr float log2e = 1.44269504f;
  static constexpr float log10e = 0.434294482f;
  // log10(2) in two parts, like ln 2 in elementary.h.
  static constexpr float log10_2_high = 0x1.344p-2f;
  static constexpr float log10_2_low = 4.60503898e-6f;
  static constexpr uint32_t root_half = 0x3f3504f3; // the bits of sqrt(1/2)
  // (2 atanh(s) - 2 s) / s^3 in s^2, for |s| <= (sqrt(2) - 1) / (sqrt(2) + 1);
  // error 2e-9.
  static constexpr float terms[] = {
      0.666667763467f,
      0.399775311023f,
      0.298722790684f};
};

template <>
struct LogarithmConstants<double> {
  static constexpr double whole = 0x1p52;
  static constexpr double log2e = 1.4426950408889634074;
  static constexpr double log10e = 0.43429448190325182765;
  static constexpr double log10_2_high = 0x1.34413509f7800p-2;
  static constexpr double log10_2_low = 2.836339455104496443748e-14;
  static constexpr uint64_t root_half = 0x3fe6a09e667f3bcd;
  // Error 3e-18.
  static constexpr double terms[] = {
      0.66666666666667336274,
      0.399999999994177789569,
      0.285714287419970153313,
      0.222221985907864338519,
      0.181835643390684523319,
      0.153140303810382397332,
      0.147963233524824463855};
};

// x = (1 + f) 2^n with sqrt(1/2) <= 1 + f < sqrt(2), for positive x.
template <class C>
struct Scaled {
  Vec<C> f;
  Vec<C> n;
};

template <class C>
INLINE Scaled<C> scaled(Vec<C> x) {
  typedef Constants<C> k;
  typedef LogarithmConstants<C> l;
  typedef typename Simd<C>::bits bits;
  typedef decltype(l::root_half) word;
  constexpr word one = word{k::exponent_bias} << k::mantissa_bits;
  bits biased = ((bits)x + (one - l::root_half)) >> k::mantissa_bits;
  // A whole number in the low bits of 2^mantissa_bits is its sum with it.
  bits whole = biased | (bits)splat<C>(l::whole);
  Vec<C> m = (Vec<C>)((bits)x + (one - (biased << k::mantissa_bits)));
  return {m - C(1), (Vec<C>)whole - (l::whole + k::exponent_bias)};
}

// log(1 + f) + n, where n comes in two parts.
template <class C>
INLINE Vec<C> log_of_scaled(Vec<C> f, Vec<C> n_high, Vec<C> n_low) {
  Vec<C> s = f / (f + C(2));
  Vec<C> z = s * s;
  Vec<C> half_square = f * f * C(0.5);
  // 2 atanh(s), with f - s f for 2 s: f is exact.
  Vec<C> rest =
      s * (half_square + z * polynomial<C>(LogarithmConstants<C>::terms, z));
  return n_high - ((half_square - (rest + n_low)) - f);
}

// log(x), which `finite` is where x is positive and finite.
template <class C>
INLINE Vec<C> log_or_special(Vec<C> x, Vec<C> finite) {
  C infinity = C(__builtin_inf());
  // Infinity and NaN stay what they are.
  Vec<C> result = x < infinity ? finite : x;
  result = x == C(0) ? splat<C>(-infinity) : result;
  return x < C(0) ? splat<C>(C(__builtin_nan(""))) : result;
}

template <class C>
INLINE Vec<C> logarithm(Vec<C> x) {
  typedef Constants<C> k;
  Scaled<C> s = scaled<C>(x);
  return log_or_special<C>(
      x, log_of_scaled<C>(s.f, s.n * k::ln2_high, s.n * k::ln2_low));
}

template <class C>
INLINE Vec<C> binary_logarithm(Vec<C> x) {
  Scaled<C> s = scaled<C>(x);
  Vec<C> y = log_of_scaled<C>(s.f, Vec<C>{}, Vec<C>{});
  return log_or_special<C>(x, y * LogarithmConstants<C>::log2e + s.n);
}

template <class C>
INLINE Vec<C> decimal_logarithm(Vec<C> x) {
  typedef LogarithmConstants<C> l;
  Scaled<C> s = scaled<C>(x);
  Vec<C> y = log_of_scaled<C>(s.f, Vec<C>{}, Vec<C>{});
  return log_or_special<C>(
      x, s.n * l::log10_2_high + (s.n * l::log10_2_low + y * l::log10e));
}

// log(1 + x).
template <class C>
INLINE Vec<C> logarithm_of_one_plus(Vec<C> x) {
  typedef Constants<C> k;
  Vec<C> sum = x + C(1);
  Scaled<C> s = scaled<C>(sum);
  // What the sum lost, relative to it; the larger of both has lost nothing.
  Vec<C> lost = sum > C(2) ? C(1) - (sum - x) : x - (sum - C(1));
  Vec<C> y =
      log_of_scaled<C>(s.f, s.n * k::ln2_high, s.n * k::ln2_low + lost / sum);
  y = log_or_special<C>(sum, y);
  // There is nothing to add up, and -0 stays.
  return sum == C(1) ? x : y;
}

// log(exp(a) + exp(b)).
template <class C>
INLINE Vec<C> log_of_sum(Vec<C> a, Vec<C> b) {
  C infinity = C(__builtin_inf());
  Vec<C> high = greater_of<C>(a, b);
  Vec<C> low = lesser_of<C>(a, b);
  Vec<C> sum = high + logarithm_of_one_plus<C>(any_exponential<C>(low - high));
  Vec<C> result = high == infinity ? high : sum;
  return low == -infinity ? high : result;
}

// x^y for float: in double, where the exponent loses nothing that counts.
INLINE Vec<double> positive_power(Vec<double> x, Vec<double> y) {
  return any_exponential<double>(y * logarithm<double>(x));
}

INLINE Vec<float> power(Vec<float> x, Vec<float> y) {
  typedef Vec<float> V;
  const float infinity = __builtin_inff();
  V size = magnitude<float>(x);
  Widened a = widened(size), b = widened(y);
  V result =
      narrowed({positive_power(a.low, b.low), positive_power(a.high, b.high)});
  auto whole = floor_of<float>(y) == y;
  V half = y * 0.5f;
  auto odd = whole & (floor_of<float>(half) != half);
  result = odd ? with_sign_of<float>(result, x) : result;
  // A negative finite number has real powers with whole exponents only.
  auto unreal = (x < 0.0f) & (x > -infinity) & ~whole;
  result = unreal ? splat<float>(__builtin_nanf("")) : result;
  auto one = (y == 0.0f) | (x == 1.0f) |
      ((x == -1.0f) & (magnitude<float>(y) == infinity));
  return one ? splat<float>(1.0f) : result;
}

INLINE Vec<double> power(Vec<double> x, Vec<double> y) {
  return library_pow<double>(x, y);
}

} // namespace
