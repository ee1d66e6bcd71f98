// The interpreter of programs: each instruction runs over a block of vectors,
// which stay in the level-1 cache, so that its dispatch costs little.

#pragma once

#include "arithmetic.h"
#include "error_function.h"
#include "library.h"
#include "logarithm.h"
#include "team_work.h"
#include "trigonometric.h"

namespace {

constexpr int64_t kBlockVectors = 1024 / MLX_RECURRENT_VECTOR_BYTES;

template <class C>
constexpr int64_t kBlock = kBlockVectors * Simd<C>::lanes;

// One member's memory for running programs, one after another.
template <class C>
struct ProgramMemory {
  C* inputs = nullptr;    // a block each
  C* constants = nullptr; // a vector each, that one program fills
  C* slots = nullptr;     // a block each

  ProgramMemory() = default;

  ProgramMemory(
      Arena& arena,
      const Program& program,
      const Partition& p,
      int member) {
    int64_t blocks = (program.inputs + program.slots) * kBlock<C>;
    int64_t size = blocks + program.constant_count * Simd<C>::lanes;
    inputs = arena.take<C>(p.threads * size) + member * size;
    slots = inputs + program.inputs * kBlock<C>;
    constants = inputs + blocks;
  }
};

// Where an instruction finds its vectors: a constant's is the same each time.
template <class C>
struct BlockOperand {
  C* data;
  int64_t step;

  INLINE_MEMBER Vec<C> vector(int64_t i) const {
    return load_as<Vec<C>>(data + i * step);
  }
};

template <class C>
INLINE BlockOperand<C> block_operand(
    const Program& program,
    const ProgramMemory<C>& memory,
    int32_t number) {
  constexpr int64_t lanes = Simd<C>::lanes;
  if (number < program.inputs) {
    return {memory.inputs + number * kBlock<C>, lanes};
  }
  number -= program.inputs;
  if (number < program.constant_count) {
    return {memory.constants + number * lanes, 0};
  }
  number -= program.constant_count;
  return {memory.slots + number * kBlock<C>, lanes};
}

template <class C, class F>
INLINE void each(int64_t count, C* to, BlockOperand<C> a, F f) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; ++i) {
    store_as(to + i * Simd<C>::lanes, f(a.vector(i)));
  }
}

template <class C, class F>
INLINE void each(
    int64_t count,
    C* to,
    BlockOperand<C> a,
    BlockOperand<C> b,
    F f) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; ++i) {
    store_as(to + i * Simd<C>::lanes, f(a.vector(i), b.vector(i)));
  }
}

template <class C, class Mask>
INLINE Vec<C> truth(Mask mask) {
  return mask ? splat<C>(C(1)) : Vec<C>{};
}

// The C library's functions wait for the blocks that need them; what a lane
// becomes does not depend on the others.
template <class C>
INLINE bool any_large_angle(int64_t count, BlockOperand<C> a) {
  auto found = is_large_angle<C>(Vec<C>{});
  for (int64_t i = 0; i < count; ++i) {
    found |= is_large_angle<C>(a.vector(i));
  }
  return any_bits<C>((Vec<C>)found);
}

#define INLINE_LAMBDA __attribute__((always_inline))

