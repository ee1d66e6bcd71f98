#include "threefry.h"

#include <cmath>

namespace kernel_tests {

namespace {

constexpr int kRounds = 13;

uint32_t rotated(uint32_t x, int by) {
  return (x << by) | (x >> (32 - by));
}

} // namespace

Words threefry(const Words& counter, const Words& key, int rounds) {
  constexpr int rotations[8][2] = {
      {10, 26},
      {11, 21},
      {13, 27},
      {23, 5},
      {6, 20},
      {17, 11},
      {25, 10},
      {18, 20}};
  const uint32_t keys[5] = {
      key[0],
      key[1],
      key[2],
      key[3],
      0x1BD11BDA ^ key[0] ^ key[1] ^ key[2] ^ key[3]};
  Words x = counter;
  auto inject = [&](uint32_t number) {
    for (uint32_t j = 0; j < 4; ++j) {
      x[j] += keys[(number + j) % 5];
    }
    x[3] += number;
  };
  inject(0);
  for (int round = 0; round < rounds; ++round) {
    auto [first, second] = rotations[round % 8];
    // Each of words 0 and 2 is mixed with one of 1 and 3, in turn.
    auto mix = [&](uint32_t& a, uint32_t& b, int by) {
      a += b;
      b = rotated(b, by) ^ a;
    };
    if (round % 2 == 0) {
      mix(x[0], x[1], first);
      mix(x[2], x[3], second);
    } else {
      mix(x[0], x[3], first);
      mix(x[2], x[1], second);
    }
    if (round % 4 == 3) {
      inject(static_cast<uint32_t>(round / 4 + 1));
    }
  }
  return x;
}

bool Chances::hit(
    Drawn what,
    double probability,
    int64_t n,
    int64_t t,
    int64_t j) const {
  // Units 16 apart share a counter, whose four words they are.
  Words words = threefry(
      {static_cast<uint32_t>(16 * (j / 64) + j % 16),
       static_cast<uint32_t>(t),
       static_cast<uint32_t>(n % rows),
       static_cast<uint32_t>(what)},
      {key[0], key[1], 0, 0},
      kRounds);
  return words[static_cast<size_t>(j % 64 / 16)] <
      std::nearbyint(std::ldexp(probability, 32));
}

bool Chances::keeps(int64_t n, int64_t t, int64_t j, int state) const {
  Drawn what = mlx_recurrent::kernels::zoneout_of(state);
  double probability = state == 0 ? zoneout : zoneout_cell;
  return probability > 0 && hit(what, probability, n, t, j);
}

std::vector<double> Chances::updates(
    int64_t n,
    int64_t t,
    int64_t count,
    int state) const {
  std::vector<double> result;
  for (int64_t j = 0; j < count; ++j) {
    result.push_back(keeps(n, t, j, state) ? 0 : 1);
  }
  return result;
}

std::vector<double> Chances::factors(
    Drawn what,
    int64_t n,
    int64_t count,
    Type computing) const {
  double probability =
      what == Drawn::input_dropout ? input_dropout : recurrent_dropout;
  std::vector<double> result(static_cast<size_t>(count), 1);
  for (int64_t j = 0; probability > 0 && j < count; ++j) {
    result[static_cast<size_t>(j)] = hit(what, probability, n, 0, j)
        ? 0
        : rounded(computing, 1 / (1 - probability));
  }
  return result;
}

} // namespace kernel_tests
