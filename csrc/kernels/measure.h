// Loops whose time is a figure of the machine: what the kernels can reach at
// most with this instruction set.

#pragma once

#include "elementary.h"

namespace {

// As many independent chains as hide the latency of a multiply-add, with
// registers left for its operands.
constexpr int kChains = MLX_RECURRENT_REGISTERS >= 32 ? 24 : 12;

// Returns how many operations it did, a multiply-add being two.
static double run_multiply_add(int64_t rounds, float* operands) {
  // Distinct, and unknown to the compiler: equal chains would be computed once.
  Vec<float> factor = splat<float>(operands[0]);
  Vec<float> addend = splat<float>(operands[1]);
  Vec<float> chains[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    chains[i] = splat<float>(operands[2] + static_cast<float>(i));
  }
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      chains[i] = chains[i] * factor + addend;
    }
  }
  Vec<float> sum = {};
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    sum += chains[i];
  }
  operands[3] = sum[0];
  return 2.0 * static_cast<double>(rounds) * kChains * Simd<float>::lanes;
}

// Reads `count` floats, a multiple of 256, `rounds` times.
static void run_read(
    int64_t rounds,
    const float* data,
    int64_t count,
    float* sink) {
  constexpr int vectors = 8;
  constexpr int lanes = Simd<float>::lanes;
  Bits sums[vectors] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < count; i += vectors * lanes) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        sums[v] ^= load_as<Bits>(data + i + v * lanes);
      }
    }
    // Each round reads again.
    asm volatile("" ::: "memory");
  }
  Bits all = {};
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    all ^= sums[v];
  }
  *sink = ((Vec<float>)all)[0];
}

static void run_tanh(
    int64_t rounds,
    const float* data,
    int64_t count,
    float* out) {
  constexpr int lanes = Simd<float>::lanes;
  for (int64_t round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < count; i += lanes) {
      store_as(
          out + i, hyperbolic_tangent<float>(load_as<Vec<float>>(data + i)));
    }
    asm volatile("" ::: "memory");
  }
}

} // namespace
