// Products over whole sequences: x w^T + bias, and sums of outer products.

#pragma once

#include "team_work.h"

namespace {

// Rows that are staged at a time.
constexpr int64_t kMatmulRows = 16 * kRows;
constexpr int64_t kOuterRows = 256;

template <class T>
struct MatmulLayout {
  typedef Compute<T> C;
  Panels<T> w; // w^T
  C* bias;
  C* x; // (kMatmulRows, ldk), by member

  MatmulLayout(
      Arena& arena,
      const MatmulArgs& g,
      const Partition& p,
      int member) {
    int64_t staged = kMatmulRows * leading_dimension<C>(g.K);
    int64_t rows = minimum(g.N * g.L, kMatmulRows);
    w = take_panels<T>(
        arena, g.K, g.M, false, product_of<T>(g.sgemm, p, rows, g.K, g.M));
    bias = arena.take<C>(leading_dimension<C>(g.M));
    x = arena.take<C>(p.threads * staged) + member * staged;
  }
};

template <class T>
static size_t matmul_scratch(const MatmulArgs& args, const Partition& p) {
  Arena arena{0};
  MatmulLayout<T> layout(arena, args, p, 0);
  return arena.used + 64;
}

// The partition's `batch` divides the N * L rows here, `units` the M columns.
template <class T>
static void run_matmul(
    const MatmulArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  Arena arena = arena_at(scratch);
  MatmulLayout<T> layout(arena, g, p, member.index);
  Shares shares{p, member, g.N * g.L};
  int64_t panels = panel_count<C>(g.M);
  Range own = shares.once(panels);
  pack<T>(
      layout.w,
      g.w.data,
      g.w.column_stride,
      g.w.row_stride,
      g.K,
      g.M,
      own.first,
      own.last);
  if (member.index == 0) {
    clear(layout.bias, leading_dimension<C>(g.M));
    if (g.bias.data) {
      stage_row<T>(
          layout.bias,
          static_cast<const Element<T>*>(g.bias.data),
          g.bias.stride,
          0,
          g.M);
    }
  }
  wait(member);
  Range columns = shares.panels(panels);
  Range rows = shares.by_units() ? Range{0, g.N * g.L} : shares.once(g.N * g.L);
  int64_t ldk = leading_dimension<C>(g.K);
  Element<T>* out = static_cast<Element<T>*>(g.out);
  for (int64_t r0 = rows.first; r0 < rows.last; r0 += kMatmulRows) {
    int64_t r1 = minimum(r0 + kMatmulRows, rows.last);
    for (int64_t r = r0; r < r1; ++r) {
      stage_row<T>(
          layout.x + (r - r0) * ldk,
          row_of<T>(g.x, r / g.L, r % g.L),
          g.x.feature_stride,
          0,
          g.K);
    }
    multiply<T>(
        r1 - r0,
        g.K,
        layout.x,
        ldk,
        layout.w,
        g.M,
        columns.first,
        columns.last,
        chains_for(g.N * g.L),
        Sums<C>{layout.bias, 0, nullptr, 0},
        false,
        [&](const Tile<C>& tile) __attribute__((always_inline)) {
          tile.each([&](int64_t row, int64_t column, C* at, int64_t left) {
            store_some<T>(
                out + (r0 + row) * g.M + column, load_as<Vec<C>>(at), left);
          });
        });
  }
}

template <class T>
struct OuterSumLayout {
  typedef Compute<T> C;
  C* sums;  // (M, ldk)
  C* a;     // (kOuterRows, ldm), by member
  C* panel; // (kOuterTerms, kPanel), by member; by a BLAS (kOuterRows, ldk)
  Sgemm sgemm;

  OuterSumLayout(
      Arena& arena,
      const OuterSumArgs& g,
      const Partition& p,
      int member) {
    int64_t staged = kOuterRows * leading_dimension<C>(g.M);
    sums = arena.take<C>(g.M * leading_dimension<C>(g.K));
    a = arena.take<C>(p.threads * staged) + member * staged;
    sgemm = product_of<T>(
        g.sgemm, p, g.M / p.threads, minimum(g.N * g.L, kOuterRows), g.K);
    int64_t size = sgemm ? kOuterRows * leading_dimension<C>(g.K)
                         : kOuterTerms * kPanel<C>;
    panel = arena.take<C>(p.threads * size) + member * size;
  }
};

template <class T>
static size_t outer_sum_scratch(const OuterSumArgs& args, const Partition& p) {
  Arena arena{0};
  OuterSumLayout<T> layout(arena, args, p, 0);
  return arena.used + 64;
}

// Every member forms its own rows of the result, over all N * L terms, so that
// the order of summation does not depend on their number.
template <class T>
static void run_outer_sum(
    const OuterSumArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  Arena arena = arena_at(scratch);
  OuterSumLayout<T> layout(arena, g, p, member.index);
  int64_t ldm = leading_dimension<C>(g.M);
  int64_t ldk = leading_dimension<C>(g.K);
  Range own = part_of(g.M, member.index, member.count);
  // From a whole vector on, because rows are staged by whole vectors.
  int64_t staged = own.first - own.first % Simd<C>::lanes;
  clear(layout.sums + own.first * ldk, (own.last - own.first) * ldk);
  int64_t terms = g.N * g.L;
  for (int64_t r0 = 0; r0 < terms; r0 += kOuterRows) {
    int64_t count = minimum(kOuterRows, terms - r0);
    for (int64_t r = 0; r < count; ++r) {
      stage_row<T>(
          layout.a + r * ldm,
          row_of<T>(g.a, (r0 + r) / g.L, (r0 + r) % g.L),
          g.a.feature_stride,
          staged,
          own.last);
    }
    if constexpr (sizeof(C) == sizeof(float)) {
      if (layout.sgemm) {
        for (int64_t r = 0; r < count; ++r) {
          stage_row<T>(
              layout.panel + r * ldk,
              row_of<T>(g.b, (r0 + r) / g.L, (r0 + r) % g.L),
              g.b.feature_stride,
              0,
              g.K);
        }
        add_outer(
            layout.sgemm,
            count,
            own.last - own.first,
            g.K,
            layout.a + own.first,
            ldm,
            layout.panel,
            ldk,
            layout.sums + own.first * ldk,
            ldk);
        continue;
      }
    }
    for (int64_t j0 = 0; j0 < g.K; j0 += kPanel<C>) {
      int64_t width = minimum(kPanel<C>, g.K - j0);
      int64_t r = r0;
      OuterPart<C> part{layout.a, layout.sums + j0, own.first, own.last};
      accumulate_outer<C>(
          count, &part, 1, ldm, layout.panel, width, ldk, [&](C* to) {
            stage_panel_row<T>(
                to,
                row_of<T>(g.b, r / g.L, r % g.L) + j0 * g.b.feature_stride,
                g.b.feature_stride,
                width);
            ++r;
          });
    }
  }
  Element<T>* out = static_cast<Element<T>*>(g.out);
  for (int64_t i = own.first; i < own.last; ++i) {
    write_row<T>(out + i * g.K, layout.sums + i * ldk, 0, g.K);
  }
}

} // namespace
