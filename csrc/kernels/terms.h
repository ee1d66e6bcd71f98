// The optional terms of the recurrence, for the rows that a member works on:
// episodes, skipped steps, leak, zoneout and dropout. All of them select: what
// has the factor 0 is not there.

#pragma once

#include "random.h"
#include "running.h"
#include "slabs.h"

namespace {

template <class T>
struct Terms {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  const RecurrenceArgs& g;
  const Running& running;
  Range columns; // of H, this member's
  int64_t ldh, ldd;
  Slabs<C> slabs;
  Range rows{0, 0};           // positions; set by begin
  C* started_at[kMostStates]; // (ldh) each: hidden0, zeros where there is none
  C* leak[kMostStates];       // (ldh) each
  C* factors;                 // (rows, ldh), of recurrent dropout
  C* input_factors;           // (rows, ldd)
  C* saved; // a row of slabs each: what was there before an absent product
  uint32_t* words[kMostStates]; // (rows, ldw) each, of the step at hand, where
                                // zoneout draws
  uint32_t* drawn_rows;         // (rows): as what they draw
  Generator generator;
  bool* started; // (rows): whether an episode starts with the step at hand
  bool* skipped; // (rows): whether the step at hand is skipped
  int64_t ldw;
  uint32_t bounds[kMostStates]; // words below it keep a unit
  // Which of the terms there are.
  bool episodes, skips, drops_states, drops_features, blends_any;
  bool leaks[kMostStates], draws_units[kMostStates]; // of each state

  Terms(
      Arena& arena,
      const RecurrenceArgs& g,
      const Running& running,
      const Shares& shares)
      : g(g), running(running), slabs(g) {
    columns = columns_of<C>(shares.panels(panel_count<C>(g.H)), g.H);
    ldh = leading_dimension<C>(g.H);
    ldd = leading_dimension<C>(g.D);
    episodes = g.course.reset.data;
    skips = g.mask.data;
    drops_states = draws(Drawn::recurrent_dropout);
    drops_features = draws(Drawn::input_dropout) && !g.projected;
    int64_t most = shares.most_rows();
    int64_t widest = drops_features && g.D > g.H ? g.D : g.H;
    ldw = ceil_div(widest, kDrawnUnits) * kDrawnUnits;
    auto take = [&](int64_t count) {
      C* all = arena.take<C>(shares.partition.threads * count);
      return all + shares.member.index * count;
    };
    factors = take(drops_states ? most * ldh : 0);
    input_factors = take(drops_features ? most * ldd : 0);
    saved = take(episodes ? most * slabs.ld : 0);
    blends_any = skips;
    for (int s = 0; s < kMostStates; ++s) {
      bool there = s < slabs.shape.states;
      Drawn zoneout = zoneout_of(s);
      leaks[s] = there && g.leak[s].data;
      leak[s] = take(leaks[s] ? ldh : 0);
      draws_units[s] = there && draws(zoneout);
      blends_any = blends_any || leaks[s] || draws_units[s];
      bounds[s] =
          draws_units[s] ? bound_of(probability_of(g.draws, zoneout)) : 0;
      started_at[s] = take(there && episodes ? ldh : 0);
      words[s] = reinterpret_cast<uint32_t*>(take(
          draws_units[s]              ? most * ldw
              : s == 0 && g.draws.key ? ldw
                                      : 0));
    }
    drawn_rows = reinterpret_cast<uint32_t*>(take(g.draws.key ? most : 0));
    started = reinterpret_cast<bool*>(take(episodes ? most : 0));
    skipped = reinterpret_cast<bool*>(take(skips ? most : 0));
  }

  // Whether a state is more than f(a).
  INLINE_MEMBER bool blends() const {
    return blends_any;
  }
  // Whether the product with Whh takes something other than the last state.
  INLINE_MEMBER bool carries() const {
    return episodes || drops_states;
  }

  // Once, before any step.
  void prepare() const {
    for (int s = 0; s < slabs.shape.states; ++s) {
      if (episodes) {
        stage_vector(started_at[s], g.hidden0[s]);
      }
      if (leaks[s]) {
        stage_vector(leak[s], g.leak[s]);
      }
    }
  }

  // Draws what these rows keep for all their steps.
  void begin(Range positions) {
    rows = positions;
    if (!g.draws.key) {
      return;
    }
    generator = Generator(g.draws);
    for (int64_t p = rows.first; p < rows.last; ++p) {
      int64_t r = p - rows.first;
      drawn_rows[r] = static_cast<uint32_t>(running.row(p) % g.draws.rows);
      if (drops_states) {
        draw_factors(Drawn::recurrent_dropout, p, columns, factors + r * ldh);
      }
      if (drops_features) {
        draw_factors(
            Drawn::input_dropout, p, Range{0, g.D}, input_factors + r * ldd);
      }
    }
  }

  // Learns what step i needs of its first `count` rows.
  void begin_step(int64_t i, int64_t count) const {
    for (int64_t r = 0; episodes && r < count; ++r) {
      started[r] = running.starts(rows.first + r, i);
    }
    for (int64_t r = 0; skips && r < count; ++r) {
      skipped[r] = skips_at(r, running.place(rows.first + r, i));
    }
    for (int s = 0; s < kMostStates; ++s) {
      for (int64_t r = 0; draws_units[s] && r < count; ++r) {
        int64_t position = rows.first + r;
        draw(
            zoneout_of(s),
            position,
            running.place(position, i),
            columns,
            words[s] + r * ldw);
      }
    }
  }

