// The optional terms of the recurrence, for the rows that a member works on:
// episodes, leak, zoneout and dropout. All of them select: what has the factor
// 0 is not there.

#pragma once

#include "course.h"
#include "random.h"

namespace {

template <class T>
struct Terms {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  const RecurrenceArgs& g;
  const Running& running;
  Range columns; // of H, this member's
  int64_t ldh, ldd;
  Range rows{0, 0}; // positions; set by begin
  C* restart;       // (ldh), zeros where there is none
  C* leak;          // (ldh)
  C* kappa;         // (rows, ldh), of the step at hand, where zoneout draws
  C* factors;       // (rows, ldh), of recurrent dropout
  C* input_factors; // (rows, ldd)
  C* saved;         // (rows, ldh): what was there before an absent product
  uint32_t* words;
  bool* started; // (rows): whether an episode starts with the step at hand

  Terms(
      Arena& arena,
      const RecurrenceArgs& g,
      const Running& running,
      const Shares& shares)
      : g(g), running(running) {
    columns = columns_of<C>(shares.panels(panel_count<C>(g.H)), g.H);
    ldh = leading_dimension<C>(g.H);
    ldd = leading_dimension<C>(g.D);
    int64_t most = shares.most_rows();
    int64_t widest = g.D > g.H ? g.D : g.H;
    int64_t drawn = ceil_div(widest, kDrawnUnits) * kDrawnUnits;
    restart = take(arena, shares, has_episodes() ? ldh : 0);
    leak = take(arena, shares, blends() ? ldh : 0);
    kappa = take(arena, shares, draws_units() ? most * ldh : 0);
    factors = take(arena, shares, drops_states() ? most * ldh : 0);
    input_factors = take(arena, shares, drops_inputs() ? most * ldd : 0);
    saved = take(arena, shares, has_episodes() ? most * ldh : 0);
    words = reinterpret_cast<uint32_t*>(
        take(arena, shares, g.draws.key ? drawn : 0));
    started =
        reinterpret_cast<bool*>(take(arena, shares, has_episodes() ? most : 0));
  }

  INLINE_MEMBER bool has_episodes() const {
    return g.course.reset.data;
  }
  INLINE_MEMBER bool draws_units() const {
    return g.draws.key && g.draws.zoneout > 0;
  }
  INLINE_MEMBER bool drops_states() const {
    return g.draws.key && g.draws.recurrent_dropout > 0;
  }
  INLINE_MEMBER bool drops_inputs() const {
    return g.draws.key && g.draws.input_dropout > 0 && !g.projected;
  }
  // Whether a state is more than f(a).
  INLINE_MEMBER bool blends() const {
    return g.leak.data || draws_units();
  }
  // Whether the product with Whh takes something other than the last state.
  INLINE_MEMBER bool carries() const {
    return has_episodes() || drops_states();
  }

  // Once, before any step.
  void prepare() const {
    if (has_episodes()) {
      stage_vector(restart, g.restart, C(0));
    }
    if (blends()) {
      stage_vector(leak, g.leak, C(1));
    }
  }

  // Draws what these rows keep for all their steps.
  void begin(Range positions) {
    rows = positions;
    if (!g.draws.key) {
      return;
    }
    for (int64_t p = rows.first; p < rows.last; ++p) {
      int64_t r = p - rows.first;
      if (drops_states()) {
        draw_factors(
            Drawn::recurrent_dropout,
            g.draws.recurrent_dropout,
            p,
            columns,
            factors + r * ldh);
      }
      if (drops_inputs()) {
        draw_factors(
            Drawn::input_dropout,
            g.draws.input_dropout,
            p,
            Range{0, g.D},
            input_factors + r * ldd);
      }
    }
  }

  // Learns what step i needs of its first `count` rows.
  void begin_step(int64_t i, int64_t count) const {
    if (has_episodes()) {
      for (int64_t r = 0; r < count; ++r) {
        started[r] = running.starts(rows.first + r, i);
      }
    }
    if (draws_units()) {
      for (int64_t r = 0; r < count; ++r) {
        draw_kappa(i, r);
      }
    }
  }

