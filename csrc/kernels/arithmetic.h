// Roots, whole numbers and choices: what is exact, or rounded once.

#pragma once

#include "elementary.h"
#include "library.h"

namespace {

// Compilers make one instruction of the lanes.
template <class C>
INLINE Vec<C> square_root(Vec<C> x) {
  Vec<C> result;
#pragma GCC unroll 16
  for (int i = 0; i < Simd<C>::lanes; ++i) {
    result[i] = static_cast<C>(__builtin_sqrt(x[i]));
  }
  return result;
}

// The nearest whole number, ties to even.
template <class C>
INLINE Vec<C> nearest_whole(Vec<C> x) {
  // From here on there are no fractions.
  constexpr C whole = C(uint64_t{1} << Constants<C>::mantissa_bits);
  Vec<C> a = magnitude<C>(x);
  Vec<C> rounded = (a + whole) - whole;
  return a < whole ? with_sign_of<C>(rounded, x) : x;
}

// A difference, not a sum, keeps -0.
template <class C>
INLINE Vec<C> floor_of(Vec<C> x) {
  Vec<C> near = nearest_whole<C>(x);
  return near - (near > x ? splat<C>(C(1)) : Vec<C>{});
}

template <class C>
INLINE Vec<C> ceil_of(Vec<C> x) {
  Vec<C> near = nearest_whole<C>(x);
  return with_sign_of<C>(near + (near < x ? splat<C>(C(1)) : Vec<C>{}), x);
}

// NaN where either is, as in mlx.core.maximum.
template <class C>
INLINE Vec<C> greater_of(Vec<C> a, Vec<C> b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <class C>
INLINE Vec<C> lesser_of(Vec<C> a, Vec<C> b) {
  return ((a < b) | (a != a)) ? a : b;
}

// 0 of NaN, as in mlx.core.sign.
template <class C>
INLINE Vec<C> sign_of(Vec<C> x) {
  Vec<C> one = splat<C>(C(1));
  Vec<C> negative = x < C(0) ? -one : Vec<C>{};
  return x > C(0) ? one : negative;
}

// Of the sign of y, as in mlx.core.remainder.
template <class C>
INLINE Vec<C> remainder_of(Vec<C> x, Vec<C> y) {
  Vec<C> r = library_fmod<C>(x, y);
  return ((r != C(0)) & ((r < C(0)) != (y < C(0)))) ? r + y : r;
}

} // namespace
