// The recurrence of the cotangents of a gated cell, backward in time: all that
// happens to a unit at a step, in one pass over the product.

#pragma once

#include "backward_layout.h"

namespace {

template <class T, class Cell>
struct GatedCotangents {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  static constexpr CellShape shape = shape_as<Cell>();
  const BackwardWork<T>& work;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const Shares& shares = work.shares;
  const BackwardLayout<T>& layout = work.layout;
  const Slabs<C>& slabs = layout.slabs;
  const Terms<T>& terms = layout.terms;
  int64_t ldh = work.ldh;
  RecurrentProduct<T> back{
      layout.transposed,
      g.N,
      g.H,
      shares,
      slabs.depth(shape.state_slabs()),
      slabs.ld,
      0}; // Whh^T

  // The cotangents of the chunk's states are read where they lie.
  void load(const Chunk&, C*) const {
  }

  // Fills `delta` of step i, the cotangents of its slabs; `later` is that of
  // the step after it.
  void step(const Chunk& chunk, int64_t i, const C* later, C* delta) const {
    int64_t count = chunk.count(i);
    int64_t going = work.count_at(i + 1);
    bool whole = !layout.running.truncates(i + 1);
    bool comes = later && (whole || work.wants_starts());
    terms.begin_step(i, count);
    StepRows at = rows_of(chunk, i, delta);
    back.step(
        i,
        comes ? going : 0,
        count,
        later,
        Sums<C>{},
        [&](const Tile<C>& tile) __attribute__((always_inline)) {
          for (int64_t m = 0; m < tile.rows; ++m) {
            int64_t r = tile.row + m;
            const C* values =
                tile.values ? tile.values + m * tile.stride : nullptr;
            bool starts =
                values && layout.running.starts(work.rows.first + r, i + 1);
            Row row = row_of_step(at, r, r >= going);
            for (int64_t j = 0; j < tile.columns; j += lanes) {
              int64_t column = tile.column + j;
              Vec<C> passed[shape.states] = {};
              if (values) {
                pass(r, column, values + j, passed);
              }
              if (starts) {
                add_to_starts(column, passed);
              }
              finish_units(
                  row, r, column, tile.columns - j, !starts && whole, passed);
            }
          }
        });
    shares.after_step();
  }

  // What the states of step i, whose deltas are given, pass on to where their
  // episodes start.
  void collect(int64_t i, int64_t count, const C* delta) const {
    pass_rows(i, count, delta, [](int64_t, int64_t, int64_t, const Vec<C>*) {});
  }

  // The cotangents of the first states, from delta of the first step.
  void write_first(int64_t count, const C* delta) const {
    Element<T>* const out[] = {
        static_cast<Element<T>*>(args.dhidden),
        static_cast<Element<T>*>(args.dcell)};
    pass_rows(
        0,
        count,
        delta,
        [&](int64_t r, int64_t column, int64_t left, const Vec<C>* passed) {
          for (int s = 0; s < shape.states; ++s) {
            if (out[s]) {
              store_some<T>(
                  out[s] + work.row_number(r) * g.H + column, passed[s], left);
            }
          }
        });
  }

 private:
  // Where the rows of a step have their numbers.
  struct StepRows {
    const C* before[shape.states];
    const C* computed; // what was saved, if it was computed again
    int64_t begin;
    C* delta;
  };
  struct Row {
    const C* q[shape.states];
    const C* saved;
    int64_t saved_stride;
    const Element<T>* cotangents[shape.states]; // null: zero
    const Element<T>* last[shape.states];       // of a row's last step
    C* delta;
  };

  StepRows rows_of(const Chunk& chunk, int64_t i, C* delta) const {
    StepRows at{};
    at.begin = chunk.begin(i);
    for (int s = 0; s < shape.states; ++s) {
      at.before[s] = work.states_before(chunk, i, s);
    }
    if (layout.recomputes(args)) {
      at.computed = layout.a + at.begin * shape.saved * g.H;
    }
    at.delta = delta + at.begin * slabs.ld;
    return at;
  }

  INLINE_MEMBER Row
  row_of_step(const StepRows& at, int64_t r, bool ends) const {
    const RowAt& place = layout.row_at[at.begin + r];
    int64_t n = work.row_number(r);
    Row row{};
    for (int s = 0; s < shape.states; ++s) {
      row.q[s] =
          terms.starts_row(r) ? terms.started_at[s] : at.before[s] + r * ldh;
      const Sequence& all = s == 0 ? args.dstates : args.dcells;
      const Sequence& last = s == 0 ? args.dstate : args.dlast_cell;
      if (all.data) {
        row.cotangents[s] = row_of<T>(all, n, place.t);
      }
      if (ends && last.data) {
        row.last[s] = row_of<T>(last, n, 0);
      }
    }
    row.saved = at.computed ? at.computed + r * shape.saved * g.H
                            : row_of<AsComputed<C>>(args.saved, n, place.t);
    row.saved_stride = at.computed ? 1 : args.saved.feature_stride;
    row.delta = at.delta + r * slabs.ld;
    return row;
  }

