// The product that leads from step to step: of the recurrence, of its
// derivative backward in time, and of the linear scan in either direction.

#pragma once

#include "team_work.h"

namespace {

template <class T>
struct RecurrentProduct {
  typedef Compute<T> C;
  const Panels<T>& matrix; // (H, H)
  int64_t H;
  int64_t ldh;
  Range panels; // of H, this member's
  int chains;

  RecurrentProduct(
      const Panels<T>& matrix,
      int64_t N,
      int64_t H,
      const Shares& shares)
      : matrix(matrix),
        H(H),
        ldh(leading_dimension<C>(H)),
        panels(shares.panels(panel_count<C>(H))),
        chains(chains_for(N)) {
  }

  // sums + matrix from, of the first `coming` of a step's `count` rows. Each
  // tile goes to `finish`, at last one of the rows that nothing comes to: they
  // lie at the sums' result, and without that have no values.
  template <class Finish>
  INLINE_MEMBER void step(
      int64_t i,
      int64_t coming,
      int64_t count,
      const C* from,
      const Sums<C>& sums,
      Finish finish) const {
    multiply<T>(
        coming,
        H,
        from,
        ldh,
        matrix,
        H,
        panels.first,
        panels.last,
        chains,
        sums,
        i % 2 == 1,
        finish);
    if (coming < count) {
      Range columns = columns_of<C>(panels, H);
      finish(
          Tile<C>{
              sums.at(coming, columns.first).result,
              sums.stride,
              coming,
              count - coming,
              columns.first,
              columns.last - columns.first});
    }
  }
};

} // namespace
