// A program over the elements of whole arrays.

#pragma once

#include "program.h"

namespace {

template <class T>
static size_t pointwise_scratch(const PointwiseArgs& args, const Partition& p) {
  Arena arena{0};
  ProgramMemory<Compute<T>> memory(arena, *args.program, p, 0);
  return arena.used + 64;
}

template <class T>
static void run_pointwise(
    const PointwiseArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  constexpr int64_t lanes = Simd<C>::lanes;
  const Program& program = *args.program;
  Arena arena = arena_at(scratch);
  ProgramMemory<C> memory(arena, program, p, member.index);
  spread_constants(program, memory);
  Element<T>* out = static_cast<Element<T>*>(args.out);
  Shares shares{p, member, 1};
  Range own = shares.once(ceil_div(args.count, lanes));
  Range elements = {own.first * lanes, minimum(own.last * lanes, args.count)};
  run_program<C>(
      program,
      memory,
      1,
      elements,
      [&](int64_t, int64_t i, C* to) __attribute__((always_inline)) {
        for (int32_t k = 0; k < program.inputs; ++k, to += kBlock<C>) {
          const auto* from = static_cast<const Element<T>*>(args.inputs[k]);
          store_as(to, load_some<T>(from + i, args.count - i));
        }
      },
      [&](int64_t, int64_t i, const BlockResults<C>& results)
          __attribute__((always_inline)) {
            store_some<T>(out + i, results[0], args.count - i);
          });
}

} // namespace
