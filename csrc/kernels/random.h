// The random factors of dropout and zoneout, from counters: any step of any row
// can be drawn by itself, and again.
//
// Threefry-4x32 with 13 rounds: Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011.

#pragma once

#include "team_work.h"

namespace {

// Units whose words come from the same counters but for the block: the four
// words of a counter are those of units 16 apart.
constexpr int64_t kDrawnUnits = 64;
constexpr int64_t kDrawnBlocks = kDrawnUnits / 4;

typedef Simd<float>::bits Words;

INLINE Words rotated(Words x, int by) {
  return x << by | x >> (32 - by);
}

// A probability as a bound of words: those below it are hits.
INLINE uint32_t bound_of(double probability) {
  constexpr double kWords = 4294967296.0;
  double bound = __builtin_nearbyint(probability * kWords);
  return static_cast<uint32_t>(bound < kWords ? bound : kWords - 1);
}

struct Generator {
  uint32_t keys[5];

  explicit Generator(const Draws& draws) : keys{} {
    keys[0] = draws.key[0];
    keys[1] = draws.key[draws.key_stride];
    keys[4] = 0x1BD11BDA ^ keys[0] ^ keys[1];
  }

  // Words of units [first, last), `first` a multiple of kDrawnUnits; `to` has
  // room for whole multiples.
  void draw(
      Drawn what,
      int64_t row,
      int64_t t,
      int64_t first,
      int64_t last,
      uint32_t* to) const {
    constexpr int64_t lanes = Simd<float>::lanes;
    constexpr int rotations[8][2] = {
        {10, 26},
        {11, 21},
        {13, 27},
        {23, 5},
        {6, 20},
        {17, 11},
        {25, 10},
        {18, 20}};
    Words lane;
    for (int64_t i = 0; i < lanes; ++i) {
      lane[i] = static_cast<uint32_t>(i);
    }
    for (; first < last; first += kDrawnUnits, to += kDrawnUnits) {
      for (int64_t b = 0; b < kDrawnBlocks; b += lanes) {
        uint32_t block =
            static_cast<uint32_t>(first / kDrawnUnits * kDrawnBlocks + b);
        Words x[4] = {
            lane + block + keys[0],
            Words{} + static_cast<uint32_t>(t) + keys[1],
            Words{} + static_cast<uint32_t>(row) + keys[2],
            Words{} + static_cast<uint32_t>(what) + keys[3]};
#pragma GCC unroll 13
        for (int round = 0; round < 13; ++round) {
          int left = round % 2 == 0 ? 1 : 3;
          const int* by = rotations[round % 8];
          x[0] += x[left];
          x[left] = rotated(x[left], by[0]) ^ x[0];
          x[2] += x[4 - left];
          x[4 - left] = rotated(x[4 - left], by[1]) ^ x[2];
          if (round % 4 == 3) {
            int i = (round + 1) / 4;
            for (int j = 0; j < 4; ++j) {
              x[j] += keys[(i + j) % 5];
            }
            x[3] += static_cast<uint32_t>(i);
          }
        }
        for (int j = 0; j < 4; ++j) {
          store_as(to + j * kDrawnBlocks + b, x[j]);
        }
      }
    }
  }
};

} // namespace
