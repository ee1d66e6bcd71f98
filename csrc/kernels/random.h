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

INLINE double probability_of(const Draws& draws, Drawn what) {
  return draws.probabilities.of[static_cast<int>(what)];
}

// One of the 13 rounds on the words of a counter, by number from 0. A template,
// so that what it does with which word is known when it is compiled.
template <int round>
INLINE void mix(Words (&x)[4], const uint32_t (&keys)[5]) {
  if constexpr (round < 13) {
    constexpr int rotations[8][2] = {
        {10, 26},
        {11, 21},
        {13, 27},
        {23, 5},
        {6, 20},
        {17, 11},
        {25, 10},
        {18, 20}};
    constexpr int first = round % 2 == 0 ? 1 : 3;
    constexpr int second = 4 - first;
    x[0] += x[first];
    x[first] = rotated(x[first], rotations[round % 8][0]) ^ x[0];
    x[2] += x[second];
    x[second] = rotated(x[second], rotations[round % 8][1]) ^ x[2];
    if constexpr (round % 4 == 3) {
      constexpr int i = (round + 1) / 4;
      x[0] += keys[i % 5];
      x[1] += keys[(i + 1) % 5];
      x[2] += keys[(i + 2) % 5];
      x[3] += keys[(i + 3) % 5] + static_cast<uint32_t>(i);
    }
    mix<round + 1>(x, keys);
  }
}

struct Generator {
  uint32_t keys[5];

  Generator() = default;

  explicit Generator(const Draws& draws) : keys{} {
    keys[0] = draws.key[0];
    keys[1] = draws.key[draws.key_stride];
    keys[4] = 0x1BD11BDA ^ keys[0] ^ keys[1];
  }

  // Words of units [first, last), `first` a multiple of kDrawnUnits; `to` has
  // room for whole multiples.
  INLINE_MEMBER void draw(
      Drawn what,
      uint32_t row,
      int64_t t,
      int64_t first,
      int64_t last,
      uint32_t* to) const {
    constexpr int64_t lanes = Simd<float>::lanes;
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
            Words{} + (static_cast<uint32_t>(t) + keys[1]),
            Words{} + (row + keys[2]),
            Words{} + (static_cast<uint32_t>(what) + keys[3])};
        mix<0>(x, keys);
        for (int j = 0; j < 4; ++j) {
          store_as(to + j * kDrawnBlocks + b, x[j]);
        }
      }
    }
  }
};

} // namespace
