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
  const Slabs<C>& slabs = layout.slabs;
  const CellShape& shape = slabs.shape;

  // Adds those of a chunk, at whose first step Whh saw something or not.
  void add(int slice, const Chunk& chunk, const C* delta, bool any) const {
    if (args.dWhh) {
      int64_t skipped = any ? 0 : chunk.count(chunk.first);
      add_dWhh(
          chunk.rows() - skipped,
          delta + skipped * slabs.ld,
          work.seen_rows() + skipped * ldh,
          layout.dWhh.of(slice));
    }
    if (args.dWxh) {
      add_dWxh(chunk, delta, layout.dWxh.of(slice));
    }
    for (int k = 0; args.dbias && k < shape.input_slabs(); ++k) {
      add_rows(
          chunk.rows(),
          delta + slabs.input_column() + k * slabs.width,
          layout.dbias.of(slice) + k * layout.dbias.ld);
    }
    for (int k = 0; args.dbhn && k < shape.state_only; ++k) {
      add_rows(
          chunk.rows(),
          delta + k * slabs.width,
          layout.dbhn.of(slice) + k * layout.dbhn.ld);
    }
    move_chunk_sums(slice);
  }

  // This member's columns of the slice's sums become zero.
  void clear(int slice) const {
    layout.dWhh.clear_columns(slice, work.panels);
    layout.dWxh.clear_columns(slice, inputs);
    each_vector([&](const SliceSums<T>& sum) {
      sum.clear_columns(slice, work.panels);
    });
    clear_chunk_sums();
  }

  // What a chunk's steps have added up goes to the slice's sums.
  void move_chunk_sums(int slice) const {
    if (layout.is_plain() && !args.dparameters) {
      return;
    }
    for (int s = 0; s < shape.states; ++s) {
      if (args.dhidden0[s]) {
        add_columns(layout.sums[s], layout.dhidden0[s].of(slice));
      }
    }
    if (args.dleak) {
      add_columns(layout.leak_sum, layout.dleak.of(slice));
    }
    for (int k = 0; args.dparameters && k < shape.parameters; ++k) {
      add_columns(
          layout.parameter_sums + k * ldh,
          layout.dparameters.of(slice) + k * layout.dparameters.ld);
    }
    clear_chunk_sums();
  }

  // Adds up what the slices have.
  void write() const {
    layout.dWhh.write(work.shares.once(layout.dWhh.M));
    layout.dWxh.write(work.shares.once(layout.dWxh.M));
    each_vector(
        [&](const SliceSums<T>& sum) { sum.write(work.shares.once(sum.M)); });
  }

 private:
  // Calls use(sum) for those that are no matrices.
  template <class Use>
  void each_vector(Use use) const {
    use(layout.dbias);
    use(layout.dbhn);
    use(layout.dparameters);
    for (const SliceSums<T>& sum : layout.dhidden0) {
      use(sum);
    }
    use(layout.dleak);
  }

  void add_dWhh(int64_t K, const C* delta, const C* seen, C* sums) const {
    if constexpr (sizeof(C) == sizeof(float)) {
      if (layout.of_state) {
        for (int k = 0; k < shape.state_slabs(); ++k) {
          add_outer(
              layout.of_state,
              K,
              g.H,
              columns.last - columns.first,
              delta + k * slabs.width,
              slabs.ld,
              seen + columns.first,
              ldh,
              sums + shape.state_block(k) * g.H * layout.dWhh.ld +
                  columns.first,
              layout.dWhh.ld);
        }
        return;
      }
    }
    for (int64_t p = work.panels.first; p < work.panels.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      const C* from = seen + j0;
      OuterPart<C> parts[kMostSlabs];
      for (int k = 0; k < shape.state_slabs(); ++k) {
        int64_t row = shape.state_block(k) * g.H;
        parts[k] = {
            delta + k * slabs.width, sums + row * layout.dWhh.ld + j0, 0, g.H};
      }
      accumulate_outer<C>(
          K,
          parts,
          shape.state_slabs(),
          slabs.ld,
          layout.panel,
          minimum(kPanel<C>, g.H - j0),
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
    if constexpr (sizeof(C) == sizeof(float)) {
      if (layout.of_input) {
        add_dWxh_by_blas(chunk, delta, sums);
        return;
      }
    }
    for (int64_t p = inputs.first; p < inputs.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      int64_t width = minimum(kPanel<C>, g.D - j0);
      const RowAt* at = layout.row_at;
      OuterPart<C> parts[kMostSlabs];
      for (int k = 0; k < shape.input_slabs(); ++k) {
        parts[k] = {
            delta + slabs.input_column() + k * slabs.width,
            sums + k * g.H * layout.dWxh.ld + j0,
            0,
            g.H};
      }
      accumulate_outer<C>(
          chunk.rows(),
          parts,
          shape.input_slabs(),
          slabs.ld,
          layout.panel,
          width,
          layout.dWxh.ld,
          [&](C* to) {
            stage_panel_row<T>(
                to,
                row_of<T>(g.x, work.row_number(at->r), at->t) +
                    j0 * g.x.feature_stride,
                g.x.feature_stride,
                width);
            terms.drop_inputs(at->r, at->t, to - j0, j0, j0 + width);
            ++at;
          });
    }
  }

  void add_dWxh_by_blas(const Chunk& chunk, const C* delta, C* sums) const {
    Range own = columns_of<C>(inputs, g.D);
    int64_t ldd = leading_dimension<C>(g.D);
    C* to = layout.panel;
    for (int64_t k = 0; k < chunk.rows(); ++k, to += ldd) {
      const RowAt& at = layout.row_at[k];
      stage_row<T>(
          to,
          row_of<T>(g.x, work.row_number(at.r), at.t),
          g.x.feature_stride,
          own.first,
          own.last);
      layout.terms.drop_inputs(at.r, at.t, to, own.first, own.last);
    }
    for (int k = 0; k < shape.input_slabs(); ++k) {
      add_outer(
          layout.of_input,
          chunk.rows(),
          g.H,
          own.last - own.first,
          delta + slabs.input_column() + k * slabs.width,
          slabs.ld,
          layout.panel + own.first,
          ldd,
          sums + k * g.H * layout.dWxh.ld + own.first,
          layout.dWxh.ld);
    }
  }

  void add_rows(int64_t K, const C* delta, C* sums) const {
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      // In blocks, like the other sums: a running sum over all steps would
      // lose what each adds.
      Vec<C> total = {};
      for (int64_t k = 0; k < K; ++k) {
        total += load_as<Vec<C>>(delta + k * slabs.ld + j);
      }
      store_as(sums + j, load_as<Vec<C>>(sums + j) + total);
    }
  }

  void clear_chunk_sums() const {
    for (C* sum : layout.sums) {
      ::clear(sum, ldh);
    }
    ::clear(layout.leak_sum, ldh);
    ::clear(layout.parameter_sums, shape.parameters * ldh);
  }

  INLINE_MEMBER void add_columns(const C* from, C* to) const {
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      store_as(to + j, load_as<Vec<C>>(to + j) + load_as<Vec<C>>(from + j));
    }
  }
};

} // namespace
