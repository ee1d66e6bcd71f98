// The linear scan, in either direction: the derivative of the nonlinear one.

#pragma once

#include "team_work.h"

namespace {

template <class T>
struct LinearScanLayout {
  typedef Compute<T> C;
  Panels<T> V;   // V^T
  C* carried[2]; // gamma * y of the step before and of this one, (rows, ldh)

  LinearScanLayout(
      Arena& arena,
      const LinearScanArgs& g,
      const Shares& shares) {
    int64_t size = shares.most_rows() * leading_dimension<C>(g.H);
    V = take_panels<T>(arena, g.H, g.H, stays_stored<T>(chains_for(g.N)));
    C* all = arena.take<C>(2 * Shares::groups(shares.partition) * size);
    carried[0] = all + 2 * shares.group() * size;
    carried[1] = carried[0] + size;
  }
};

template <class T>
static size_t linear_scan_scratch(
    const LinearScanArgs& args,
    const Partition& p) {
  Arena arena{0};
  Shares shares{p, kNobody, args.N};
  LinearScanLayout<T> layout(arena, args, shares);
  return arena.used + 64;
}

// A factor's row, or ones where the factor is absent.
template <class T>
INLINE Vec<Compute<T>> factor(
    const Sequence& s,
    int64_t n,
    int64_t t,
    int64_t column,
    int64_t left) {
  typedef Compute<T> C;
  return s.data ? load_from<T>(s, n, t, column, left) : splat<C>(C(1));
}

template <class T>
static void run_linear_scan(
    const LinearScanArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  LinearScanLayout<T> layout(arena, g, shares);
  int64_t ldh = leading_dimension<C>(g.H);
  int chains = chains_for(g.N);
  Range panels = shares.panels(panel_count<C>(g.H));
  Range columns = columns_of<C>(panels, g.H);
  Element<T>* out = static_cast<Element<T>*>(g.out);

  Range own = shares.once(panel_count<C>(g.H));
  pack<T>(
      layout.V,
      g.V.data,
      g.V.column_stride,
      g.V.row_stride,
      g.H,
      g.H,
      own.first,
      own.last);
  wait(member);
  for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
    Range rows = shares.rows(s);
    int64_t count = rows.last - rows.first;
    if (g.hidden.data) {
      for (int64_t n = 0; n < count; ++n) {
        stage_row<T>(
            layout.carried[0] + n * ldh,
            row_of<T>(g.hidden, rows.first + n, 0),
            g.hidden.feature_stride,
            columns.first,
            columns.last);
      }
      shares.after_step();
    }
    for (int64_t i = 0; i < g.L; ++i) {
      int64_t t = g.transposed ? g.L - 1 - i : i;
      const C* before = layout.carried[i & 1];
      C* after = layout.carried[(i + 1) & 1];
      auto finish =
          [&](int64_t n, int64_t column, Vec<C> y, int64_t left)
              __attribute__((always_inline)) {
                store_some<T>(
                    out + ((rows.first + n) * g.L + t) * g.H + column, y, left);
                store_as(
                    after + n * ldh + column,
                    y * factor<T>(g.gamma, rows.first + n, t, column, left));
              };
      if (i == 0 && !g.hidden.data) {
        for (int64_t n = 0; n < count; ++n) {
          for (int64_t j = columns.first; j < columns.last;
               j += Simd<C>::lanes) {
            int64_t left = columns.last - j;
            finish(n, j, factor<T>(g.s, rows.first + n, t, j, left), left);
          }
        }
      } else {
        multiply<T>(
            count,
            g.H,
            before,
            ldh,
            layout.V,
            g.H,
            panels.first,
            panels.last,
            chains,
            Sums<C>{},
            t % 2 == 1,
            [&](const Tile<C>& tile) __attribute__((always_inline)) {
              tile.each([&](int64_t n, int64_t column, C* at, int64_t left) {
                Vec<C> s = factor<T>(g.s, rows.first + n, t, column, left);
                Vec<C> beta =
                    factor<T>(g.beta, rows.first + n, t, column, left);
                finish(n, column, s + beta * load_as<Vec<C>>(at), left);
              });
            });
      }
      shares.after_step();
    }
  }
}

} // namespace
