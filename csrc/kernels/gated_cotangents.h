// The recurrence of the cotangents of a gated cell, backward in time: all that
// happens to a unit at a step, in one pass over the product; of a cell that is
// a program behind it.

#pragma once

#include "backward_layout.h"

namespace {

template <class T, class Cell>
struct GatedCotangents : ShapeOf<Cell> {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  using ShapeOf<Cell>::shape;
  using ShapeOf<Cell>::most_states;
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

  explicit GatedCotangents(const BackwardWork<T>& work)
      : ShapeOf<Cell>(work.layout.slabs.shape), work(work) {
  }

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
    if constexpr (is_program<Cell>()) {
      run_pullback(i, comes ? going : 0, going, count, whole, later, at);
    } else {
      run_step(i, comes, going, count, whole, later, at);
    }
    shares.after_step();
  }

  // What the states of step i, whose deltas are given, pass on to where their
  // episodes start.
  void collect(int64_t i, int64_t count, const C* delta) const {
    pass_rows(i, count, delta, [](int64_t, int64_t, int64_t, const Vec<C>*) {});
  }

  // The cotangents of the first states, from delta of the first step.
  void write_first(int64_t count, const C* delta) const {
    pass_rows(
        0,
        count,
        delta,
        [&](int64_t r, int64_t column, int64_t left, const Vec<C>* passed) {
          for (int s = 0; s < shape.states; ++s) {
            if (auto* out = static_cast<Element<T>*>(args.dhidden[s])) {
              store_some<T>(
                  out + work.row_number(r) * g.H + column, passed[s], left);
            }
          }
        });
  }

 private:
  // Where the rows of a step have their numbers.
  struct StepRows {
    const C* before[most_states];
    const C* computed; // what was saved, if it was computed again
    int64_t begin;
    C* delta;
  };
  struct Row {
    const C* q[most_states];
    const C* saved;
    int64_t saved_stride;
    const Element<T>* cotangents[most_states]; // null: zero
    const Element<T>* last[most_states];       // of a row's last step
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
      const Sequence& all = args.dstates[s];
      const Sequence& last = args.dstate[s];
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

  void run_step(
      int64_t i,
      bool comes,
      int64_t going,
      int64_t count,
      bool whole,
      const C* later,
      const StepRows& at) const {
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
              Vec<C> passed[most_states] = {};
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
  }

  // The same of a program, of all rows when their product is there: the first
  // `coming` of them have one, or something to pass on.
  void run_pullback(
      int64_t i,
      int64_t coming,
      int64_t going,
      int64_t count,
      bool whole,
      const C* later,
      const StepRows& at) const {
    bool product = shape.state_slabs() > 0;
    back.step(
        i,
        product ? coming : 0,
        product ? coming : 0,
        later,
        Sums<C>{nullptr, 0, layout.back, ldh},
        [](const Tile<C>&) {});
    int64_t loaded = -1, stored = -1; // the rows that these are of
    Row from{}, to{};
    run_program<C>(
        g.programs->pullback,
        layout.derivative,
        count,
        work.columns,
        [&](int64_t r, int64_t j, C* block) __attribute__((always_inline)) {
          if (r != loaded) {
            from = row_of_step(at, r, r >= going);
            loaded = r;
          }
          load_units(i, from, r, j, r < coming, whole, block);
        },
        [&](int64_t r, int64_t j, const BlockResults<C>& results)
            __attribute__((always_inline)) {
              if (r != stored) {
                to = row_of_step(at, r, r >= going);
                stored = r;
              }
              store_units(to, r, j, results);
            });
  }

