// The product that leads from step to step: of the recurrence, of its
// derivative backward in time, and of the linear scan in either direction.

#pragma once

#include "team_work.h"

namespace {

template <class T, int slabs = 1>
struct RecurrentProduct {
  typedef Compute<T> C;
  const Panels<T>& matrix; // (depth, slabs * H)
  int64_t H;
  int64_t depth;       // terms of a product
  int64_t ld;          // of what it is taken of
  int64_t slab_stride; // of its results
  Range panels;        // of H, this member's
  int chains;
  int count; // of slabs, where it is not known before

  RecurrentProduct(
      const Panels<T>& matrix,
      int64_t N,
      int64_t H,
      const Shares& shares)
      : RecurrentProduct(matrix, N, H, shares, H, leading_dimension<C>(H), 0) {
  }

  RecurrentProduct(
      const Panels<T>& matrix,
      int64_t N,
      int64_t H,
      const Shares& shares,
      int64_t depth,
      int64_t ld,
      int64_t slab_stride,
      int count = slabs)
      : matrix(matrix),
        H(H),
        depth(depth),
        ld(ld),
        slab_stride(slab_stride),
        panels(shares.panels(panel_count<C>(H))),
        chains(chains_for(N)),
        count(count) {
  }

  // sums + matrix from, of the first `coming` of a step's `rows` rows. Each
  // tile goes to `finish`, at last one of the rows that nothing comes to: they
  // lie at the sums' result, and without that have no values.
  template <class Finish>
  INLINE_MEMBER void step(
      int64_t i,
      int64_t coming,
      int64_t rows,
      const C* from,
      const Sums<C>& sums,
      Finish finish) const {
    multiply<T, slabs>(
        coming,
        depth,
        from,
        ld,
        matrix,
        H,
        panels.first,
        panels.last,
        chains,
        sums,
        i % 2 == 1,
        finish,
        slab_stride,
        count);
    if (coming < rows) {
      Range columns = columns_of<C>(panels, H);
      finish(
          Tile<C>{
              sums.at(coming, columns.first).result,
              sums.stride,
              coming,
              rows - coming,
              columns.first,
              columns.last - columns.first});
    }
  }
};

} // namespace
