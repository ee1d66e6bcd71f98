// The linear scan and its transpose: the derivative of the nonlinear one.

#pragma once

#include "course.h"

namespace {

template <class T>
struct LinearScanLayout {
  typedef Compute<T> C;
  Running running;
  Panels<T> V;   // V^T; transposed, V
  C* restart;    // (ldh,)
  C* carried[2]; // what V is multiplied with, by parity of the passage
  C* passed;     // alpha * y (rows, ldh), like `carried`

  LinearScanLayout(Arena& arena, const LinearScanArgs& g, const Shares& shares)
      : running(arena, g.course, g.N, g.L) {
    int64_t ldh = leading_dimension<C>(g.H);
    int64_t size = shares.most_rows() * ldh;
    int64_t groups = Shares::groups(shares.partition);
    V = take_panels<T>(arena, g.H, g.H, stays_stored<T>(chains_for(g.N)));
    restart = arena.take<C>(g.restart.data ? ldh : 0);
    C* all = arena.take<C>(2 * groups * size);
    carried[0] = all + 2 * shares.group() * size;
    carried[1] = carried[0] + size;
    passed = arena.take<C>(g.alpha.data ? groups * size : 0) +
        (g.alpha.data ? shares.group() * size : 0);
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

// One row of factors, from a column on; null data: ones.
template <class T>
struct FactorRow {
  typedef Compute<T> C;
  const Element<T>* data;
  int64_t stride;

  static INLINE_MEMBER FactorRow
  of(const Sequence& s, int64_t n, int64_t t, int64_t column) {
    if (!s.data) {
      return FactorRow{nullptr, 0};
    }
    return FactorRow{
        row_of<T>(s, n, t) + column * s.feature_stride, s.feature_stride};
  }

  INLINE_MEMBER Vec<C> load(int64_t j, int64_t left) const {
    return load_strided<T>(data + j * stride, stride, left);
  }

  // factor * v; where the factor is 0, 0.
  INLINE_MEMBER Vec<C> times(Vec<C> v, int64_t j, int64_t left) const {
    if (!data) {
      return v;
    }
    Vec<C> factor = load(j, left);
    return factor == C(0) ? Vec<C>{} : factor * v;
  }
};

// The steps of one slice. Passage i is that between steps i - 1 and i of the
// run; passage 0 leads into it. What goes through is written, with its factors,
// by the step on the near side, so that one barrier a step is enough.
template <class T>
struct LinearScanSteps {
  typedef Compute<T> C;
  const LinearScanArgs& g;
  const LinearScanLayout<T>& layout;
  const Running& running;
  // The factors in front of the matrix's product and behind it.
  const Sequence& inner;
  const Sequence& outer;
  Range panels; // this member's
  Range columns;
  int64_t ldh;
  int chains;
  Range rows; // positions

  LinearScanSteps(
      const LinearScanArgs& g,
      const LinearScanLayout<T>& layout,
      const Shares& shares)
      : g(g),
        layout(layout),
        running(layout.running),
        inner(g.transposed ? g.beta : g.gamma),
        outer(g.transposed ? g.gamma : g.beta),
        panels(shares.panels(panel_count<C>(g.H))),
        columns(columns_of<C>(panels, g.H)),
        ldh(leading_dimension<C>(g.H)),
        chains(chains_for(g.N)),
        rows{0, 0} {
  }

  // Packs the matrix, and what else is done once for all members.
  void prepare(const Shares& shares) const {
    Range own = shares.once(panel_count<C>(g.H));
    pack<T>(
        layout.V,
        g.V.data,
        g.transposed ? g.V.row_stride : g.V.column_stride,
        g.transposed ? g.V.column_stride : g.V.row_stride,
        g.H,
        g.H,
        own.first,
        own.last);
    if (shares.member.index == 0) {
      running.prepare(shares.partition);
      if (g.restart.data) {
        stage_row<T>(
            layout.restart,
            static_cast<const Element<T>*>(g.restart.data),
            g.restart.stride,
            0,
            g.H);
      }
    }
  }

  // Zeros in the padding.
  void clear_padding() const {
    Element<T>* out = static_cast<Element<T>*>(g.out);
    for (int64_t k = rows.first; k < rows.last; ++k) {
      for (int64_t t = running.length(k); t < g.L; ++t) {
        clear(
            out + (running.row(k) * g.L + t) * g.H + columns.first,
            columns.last - columns.first);
      }
    }
  }

  INLINE_MEMBER int64_t count_at(int64_t i) const {
    Range active = running.at_step(rows, i);
    return active.last - active.first;
  }

  // Whether anything can come through passage 0.
  bool begins() const {
    bool restarts = g.restart.data && g.course.reset.data && !g.course.reverse;
    return !g.transposed && (g.hidden.data || restarts);
  }

  // Whether anything comes through a passage that is not truncated.
  INLINE_MEMBER bool comes_through(int64_t position, int64_t passage) const {
    return running.starts(position, passage) ? !g.transposed && g.restart.data
                                             : passage > 0 || g.hidden.data;
  }

  // What goes through passage 0.
  void begin() const {
    for (int64_t n = 0; n < count_at(0); ++n) {
      int64_t position = rows.first + n;
      int64_t row = running.row(position);
      int64_t t = running.place(position, 0);
      bool starts = running.starts(position, 0);
      auto gamma = FactorRow<T>::of(g.gamma, row, t, 0);
      auto alpha = FactorRow<T>::of(g.alpha, row, t, 0);
      for (int64_t j = columns.first; j < columns.last; j += Simd<C>::lanes) {
        int64_t left = columns.last - j;
        Vec<C> u = {};
        if (starts && g.restart.data) {
          u = load_as<Vec<C>>(layout.restart + j);
        } else if (!starts && g.hidden.data) {
          u = load_from<T>(g.hidden, row, 0, j, left);
        }
        store_as(layout.carried[0] + n * ldh + j, gamma.times(u, j, left));
        if (alpha.data) {
          store_as(layout.passed + n * ldh + j, alpha.times(u, j, left));
        }
      }
    }
  }

  // Some columns of step i of row n of the slice. `product` is null where
  // nothing comes in; `goes_on`: the row has the step that follows.
  INLINE_MEMBER void finish(
      int64_t i,
      int64_t n,
      int64_t column,
      int64_t count,
      const C* product,
      bool goes_on) const {
    int64_t position = rows.first + n;
    int64_t row = running.row(position);
    int64_t t = running.place(position, i);
    int64_t entered = g.transposed ? i + 1 : i;
    int64_t taken = g.transposed ? i : i + 1;
    if (g.course.reset.data && product && !comes_through(position, entered)) {
      product = nullptr;
    }
    const C* instead = nullptr;
    if (goes_on && !g.transposed && g.restart.data &&
        running.starts(position, taken)) {
      instead = layout.restart + column;
    }
    auto source = FactorRow<T>::of(g.s, row, t, column);
    FactorRow<T> behind{}, before{}, alpha{};
    if (product) {
      behind = FactorRow<T>::of(
          outer, row, running.place(position, entered), column);
    }
    if (goes_on) {
      int64_t place = running.place(position, taken);
      before = FactorRow<T>::of(inner, row, place, column);
      alpha = FactorRow<T>::of(g.alpha, row, place, column);
    }
    C* to = layout.carried[taken & 1] + n * ldh + column;
    C* passed = layout.passed + n * ldh + column;
    Element<T>* out =
        static_cast<Element<T>*>(g.out) + (row * g.L + t) * g.H + column;
    for (int64_t j = 0; j < count; j += Simd<C>::lanes) {
      int64_t left = count - j;
      Vec<C> y = source.load(j, left);
      if (product) {
        if (g.alpha.data) {
          y += load_as<Vec<C>>(passed + j);
        }
        y += behind.times(load_as<Vec<C>>(product + j), j, left);
      }
      store_some<T>(out + j, y, left);
      if (goes_on) {
        Vec<C> u = instead ? load_as<Vec<C>>(instead + j) : y;
        store_as(to + j, before.times(u, j, left));
        if (alpha.data) {
          store_as(passed + j, alpha.times(u, j, left));
        }
      }
    }
  }

  // Step i of every row that has it.
  void step(int64_t i) const {
    int64_t entered = g.transposed ? i + 1 : i;
    int64_t taken = g.transposed ? i : i + 1;
    int64_t count = count_at(i);
    int64_t coming = 0; // rows that something may come in to
    if (!running.truncates(entered) && (entered > 0 || begins())) {
      coming = count_at(entered);
    }
    int64_t going = 0; // rows that go on
    if (!running.truncates(taken) && taken > 0) {
      going = count_at(taken);
    }
    multiply<T>(
        coming,
        g.H,
        layout.carried[entered & 1],
        ldh,
        layout.V,
        g.H,
        panels.first,
        panels.last,
        chains,
        Sums<C>{},
        i % 2 == 1,
        [&](const Tile<C>& tile) __attribute__((always_inline)) {
          for (int m = 0; m < tile.rows; ++m) {
            finish(
                i,
                tile.row + m,
                tile.column,
                tile.columns,
                tile.values + m * tile.stride,
                tile.row + m < going);
          }
        });
    for (int64_t n = coming; n < count; ++n) {
      finish(
          i,
          n,
          columns.first,
          columns.last - columns.first,
          nullptr,
          n < going);
    }
  }
};

template <class T>
static void run_linear_scan(
    const LinearScanArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  LinearScanLayout<T> layout(arena, g, shares);
  LinearScanSteps<T> steps(g, layout, shares);
  steps.prepare(shares);
  wait(member);
  for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
    steps.rows = shares.rows(s);
    steps.clear_padding();
    if (steps.begins()) {
      steps.begin();
      shares.after_step();
    }
    int64_t most = layout.running.most_steps(steps.rows);
    for (int64_t k = 0; k < most; ++k) {
      steps.step(g.transposed ? most - 1 - k : k);
      shares.after_step();
    }
  }
}

} // namespace