  // Up to a whole vector of a row's units; what passed on to them counts where
  // it `comes`.
  INLINE_MEMBER void finish_units(
      const Row& row,
      int64_t r,
      int64_t j,
      int64_t left,
      bool comes,
      const Vec<C>* passed) const {
    Vec<C> lambda[shape.states];
    Vec<C> q[shape.states];
    Vec<C> dq[shape.states] = {};
    Vec<C> saved[shape.saved];
    Vec<C> da[shape.slabs()];
#pragma GCC unroll 8
    for (int k = 0; k < shape.saved; ++k) {
      saved[k] = load_strided<AsComputed<C>>(
          row.saved + (k * g.H + j) * row.saved_stride, row.saved_stride, left);
    }
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      q[s] = load_as<Vec<C>>(row.q[s] + j);
      const Sequence& all = s == 0 ? args.dstates : args.dcells;
      const Sequence& last = s == 0 ? args.dstate : args.dlast_cell;
      lambda[s] = Vec<C>{};
      add_row(lambda[s], row.cotangents[s], all.feature_stride, j, left);
      add_row(lambda[s], row.last[s], last.feature_stride, j, left);
      if (comes) {
        lambda[s] += passed[s];
      }
    }
    Vec<C> held[shape.states];
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      held[s] = Vec<C>{};
      if (terms.blends()) {
        Vec<C> k = terms.rate(r, j, s);
        held[s] = Terms<T>::gate(C(1) - k, lambda[s]);
        lambda[s] = Terms<T>::gate(k, lambda[s]);
      }
    }
    if (terms.skips_row(r)) {
      for (Vec<C>& none : da) {
        none = Vec<C>{};
      }
    } else {
      Cell::template pullback<VectorOps<T>>(
          saved, q, splat<C>(C(1)), lambda, da, dq);
    }
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      if (holds(s)) {
        store_as(layout.held[s] + r * ldh + j, held[s] + dq[s]);
      }
    }
    constexpr int count = shape.slabs(); // a call in the loop is not unrolled
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) {
      C* to = row.delta + k * slabs.width + j;
      store_as(to, da[k]);
      // Products read these too.
      for (int64_t lane = left; lane < lanes; ++lane) {
        to[lane] = C(0);
      }
    }
  }

  INLINE_MEMBER void add_row(
      Vec<C>& to,
      const Element<T>* from,
      int64_t stride,
      int64_t j,
      int64_t left) const {
    if (from) {
      to += load_strided<T>(from + j * stride, stride, left);
    }
  }

  // What row r passes on to the states before, from Whh^T delta.
  INLINE_MEMBER void pass(
      int64_t r,
      int64_t j,
      const C* product,
      Vec<C>* passed) const {
    passed[0] = terms.seen(r, j, load_as<Vec<C>>(product));
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      if (holds(s)) {
        passed[s] += load_as<Vec<C>>(layout.held[s] + r * ldh + j);
      }
    }
  }

  // Whether a state passes something on beside Whh.
  INLINE_MEMBER bool holds(int state) const {
    return Cell::passes(state) || terms.blends();
  }

  INLINE_MEMBER void add_to_starts(int64_t j, const Vec<C>* passed) const {
    for (int s = 0; s < shape.states; ++s) {
      C* sum = layout.sums[s] + j;
      store_as(sum, load_as<Vec<C>>(sum) + passed[s]);
    }
  }

  // Sends what the rows of step i pass on to their episodes' starts, or, zero
  // for those, to `use`.
  template <class Use>
  void pass_rows(int64_t i, int64_t count, const C* delta, Use use) const {
    back.step(i, count, count, delta, Sums<C>{}, [&](const Tile<C>& tile) {
      tile.each([&](int64_t r, int64_t column, C* at, int64_t left) {
        Vec<C> passed[shape.states] = {};
        pass(r, column, at, passed);
        if (layout.running.starts(work.rows.first + r, i)) {
          add_to_starts(column, passed);
          for (Vec<C>& none : passed) {
            none = Vec<C>{};
          }
        }
        use(r, column, left, passed);
      });
    });
  }
};

} // namespace
