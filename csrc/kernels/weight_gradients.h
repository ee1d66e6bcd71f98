// The sums over all rows and steps: the gradients of the weights.

#pragma once

#include "backward_layout.h"

namespace {

template <class T>
struct WeightGradients {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  const BackwardWork<T>& work;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const BackwardLayout<T>& layout = work.layout;
  Range columns = work.columns;
  Range inputs = work.inputs;
  int64_t ldh = work.ldh;

  // Adds those of a chunk, at whose first step Whh saw something or not.
  void add(int slice, const Chunk& chunk, const C* delta, bool any) const {
    if (args.dWhh) {
      int64_t skipped = any ? 0 : chunk.count(chunk.first);
      add_dWhh(
          chunk.rows() - skipped,
          delta + skipped * ldh,
          work.seen_rows() + skipped * ldh,
          layout.dWhh.of(slice));
    }
    if (args.dWxh) {
      add_dWxh(chunk, delta, layout.dWxh.of(slice));
    }
    if (args.dbias) {
      add_dbias(chunk.rows(), delta, layout.dbias.of(slice));
    }
    move_chunk_sums(slice);
  }

  // This member's columns of the slice's sums become zero.
  void clear(int slice) const {
    layout.dWhh.clear_columns(slice, work.panels);
    layout.dWxh.clear_columns(slice, inputs);
    const SliceSums<T>* rows[] = {
        &layout.dbias, &layout.dhidden0, &layout.dleak};
    for (const auto* sum : rows) {
      sum->clear_columns(slice, work.panels);
    }
    clear_chunk_sums();
  }

  // What a chunk's steps have added up goes to the slice's sums.
  void move_chunk_sums(int slice) const {
    if (layout.is_plain()) {
      return;
    }
    if (args.dhidden0) {
      add_columns(layout.sums[0], layout.dhidden0.of(slice));
    }
    if (args.dleak) {
      add_columns(layout.sums[1], layout.dleak.of(slice));
    }
    clear_chunk_sums();
  }

  // Adds up what the slices have.
  void write() const {
    layout.dWhh.write(work.shares.once(g.H));
    layout.dWxh.write(work.shares.once(g.H));
    const SliceSums<T>* rows[] = {
        &layout.dbias, &layout.dhidden0, &layout.dleak};
    for (const auto* sum : rows) {
      sum->write(work.shares.once(1));
    }
  }

 private:
  void add_dWhh(int64_t K, const C* delta, const C* seen, C* sums) const {
    for (int64_t p = work.panels.first; p < work.panels.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      const C* from = seen + j0;
      accumulate_outer<C>(
          K,
          delta,
          ldh,
          layout.panel,
          minimum(kPanel<C>, g.H - j0),
          0,
          g.H,
          sums + j0,
          layout.dWhh.ld,
          [&](C* to) {
            for (int64_t j = 0; j < kPanel<C>; j += lanes) {
              store_as(to + j, load_as<Vec<C>>(from + j));
            }
            from += ldh;
          });
    }
  }

  void add_dWxh(const Chunk& chunk, const C* delta, C* sums) const {
    const Terms<T>& terms = layout.terms;
    for (int64_t p = inputs.first; p < inputs.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      int64_t width = minimum(kPanel<C>, g.D - j0);
      const RowAt* at = layout.row_at;
      accumulate_outer<C>(
          chunk.rows(),
          delta,
          ldh,
          layout.panel,
          width,
          0,
          g.H,
          sums + j0,
          layout.dWxh.ld,
          [&](C* to) {
            stage_panel_row<T>(
                to,
                row_of<T>(g.x, work.row_number(at->r), at->t) +
                    j0 * g.x.feature_stride,
                g.x.feature_stride,
                width);
            terms.drop_inputs(at->r, to - j0, j0, j0 + width);
            ++at;
          });
    }
  }

  void add_dbias(int64_t K, const C* delta, C* sums) const {
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      // In blocks, like the other sums: a running sum over all steps would
      // lose what each adds.
      Vec<C> total = {};
      for (int64_t k = 0; k < K; ++k) {
        total += load_as<Vec<C>>(delta + k * ldh + j);
      }
      store_as(sums + j, load_as<Vec<C>>(sums + j) + total);
    }
  }

  void clear_chunk_sums() const {
    for (C* sum : layout.sums) {
      ::clear(sum, ldh);
    }
  }

  INLINE_MEMBER void add_columns(const C* from, C* to) const {
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      store_as(to + j, load_as<Vec<C>>(to + j) + load_as<Vec<C>>(from + j));
    }
  }
};

} // namespace
