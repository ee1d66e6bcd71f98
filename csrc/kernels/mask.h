// The random factors as arrays, for what does not draw them itself.

#pragma once

#include "random.h"

namespace {

// It needs none, but every call has some.
static size_t mask_scratch(const MaskArgs&, const Partition&) {
  return 64;
}

template <class T>
static void run_mask(
    const MaskArgs& args,
    const Partition& p,
    const Member& member,
    char*) {
  typedef Compute<T> C;
  const Draws& draws = args.draws;
  double probability = probability_of(draws, args.what);
  uint32_t bound = bound_of(probability);
  C otherwise =
      keeps_units(args.what) ? C(1) : static_cast<C>(1 / (1 - probability));
  Generator generator(draws);
  Element<T>* out = static_cast<Element<T>*>(args.out);
  Shares shares{p, member, args.N};
  Range own = shares.once(args.N * args.steps);
  for (int64_t i = own.first; i < own.last; ++i) {
    auto row = static_cast<uint32_t>(i / args.steps % draws.rows);
    for (int64_t j = 0; j < args.features; j += kDrawnUnits) {
      int64_t last = minimum(j + kDrawnUnits, args.features);
      uint32_t words[kDrawnUnits];
      C factors[kDrawnUnits];
      generator.draw(args.what, row, i % args.steps, j, last, words);
      for (int64_t k = 0; k < kDrawnUnits; ++k) {
        factors[k] = words[k] < bound ? C(0) : otherwise;
      }
      write_row<T>(out + i * args.features + j, factors, 0, last - j);
    }
  }
}

} // namespace
