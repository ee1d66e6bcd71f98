// The recurrence of the cotangents of an Elman cell, backward in time.

#pragma once

#include "backward_layout.h"

namespace {

template <class T, class Cell>
struct CotangentSteps {
  typedef Compute<T> C;
  static constexpr Activation f = Cell::activation;
  static constexpr int lanes = Simd<C>::lanes;
  const BackwardWork<T>& work;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const Shares& shares = work.shares;
  const BackwardLayout<T>& layout = work.layout;
  Range columns = work.columns;
  int64_t ldh = work.ldh;
  RecurrentProduct<T> back{layout.transposed, g.N, g.H, shares}; // Whh^T

  // The cotangents of the chunk's states.
  void load(const Chunk& chunk, C* delta) const {
    if (args.dstates[0].data) {
      work.template stage_rows<T>(args.dstates[0], chunk, delta);
    } else {
      for (int64_t k = 0; k < chunk.rows(); ++k) {
        clear(delta + k * ldh + columns.first, columns.last - columns.first);
      }
    }
    // Of a row's last state.
    for (int64_t i = chunk.first; args.dstate[0].data && i < chunk.last; ++i) {
      for (int64_t r = work.count_at(i + 1); r < chunk.count(i); ++r) {
        C* to = delta + (chunk.begin(i) + r) * ldh;
        for (int64_t j = columns.first; j < columns.last; j += lanes) {
          store_as(
              to + j,
              load_as<Vec<C>>(to + j) +
                  load_from<T>(
                      args.dstate[0],
                      work.row_number(r),
                      0,
                      j,
                      columns.last - j));
        }
      }
    }
  }

  // `delta`, which holds the cotangents of the states of step i, becomes that
  // of its pre-activations. `later` is delta of the step after it.
  void step(const Chunk& chunk, int64_t i, const C* later, C* delta) const {
    int64_t at = chunk.begin(i) * ldh;
    int64_t count = chunk.count(i);
    const C* before = work.states_before(chunk, i);
    const C* known = at +
        (layout.needs_preactivations(g) ? layout.a : work.own_states(chunk));
    C* now = delta + at;
    bool passes = later && !layout.running.truncates(i + 1);
    if (layout.is_plain()) {
      back.step(
          i,
          passes ? count : 0,
          count,
          later,
          Sums<C>{now, ldh, now, ldh},
          [&](const Tile<C>& tile) __attribute__((always_inline)) {
            if constexpr (f != Activation::traced) {
              scale_tile(tile, known);
            }
          });
      if (f == Activation::traced) {
        finish_rows(count, known, nullptr, now);
      }
    } else {
      if (passes || (later && work.wants_starts())) {
        collect(i + 1, work.count_at(i + 1), later, now);
      }
      layout.terms.begin_step(i, count);
      finish_rows(count, known, before, now);
    }
    shares.after_step();
  }

  // Adds what the states of step i pass on to `to`, the cotangents of the
  // states before; or to dhidden0 where an episode starts.
  void collect(int64_t i, int64_t count, const C* delta, C* to) const {
    back.step(
        i,
        count,
        count,
        delta,
        Sums<C>{nullptr, 0, layout.back, ldh},
        [](const Tile<C>&) {});
    bool whole = !layout.running.truncates(i);
    for (int64_t r = 0; r < count; ++r) {
      bool starts = layout.running.starts(work.rows.first + r, i);
      C* sum = starts ? layout.sums[0] : whole ? to + r * ldh : nullptr;
      for (int64_t j = columns.first; sum && j < columns.last; j += lanes) {
        store_as(sum + j, load_as<Vec<C>>(sum + j) + passed(r, j));
      }
    }
  }

  // The same where nothing but episodes' starts wants it.
  void collect(int64_t i, int64_t count, const C* delta) const {
    collect(i, count, delta, nullptr);
  }

  // The cotangents of the first states, from delta of the first step.
  void write_first(int64_t count, const C* delta) const {
    Element<T>* out = static_cast<Element<T>*>(args.dhidden[0]);
    if (layout.is_plain()) {
      back.step(0, count, count, delta, Sums<C>{}, [&](const Tile<C>& tile) {
        tile.each([&](int64_t r, int64_t column, C* at, int64_t left) {
          store_some<T>(
              out + work.row_number(r) * g.H + column,
              load_as<Vec<C>>(at),
              left);
        });
      });
      return;
    }
    C* rows = layout.states[0];
    for (int64_t r = 0; r < count; ++r) {
      clear(rows + r * ldh + columns.first, columns.last - columns.first);
    }
    collect(0, count, delta, rows);
    for (int64_t r = 0; out && r < count; ++r) {
      write_row<T>(
          out + work.row_number(r) * g.H,
          rows + r * ldh,
          columns.first,
          columns.last);
    }
  }

