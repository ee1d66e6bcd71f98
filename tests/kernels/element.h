// Elements of the kernels' four types, to float64 and back.

#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Type;

struct Format {
  const char* name;
  int64_t bytes;
  int digits;       // of the significand
  int least;        // exponent of the smallest normal number
  int greatest;     // exponent of the largest number
  double unit;      // half the distance of 1 to the next number
  double computing; // the same, of the type that is computed with
};

const Format& format(Type type);

// The type that results of `type` are computed with.
inline Type computing(Type type) {
  return type == Type::float64 ? Type::float64 : Type::float32;
}

// The distance of neighbouring numbers of the type around `value`.
double ulp(Type type, long double value);

// The nearest number of the type, ties to even.
double rounded(Type type, double value);

double get(Type type, const void* from);
void put(Type type, void* to, double value); // rounded

} // namespace kernel_tests