  INLINE_MEMBER bool starts_row(int64_t r) const {
    return episodes && started[r];
  }

  INLINE_MEMBER bool skips_row(int64_t r) const {
    return skips && skipped[r];
  }

  // Whether row r skips its step at place t.
  INLINE_MEMBER bool skips_at(int64_t r, int64_t t) const {
    const Sequence& mask = g.mask;
    return skips &&
        !static_cast<const bool*>(mask.data)
            [mask.row_offsets[running.row(rows.first + r)] +
             t * mask.step_stride];
  }

  // v, or `kept` in the units of row r that keep their state.
  INLINE_MEMBER Vec<C> unless_kept(
      int64_t r,
      int64_t column,
      Vec<C> v,
      Vec<C> kept,
      int state) const {
    typename Simd<C>::bits drawn = words_at(words[state] + r * ldw + column);
    return drawn < bounds[state] ? kept : v;
  }

  // k of row r at the step at hand, where a state is more than f(a).
  INLINE_MEMBER Vec<C> rate(int64_t r, int64_t column, int state = 0) const {
    if (skips_row(r)) {
      return Vec<C>{};
    }
    Vec<C> k =
        leaks[state] ? load_as<Vec<C>>(leak[state] + column) : splat<C>(C(1));
    return draws_units[state] ? unless_kept(r, column, k, Vec<C>{}, state) : k;
  }

  // What step at hand makes of q, the state before, and of f(a).
  INLINE_MEMBER Vec<C> state_of(
      int64_t r,
      int64_t column,
      Vec<C> q,
      Vec<C> f,
      int state = 0) const {
    if (skips_row(r)) {
      return q;
    }
    Vec<C> h =
        leaks[state] ? blend(q, f, load_as<Vec<C>>(leak[state] + column)) : f;
    return draws_units[state] ? unless_kept(r, column, h, q, state) : h;
  }

  // (1 - k) q + k f.
  static INLINE_MEMBER Vec<C> blend(Vec<C> q, Vec<C> f, Vec<C> k) {
    Vec<C> h = (C(1) - k) * q + k * f;
    h = k == C(1) ? f : h;
    return k == C(0) ? q : h;
  }

  // factor * v, absent where the factor is 0.
  static INLINE_MEMBER Vec<C> gate(Vec<C> factor, Vec<C> v) {
    return selected(factor, factor * v);
  }

  // v, or zero where the factor is 0.
  static INLINE_MEMBER Vec<C> selected(Vec<C> factor, Vec<C> v) {
    return factor == C(0) ? Vec<C>{} : v;
  }

  // m_h * v, of row r.
  INLINE_MEMBER Vec<C> seen(int64_t r, int64_t column, Vec<C> v) const {
    return drops_states ? gate(load_as<Vec<C>>(factors + r * ldh + column), v)
                        : v;
  }

  // What row r gives to the product of step i, from the state before it.
  INLINE_MEMBER void carry(int64_t i, int64_t r, const C* state, C* to) const {
    if (skips_at(r, running.place(rows.first + r, i))) {
      clear(to + columns.first, columns.last - columns.first);
      return;
    }
    const C* from =
        episodes && running.starts(rows.first + r, i) ? started_at[0] : state;
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      store_as(to + j, seen(r, j, load_as<Vec<C>>(from + j)));
    }
  }

  // m_x * x of row r at place t, in place, of columns [first, last).
  INLINE_MEMBER void drop_inputs(
      int64_t r,
      int64_t t,
      C* x,
      int64_t first,
      int64_t last) const {
    if (skips_at(r, t)) {
      for (int64_t j = first; j < last; j += lanes) {
        store_as(x + j, Vec<C>{});
      }
      return;
    }
    for (int64_t j = first; drops_features && j < last; j += lanes) {
      store_as(
          x + j,
          gate(
              load_as<Vec<C>>(input_factors + r * ldd + j),
              load_as<Vec<C>>(x + j)));
    }
  }

 private:
  bool draws(Drawn what) const {
    return g.draws.key && probability_of(g.draws, what) > 0;
  }

  void stage_vector(C* to, const Vector& v) const {
    for (int64_t j = 0; j < ldh; ++j) {
      to[j] = v.data && j < g.H
          ? load_one<T>(static_cast<const Element<T>*>(v.data) + j * v.stride)
          : C(0);
    }
  }

  static INLINE_MEMBER typename Simd<C>::bits words_at(const uint32_t* from) {
    return __builtin_convertvector(
        load_as<typename Simd<C>::words>(from), typename Simd<C>::bits);
  }

  // Words of a range of units; that of unit 0 would be at `to`.
  INLINE_MEMBER void draw(
      Drawn what,
      int64_t position,
      int64_t t,
      Range units,
      uint32_t* to) const {
    int64_t first = units.first / kDrawnUnits * kDrawnUnits;
    uint32_t row = drawn_rows[position - rows.first];
    generator.draw(what, row, t, first, units.last, to + first);
  }

  void draw_factors(Drawn what, int64_t position, Range units, C* to) const {
    draw(what, position, 0, units, words[0]);
    double probability = probability_of(g.draws, what);
    uint32_t below = bound_of(probability);
    C scale = static_cast<C>(1 / (1 - probability));
    for (int64_t j = units.first; j < units.last; ++j) {
      to[j] = words[0][j] < below ? C(0) : scale;
    }
  }
};

} // namespace
