// Vectors otherwise than whole: lane by lane, and floats as doubles.

#pragma once

#include "vec.h"

namespace {

// f of each lane, for functions of the C library. Only external functions may
// be called so: a shared inline one might be compiled for another processor.
template <class C, class F>
INLINE Vec<C> by_lanes(Vec<C> x, F f) {
  constexpr int lanes = Simd<C>::lanes;
  C values[lanes];
  store_as(values, x);
#pragma GCC unroll 1
  for (int i = 0; i < lanes; ++i) {
    values[i] = f(values[i]);
  }
  return load_as<Vec<C>>(values);
}

template <class C, class F>
INLINE Vec<C> by_lanes(Vec<C> x, Vec<C> y, F f) {
  constexpr int lanes = Simd<C>::lanes;
  C values[lanes], others[lanes];
  store_as(values, x);
  store_as(others, y);
#pragma GCC unroll 1
  for (int i = 0; i < lanes; ++i) {
    values[i] = f(values[i], others[i]);
  }
  return load_as<Vec<C>>(values);
}

// Whether a bit of any lane is set.
template <class C>
INLINE bool any_bits(Vec<C> x) {
  constexpr int count = MLX_RECURRENT_VECTOR_BYTES / 8;
  uint64_t words[count];
  __builtin_memcpy(words, &x, sizeof words);
  uint64_t all = 0;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    all |= words[i];
  }
  return all != 0;
}

// A vector of floats in double.
struct Widened {
  Vec<double> low, high;
};

typedef float HalfOfFloats
    __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES / 2)));

INLINE Widened widened(Vec<float> x) {
  HalfOfFloats halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  return {
      __builtin_convertvector(halves[0], Vec<double>),
      __builtin_convertvector(halves[1], Vec<double>)};
}

INLINE Vec<float> narrowed(Widened x) {
  HalfOfFloats halves[2] = {
      __builtin_convertvector(x.low, HalfOfFloats),
      __builtin_convertvector(x.high, HalfOfFloats)};
  Vec<float> result;
  __builtin_memcpy(&result, halves, sizeof result);
  return result;
}

} // namespace
