// erf. Coefficients: minimax polynomials, found by the Remez algorithm with 60
// digits (mpmath).

#pragma once

#include "elementary.h"

namespace {

template <class C>
struct ErfConstants;

template <>
struct ErfConstants<float> {
  // From here on erf rounds to 1.
  static constexpr float greatest = 4.0f;
  // erf(x) / x - 1 in x^2, on |x| <= 1; error 1.2e-9.
  static constexpr float terms[] = {
      0.128379165906f,
      -0.376126270715f,
      0.112835993016f,
      -0.0268544022341f,
      0.00518944406384f,
      -0.000801994523103f,
      7.88585121743e-5f};
  // -log(1 - erf(x)) in x - 1, for 1 <= x <= greatest; error of erf 1.1e-9.
  static constexpr float log_terms[] = {
      1.84960551565f,
      2.63896687956f,
      0.843117610171f,
      0.0415034881069f,
      -0.00989544222292f,
      0.00182936729651f,
      -0.000186374159451f};
};

template <>
struct ErfConstants<double> {
  static constexpr double greatest = 6.0;
  // Error 1.3e-19.
  static constexpr double terms[] = {
      0.128379167095512573768,
      -0.37612638903183748128,
      0.112837916709548819142,
      -0.0268661706450773627,
      0.00522397762482315340542,
      -0.000854832698110624158957,
      0.000120553311207542475155,
      -0.000014925595466262047769,
      0.00000164610033762885041624,
      -1.63503401805673128454e-7,
      1.46599392326241630264e-8,
      -1.13734040678145664109e-9,
      5.95798618041756876895e-11};
  // Error of erf 7e-18.
  static constexpr double log_terms[] = {
      1.84960550993324828509,
      2.63896751423477741316,
      0.843107256359330383999,
      0.0415610980266805965299,
      -0.0100338251951316039488,
      0.00197790131076495920296,
      -0.000237316798014216150972,
      -0.0000262953817467938543442,
      0.0000271972400177911247849,
      -0.00000966908819211602728145,
      0.00000212973260242449403081,
      -2.03250762431356991961e-7,
      -5.88182511765818346788e-8,
      3.36914099937950385911e-8,
      -8.59688994905645979118e-9,
      1.33256853259928941811e-9,
      -1.2070424428893967514e-10,
      4.92833358753019147201e-12};
};

template <class C>
INLINE Vec<C> error_function(Vec<C> x) {
  typedef ErfConstants<C> k;
  Vec<C> a = magnitude<C>(x);
  Vec<C> small = a + a * polynomial<C>(k::terms, a * a);
  Vec<C> bounded = a > k::greatest ? splat<C>(k::greatest) : a;
  Vec<C> large =
      C(1) - exponential<C>(-polynomial<C>(k::log_terms, bounded - C(1)));
  return with_sign_of<C>(a < C(1) ? small : large, x);
}

} // namespace