  // What the pullback takes of a vector of a row's units.
  INLINE_MEMBER void load_units(
      int64_t i,
      const Row& row,
      int64_t r,
      int64_t j,
      bool comes,
      bool whole,
      C* block) const {
    int64_t left = work.columns.last - j;
    for (int k = 0; k < shape.slabs(); ++k, block += kBlock<C>) {
      const C* at = row.saved + (k * g.H + j) * row.saved_stride;
      store_as(block, load_strided<AsComputed<C>>(at, row.saved_stride, left));
    }
    for (int s = 0; s < shape.states; ++s, block += kBlock<C>) {
      store_as(block, load_as<Vec<C>>(row.q[s] + j));
    }
    for (int k = 0; k < shape.parameters; ++k, block += kBlock<C>) {
      store_as(block, load_as<Vec<C>>(layout.forward.parameters + k * ldh + j));
    }
    Vec<C> passed[most_states] = {};
    if (comes) {
      pass(
          r,
          j,
          shape.state_slabs() > 0 ? layout.back + r * ldh + j : nullptr,
          passed);
    }
    bool starts = comes && layout.running.starts(work.rows.first + r, i + 1);
    if (starts) {
      add_to_starts(j, passed);
    }
    for (int s = 0; s < shape.states; ++s, block += kBlock<C>) {
      Vec<C> lambda = {};
      add_row(
          lambda, row.cotangents[s], args.dstates[s].feature_stride, j, left);
      add_row(lambda, row.last[s], args.dstate[s].feature_stride, j, left);
      if (comes && !starts && whole) {
        lambda += passed[s];
      }
      Vec<C> held = {};
      if (terms.blends()) {
        Vec<C> k = terms.rate(r, j, s);
        held = Terms<T>::gate(C(1) - k, lambda);
        lambda = Terms<T>::gate(k, lambda);
      }
      store_as(layout.held[s] + r * ldh + j, held);
      store_as(block, lambda);
    }
  }

  // What it makes of them.
  INLINE_MEMBER void store_units(
      const Row& row,
      int64_t r,
      int64_t j,
      const BlockResults<C>& results) const {
    int64_t left = work.columns.last - j;
    bool skips = terms.skips_row(r);
    // Where no state is updated nothing comes of it.
    Vec<C> updates = splat<C>(C(1));
    if (terms.blends()) {
      updates = Vec<C>{};
      for (int s = 0; s < shape.states; ++s) {
        updates = terms.rate(r, j, s) == C(0) ? updates : splat<C>(C(1));
      }
    }
    auto result = [&](int k) __attribute__((always_inline)) {
      return skips ? Vec<C>{} : Terms<T>::selected(updates, results[k]);
    };
    for (int k = 0; k < shape.slabs(); ++k) {
      C* to = row.delta + k * slabs.width + j;
      store_as(to, result(k));
      // Products read these too.
      for (int64_t lane = left; lane < lanes; ++lane) {
        to[lane] = C(0);
      }
    }
    int next = shape.slabs();
    for (int s = 0; s < shape.states; ++s, ++next) {
      C* held = layout.held[s] + r * ldh + j;
      store_as(held, load_as<Vec<C>>(held) + result(next));
    }
    for (int k = 0; args.dparameters && k < shape.parameters; ++k, ++next) {
      C* sum = layout.parameter_sums + k * ldh + j;
      store_as(sum, load_as<Vec<C>>(sum) + result(next));
    }
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
      const Sequence& all = args.dstates[s];
      const Sequence& last = args.dstate[s];
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

  // What row r passes on to the states before, from Whh^T delta; null: none.
  INLINE_MEMBER void pass(
      int64_t r,
      int64_t j,
      const C* product,
      Vec<C>* passed) const {
    if (product) {
      passed[0] = terms.seen(r, j, load_as<Vec<C>>(product));
    }
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      if (holds(s)) {
        passed[s] += load_as<Vec<C>>(layout.held[s] + r * ldh + j);
      }
    }
  }

  // Whether a state passes something on beside Whh.
  INLINE_MEMBER bool holds(int state) const {
    if constexpr (is_program<Cell>()) {
      return true;
    } else {
      return Cell::passes(state) || terms.blends();
    }
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
    auto pass_units = [&](int64_t r, int64_t column, C* at, int64_t left) {
      Vec<C> passed[most_states] = {};
      pass(r, column, at, passed);
      if (layout.running.starts(work.rows.first + r, i)) {
        add_to_starts(column, passed);
        for (Vec<C>& none : passed) {
          none = Vec<C>{};
        }
      }
      use(r, column, left, passed);
    };
    if (shape.state_slabs() > 0) {
      back.step(i, count, count, delta, Sums<C>{}, [&](const Tile<C>& tile) {
        tile.each(pass_units);
      });
      return;
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t j = work.columns.first; j < work.columns.last; j += lanes) {
        pass_units(r, j, nullptr, work.columns.last - j);
      }
    }
  }
};

} // namespace
