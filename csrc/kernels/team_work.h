// How the members of a team share out one call, and its scratch memory.

#pragma once

#include "blas_product.h"

namespace {

using namespace mlx_recurrent::kernels;

// Hands out parts of the scratch memory. Run with a null base it only counts,
// so that one function describes a layout for both purposes.
struct Arena {
  uintptr_t base;
  size_t used = 0;

  template <class C>
  INLINE_MEMBER C* take(int64_t count) {
    used = (used + 63) & ~static_cast<size_t>(63);
    C* p = reinterpret_cast<C*>(base + used);
    used += static_cast<size_t>(count) * sizeof(C);
    return p;
  }
};

INLINE Arena arena_at(char* scratch) {
  // MLX's buffers are aligned to 16 bytes only.
  return Arena{(reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63}};
}

// A `sgemm` that is not null is what the matrix is multiplied by.
template <class T>
INLINE Panels<T> take_panels(
    Arena& arena,
    int64_t K,
    int64_t columns,
    bool stored,
    Sgemm sgemm = nullptr) {
  typedef Compute<T> C;
  Panels<T> panels{nullptr, stored};
  if (sgemm) {
    panels = {nullptr, false, sgemm, leading_dimension<C>(columns)};
    panels.data = reinterpret_cast<char*>(arena.take<C>(K * panels.ld));
    return panels;
  }
  panels.data = arena.take<char>(panels.bytes(K, columns));
  return panels;
}

// What multiplies `rows` rows of `terms` by a matrix with so many columns, by
// rows or by the columns of a partition's threads: null, the kernels.
template <class T>
INLINE Sgemm product_of(
    Sgemm sgemm,
    const Partition& p,
    int64_t rows,
    int64_t terms,
    int64_t columns) {
  int64_t own = p.split == Split::units ? columns / p.threads : columns;
  bool takes =
      sizeof(Compute<T>) == sizeof(float) && sgemm && by_blas(rows, terms, own);
  return takes ? sgemm : nullptr;
}

struct Range {
  int64_t first, last;
};

INLINE Range part_of(int64_t count, int64_t part, int64_t parts) {
  return Range{count * part / parts, count * (part + 1) / parts};
}

INLINE void wait(const Member& member) {
  if (member.count > 1) {
    member.wait(member.barrier, member.index);
  }
}

// A team of one; also stands in where only sizes are asked for.
constexpr Member kNobody = {0, 1, nullptr, nullptr};

// Work on each step is divided by panels of output columns (`units`) or not at
// all; the batch by slices, which the members take in turn.
struct Shares {
  const Partition& partition;
  const Member& member;
  int64_t N;

  INLINE_MEMBER bool by_units() const {
    return partition.split == Split::units;
  }
  // The panels of a step that are this member's.
  INLINE_MEMBER Range panels(int64_t count) const {
    return by_units() ? part_of(count, member.index, member.count)
                      : Range{0, count};
  }
  // Work that is done once for all members.
  INLINE_MEMBER Range once(int64_t count) const {
    return part_of(count, member.index, member.count);
  }
  INLINE_MEMBER Range rows(int slice) const {
    return part_of(N, slice, partition.slices);
  }
  INLINE_MEMBER int64_t most_rows() const {
    return ceil_div(N, partition.slices);
  }
  // Which of the per-member buffers is used: shared by all where they work on
  // one step together.
  INLINE_MEMBER int group() const {
    return by_units() ? 0 : member.index;
  }
  static INLINE_MEMBER int groups(const Partition& p) {
    return p.split == Split::units ? 1 : p.threads;
  }
  INLINE_MEMBER int first_slice() const {
    return by_units() ? 0 : member.index;
  }
  INLINE_MEMBER int slice_step() const {
    return by_units() ? 1 : member.count;
  }
  // Whether this member does what is done once for a row of its slice.
  INLINE_MEMBER bool takes(int64_t position) const {
    return !by_units() || position % member.count == member.index;
  }
  // Members that work on one step together meet after it.
  INLINE_MEMBER void after_step() const {
    if (by_units()) {
      wait(member);
    }
  }
};

template <class C>
INLINE Range columns_of(Range panels, int64_t columns) {
  return Range{
      minimum(panels.first * kPanel<C>, columns),
      minimum(panels.last * kPanel<C>, columns)};
}

} // namespace
