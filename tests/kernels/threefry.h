// Threefry-4x32 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3" (2011), and the random factors that are made of it.

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "element.h"

namespace kernel_tests {

using mlx_recurrent::kernels::Drawn;

typedef std::array<uint32_t, 4> Words;

Words threefry(const Words& counter, const Words& key, int rounds);

// The random choices of one call.
struct Chances {
  uint32_t key[2] = {0, 0};
  int64_t rows = 1; // row n draws as row n % rows
  double zoneout = 0, recurrent_dropout = 0, input_dropout = 0;
  double zoneout_cell = 0;

  bool any() const {
    return zoneout > 0 || zoneout_cell > 0 || recurrent_dropout > 0 ||
        input_dropout > 0;
  }
  // Whether unit j of row n keeps that state at place t in time.
  bool keeps(int64_t n, int64_t t, int64_t j, int state = 0) const;
  // The same as what its update is multiplied with, of `count` units.
  std::vector<double> updates(
      int64_t n,
      int64_t t,
      int64_t count,
      int state = 0) const;
  // What dropout multiplies each unit, or feature, of row n with, as a number
  // of the type that is computed with.
  std::vector<double> factors(
      Drawn what,
      int64_t n,
      int64_t count,
      Type computing) const;

 private:
  bool hit(Drawn what, double probability, int64_t n, int64_t t, int64_t j)
      const;
};

} // namespace kernel_tests