 private:
  // What row r of the step whose deltas were multiplied into layout.back passes
  // on to the state before.
  INLINE_MEMBER Vec<C> passed(int64_t r, int64_t j) const {
    int64_t at = r * ldh + j;
    Vec<C> w = layout.terms.seen(r, j, load_as<Vec<C>>(layout.back + at));
    return layout.terms.blends() ? w + load_as<Vec<C>>(layout.held[0] + at) : w;
  }

  // The cotangents of states in `delta` become those of their pre-activations;
  // what passes beside f goes to layout.held.
  void finish_rows(int64_t count, const C* known, const C* before, C* delta)
      const {
    const Terms<T>& terms = layout.terms;
    bool blends = terms.blends();
    if constexpr (f == Activation::traced) {
      if (args.dleak) {
        run_program<C>(
            *g.function,
            layout.forward.function,
            count,
            columns,
            [&](int64_t r, int64_t j, C* to) __attribute__((always_inline)) {
              store_as(to, load_as<Vec<C>>(known + r * ldh + j));
            },
            [&](int64_t r, int64_t j, const BlockResults<C>& h)
                __attribute__((always_inline)) {
                  Vec<C> lambda = load_as<Vec<C>>(delta + r * ldh + j);
                  add_dleak(r, j, before, lambda, h[0]);
                });
      }
      run_program<C>(
          *g.derivative,
          layout.derivative,
          count,
          columns,
          [&](int64_t r, int64_t j, C* to) __attribute__((always_inline)) {
            int64_t at = r * ldh + j;
            store_as(to, load_as<Vec<C>>(known + at));
            Vec<C> d = load_as<Vec<C>>(delta + at);
            store_as(to + kBlock<C>, blends ? split(r, j, d) : d);
          },
          [&](int64_t r, int64_t j, const BlockResults<C>& results)
              __attribute__((always_inline)) {
                Vec<C> d = results[0];
                store_as(
                    delta + r * ldh + j,
                    blends ? Terms<T>::selected(terms.rate(r, j), d) : d);
              });
    } else {
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t j = columns.first; j < columns.last; j += lanes) {
          int64_t at = r * ldh + j;
          Vec<C> d = load_as<Vec<C>>(delta + at);
          Vec<C> h = load_as<Vec<C>>(known + at);
          if (layout.needs_preactivations(g)) {
            h = mlx_recurrent::elman::activate<f, VectorOps<T>>(h);
          }
          if (args.dleak) {
            add_dleak(r, j, before, d, h);
          }
          if (blends) {
            d = split(r, j, d);
          }
          d = d * slope_at(h);
          store_as(
              delta + at, blends ? Terms<T>::selected(terms.rate(r, j), d) : d);
        }
      }
    }
  }

  // Of lambda, the cotangents of some states, what goes through f; what passes
  // beside it goes to layout.held.
  INLINE_MEMBER Vec<C> split(int64_t r, int64_t j, Vec<C> lambda) const {
    Vec<C> k = layout.terms.rate(r, j);
    store_as(layout.held[0] + r * ldh + j, Terms<T>::gate(C(1) - k, lambda));
    return Terms<T>::gate(k, lambda);
  }

  // Adds lambda (f(a) - q), but for units that were kept.
  INLINE_MEMBER void add_dleak(
      int64_t r,
      int64_t j,
      const C* before,
      Vec<C> lambda,
      Vec<C> h) const {
    const Terms<T>& terms = layout.terms;
    if (terms.skips_row(r)) {
      return;
    }
    const C* q = terms.starts_row(r) ? terms.started_at[0] : before + r * ldh;
    Vec<C> d = lambda * (h - load_as<Vec<C>>(q + j));
    if (terms.draws_units[0]) {
      d = terms.unless_kept(r, j, d, Vec<C>{}, 0);
    }
    C* sum = layout.leak_sum + j;
    store_as(sum, load_as<Vec<C>>(sum) + d);
  }

  // f'(a) where f(a) = h.
  static INLINE_MEMBER Vec<C> slope_at(Vec<C> h) {
    return mlx_recurrent::elman::slope<f, VectorOps<T>>(h, splat<C>(C(1)));
  }

  INLINE_MEMBER void scale_tile(const Tile<C>& tile, const C* known) const {
    for (int64_t m = 0; m < tile.rows; ++m) {
      for (int64_t j = 0; j < tile.columns; j += lanes) {
        C* at = tile.values + m * tile.stride + j;
        const C* from = known + (tile.row + m) * ldh + tile.column + j;
        store_as(at, load_as<Vec<C>>(at) * slope_at(load_as<Vec<C>>(from)));
      }
    }
  }
};

} // namespace