  INLINE_MEMBER bool starts_row(int64_t r) const {
    return has_episodes() && started[r];
  }

  // k of row r at the step at hand.
  INLINE_MEMBER const C* kappa_row(int64_t r) const {
    return draws_units() ? kappa + r * ldh : leak;
  }

  // (1 - k) q + k f.
  static INLINE_MEMBER Vec<C> blend(Vec<C> q, Vec<C> f, Vec<C> k) {
    Vec<C> h = (C(1) - k) * q + k * f;
    h = k == C(1) ? f : h;
    return k == C(0) ? q : h;
  }

  // factor * v, absent where the factor is 0.
  static INLINE_MEMBER Vec<C> gate(Vec<C> factor, Vec<C> v) {
    return factor == C(0) ? Vec<C>{} : factor * v;
  }

  // m_h * v, of row r.
  INLINE_MEMBER Vec<C> seen(int64_t r, int64_t column, Vec<C> v) const {
    return drops_states() ? gate(load_as<Vec<C>>(factors + r * ldh + column), v)
                          : v;
  }

  // v of units that zoneout does not keep; its k is -0, a leak's +0.
  INLINE_MEMBER Vec<C> unless_kept(Vec<C> k, Vec<C> v) const {
    bool draws = draws_units();
    return draws ? ((k == C(0)) & (C(1) / k < C(0)) ? Vec<C>{} : v) : v;
  }

  // What row r gives to the product of step i, from the state before it.
  void carry(int64_t i, int64_t r, const C* state, C* to) const {
    const C* from =
        has_episodes() && running.starts(rows.first + r, i) ? restart : state;
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      store_as(to + j, seen(r, j, load_as<Vec<C>>(from + j)));
    }
  }

  // m_x * x, in place, of the rows of this member from position p on.
  INLINE_MEMBER void drop_inputs(int64_t r, C* x, int64_t first, int64_t last)
      const {
    if (drops_inputs()) {
      const C* factor = input_factors + r * ldd;
      for (int64_t j = first; j < last; j += lanes) {
        store_as(
            x + j, gate(load_as<Vec<C>>(factor + j), load_as<Vec<C>>(x + j)));
      }
    }
  }

 private:
  static C* take(Arena& arena, const Shares& shares, int64_t count) {
    C* all = arena.take<C>(shares.partition.threads * count);
    return all + shares.member.index * count;
  }

  void stage_vector(C* to, const Vector& v, C otherwise) const {
    for (int64_t j = 0; j < ldh; ++j) {
      to[j] = v.data && j < g.H
          ? load_one<T>(static_cast<const Element<T>*>(v.data) + j * v.stride)
          : otherwise;
    }
  }

  int64_t drawn_row(int64_t position) const {
    return running.row(position) % g.draws.rows;
  }

  // Words of units of a range; returns where that of unit 0 would be.
  const uint32_t* draw(Drawn what, int64_t position, int64_t t, Range units)
      const {
    int64_t first = units.first / kDrawnUnits * kDrawnUnits;
    Generator(g.draws).draw(
        what, drawn_row(position), t, first, units.last, words + first);
    return words;
  }

  void draw_factors(
      Drawn what,
      double probability,
      int64_t position,
      Range units,
      C* to) const {
    const uint32_t* drawn = draw(what, position, 0, units);
    uint32_t bound = bound_of(probability);
    C scale = static_cast<C>(1 / (1 - probability));
    for (int64_t j = units.first; j < units.last; ++j) {
      to[j] = drawn[j] < bound ? C(0) : scale;
    }
  }

  void draw_kappa(int64_t i, int64_t r) const {
    int64_t position = rows.first + r;
    const uint32_t* drawn =
        draw(Drawn::zoneout, position, running.place(position, i), columns);
    uint32_t bound = bound_of(g.draws.zoneout);
    C* to = kappa + r * ldh;
    for (int64_t j = columns.first; j < columns.last; ++j) {
      to[j] = drawn[j] < bound ? C(-0.0) : leak[j] + C(0);
    }
  }
};

} // namespace