template <class C>
static void run_instruction(
    Op op,
    int64_t count,
    C* to,
    BlockOperand<C> a,
    BlockOperand<C> b,
    BlockOperand<C> c) {
  typedef Vec<C> V;
  switch (op) {
    case Op::copy:
      return each(count, to, a, [](V x) INLINE_LAMBDA { return x; });
    case Op::negative:
      return each(count, to, a, [](V x) INLINE_LAMBDA { return -x; });
    case Op::abs:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return magnitude<C>(x); });
    case Op::square:
      return each(count, to, a, [](V x) INLINE_LAMBDA { return x * x; });
    case Op::sqrt:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return square_root<C>(x); });
    case Op::rsqrt:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return C(1) / square_root<C>(x);
      });
    case Op::exp:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return any_exponential<C>(x);
      });
    case Op::expm1:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return exponential_minus_one<C>(x);
      });
    case Op::log:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return logarithm<C>(x); });
    case Op::log2:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return binary_logarithm<C>(x);
      });
    case Op::log10:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return decimal_logarithm<C>(x);
      });
    case Op::log1p:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return logarithm_of_one_plus<C>(x);
      });
    case Op::sigmoid:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return logistic<C>(x); });
    case Op::tanh:
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return hyperbolic_tangent<C>(x);
      });
    case Op::erf:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return error_function<C>(x); });
    case Op::sin:
      if (any_large_angle(count, a)) {
        return each(count, to, a, [](V x) INLINE_LAMBDA { return sine<C>(x); });
      }
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return sine_of_small<C>(x); });
    case Op::cos:
      if (any_large_angle(count, a)) {
        return each(
            count, to, a, [](V x) INLINE_LAMBDA { return cosine<C>(x); });
      }
      return each(count, to, a, [](V x) INLINE_LAMBDA {
        return cosine_of_small<C>(x);
      });
    case Op::tan:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_tan<C>(x); });
    case Op::sinh:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_sinh<C>(x); });
    case Op::cosh:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_cosh<C>(x); });
    case Op::asin:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_asin<C>(x); });
    case Op::acos:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_acos<C>(x); });
    case Op::atan:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_atan<C>(x); });
    case Op::asinh:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_asinh<C>(x); });
    case Op::acosh:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_acosh<C>(x); });
    case Op::atanh:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return library_atanh<C>(x); });
    case Op::floor:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return floor_of<C>(x); });
    case Op::ceil:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return ceil_of<C>(x); });
    case Op::round:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return nearest_whole<C>(x); });
    case Op::sign:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return sign_of<C>(x); });
    case Op::logical_not:
      return each(
          count, to, a, [](V x) INLINE_LAMBDA { return truth<C>(x == C(0)); });
    case Op::add:
      return each(
          count, to, a, b, [](V x, V y) INLINE_LAMBDA { return x + y; });
    case Op::subtract:
      return each(
          count, to, a, b, [](V x, V y) INLINE_LAMBDA { return x - y; });
    case Op::multiply:
      return each(
          count, to, a, b, [](V x, V y) INLINE_LAMBDA { return x * y; });
    case Op::divide:
      return each(
          count, to, a, b, [](V x, V y) INLINE_LAMBDA { return x / y; });
    case Op::maximum:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return greater_of<C>(x, y);
      });
    case Op::minimum:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return lesser_of<C>(x, y);
      });
    case Op::power:
      return each(
          count, to, a, b, [](V x, V y) INLINE_LAMBDA { return power(x, y); });
    case Op::atan2:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return library_atan2<C>(x, y);
      });
    case Op::logaddexp:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return log_of_sum<C>(x, y);
      });
    case Op::remainder:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return remainder_of<C>(x, y);
      });
    case Op::greater:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x > y);
      });
    case Op::greater_equal:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x >= y);
      });
    case Op::less:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x < y);
      });
    case Op::less_equal:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x <= y);
      });
    case Op::equal:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x == y);
      });
    case Op::not_equal:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>(x != y);
      });
    case Op::logical_and:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>((x != C(0)) & (y != C(0)));
      });
    case Op::logical_or:
      return each(count, to, a, b, [](V x, V y) INLINE_LAMBDA {
        return truth<C>((x != C(0)) | (y != C(0)));
      });
    case Op::select:
      for (int64_t i = 0; i < count; ++i) {
        store_as(
            to + i * Simd<C>::lanes,
            a.vector(i) != C(0) ? b.vector(i) : c.vector(i));
      }
      return;
  }
}

#undef INLINE_LAMBDA

// Before the blocks of a program: its constants, as vectors.
template <class C>
INLINE void spread_constants(
    const Program& program,
    const ProgramMemory<C>& memory) {
  for (int32_t i = 0; i < program.constant_count; ++i) {
    store_as(
        memory.constants + i * Simd<C>::lanes,
        splat<C>(static_cast<C>(program.constants[i])));
  }
}

// Runs the program over the first `count` vectors of its inputs' blocks.
template <class C>
static void run_block(
    const Program& program,
    const ProgramMemory<C>& memory,
    int64_t count) {
  for (int32_t i = 0; i < program.count; ++i) {
    const Instruction& now = program.code[i];
    run_instruction<C>(
        now.op,
        count,
        block_operand(program, memory, now.to).data,
        block_operand(program, memory, now.a),
        block_operand(program, memory, now.b),
        block_operand(program, memory, now.c));
  }
}

// Where a program leaves its results.
template <class C>
struct BlockResults {
  const Program& program;
  const ProgramMemory<C>& memory;
  int64_t vector;

  INLINE_MEMBER Vec<C> operator[](int i) const {
    return block_operand(program, memory, program.results[i]).vector(vector);
  }
};

// Runs the program over `rows` rows of columns `columns`, a vector at a time:
// load(row, column, to) puts its inputs at `to`, a block apart, and
// store(row, column, results) takes what comes of them, one by one.
template <class C, class Load, class Store>
INLINE void run_program(
    const Program& program,
    const ProgramMemory<C>& memory,
    int64_t rows,
    Range columns,
    Load load,
    Store store) {
  constexpr int64_t lanes = Simd<C>::lanes;
  int64_t across = ceil_div(columns.last - columns.first, lanes);
  int64_t left = rows * across;
  int64_t row = 0, column = columns.first;
  while (left > 0) {
    int64_t count = minimum(left, kBlockVectors);
    auto for_each_vector = [&](int64_t& at_row, int64_t& at_column, auto use)
                               __attribute__((always_inline)) {
                                 for (int64_t i = 0; i < count; ++i) {
                                   use(i, at_row, at_column);
                                   at_column += lanes;
                                   if (at_column >= columns.last) {
                                     at_column = columns.first;
                                     ++at_row;
                                   }
                                 }
                               };
    int64_t first_row = row, first_column = column;
    for_each_vector(
        first_row,
        first_column,
        [&](int64_t i, int64_t r, int64_t j) __attribute__((always_inline)) {
          load(r, j, memory.inputs + i * lanes);
        });
    run_block<C>(program, memory, count);
    for_each_vector(
        row,
        column,
        [&](int64_t i, int64_t r, int64_t j) __attribute__((always_inline)) {
          store(r, j, BlockResults<C>{program, memory, i});
        });
    left -= count;
  }
}

} // namespace
