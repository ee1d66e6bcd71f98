// The linear scan and its transpose: the derivative of the nonlinear one.

#pragma once

#include "recurrent_product.h"
#include "running.h"

namespace {

// What a scan is made of: `single` has one state and one slab, and at most one
// path of each kind; in a `plain` one of these all rows have the same steps,
// and only the product passes, everywhere.
enum class ScanForm { plain, single, block };

template <class T>
struct LinearScanLayout {
  typedef Compute<T> C;
  Running running;
  int64_t ldh;
  int64_t ldc;   // of `carried`
  int64_t ldp;   // of `products`
  Panels<T> V;   // V^T, slab by slab; transposed, V
  bool restarts; // whether there is something to start an episode from
  C* hidden0;    // (states, ldh)
  C* carried[2]; // what V is multiplied with, by parity of the passage
  C* passed;     // by A (rows, states * ldh), like `carried`
  C* products;   // of several slabs (rows, ldp), like `carried`

  LinearScanLayout(Arena& arena, const LinearScanArgs& g, const Shares& shares)
      : running(arena, g.course, g.N, g.L), ldh(leading_dimension<C>(g.H)) {
    bool joins = g.transposed && g.slabs > 1;
    bool parts = !g.transposed && g.slabs > 1;
    ldc = joins ? leading_dimension<C>(g.slabs * g.H) : ldh;
    ldp = parts ? g.slabs * ldh : 0;
    restarts = false;
    for (int k = 0; k < g.states; ++k) {
      restarts = restarts || g.hidden0[k].data;
    }
    int64_t rows = shares.most_rows();
    int64_t groups = Shares::groups(shares.partition);
    auto take = [&](int64_t size) {
      return arena.take<C>(groups * size) + shares.group() * size;
    };
    bool stored = stays_stored<T>(chains_for(g.N));
    V = parts
        ? take_panels<T>(
              arena, g.H, g.slabs * panel_count<C>(g.H) * kPanel<C>, stored)
        : take_panels<T>(arena, g.slabs * g.H, g.H, stored);
    hidden0 = arena.take<C>(restarts ? g.states * ldh : 0);
    carried[0] = take(2 * rows * ldc);
    carried[1] = carried[0] + rows * ldc;
    passed = take(g.A_count > 0 ? rows * g.states * ldh : 0);
    products = take(rows * ldp);
  }

  // Of a scan that is not transposed.
  INLINE_MEMBER Panels<T> slab(int64_t H, int k) const {
    int64_t columns = panel_count<C>(H) * kPanel<C>;
    return Panels<T>{V.data + V.bytes(H, k * columns), V.stored};
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

// v times a factor, of row (n, t) from `column` on; absent factors are 1, and
// where a factor is 0, so is the result.
template <class T>
INLINE Vec<Compute<T>> scaled(
    const Sequence& factors,
    Vec<Compute<T>> v,
    int64_t n,
    int64_t t,
    int64_t column,
    int64_t left) {
  typedef Compute<T> C;
  if (!factors.data) {
    return v;
  }
  Vec<C> factor = load_from<T>(factors, n, t, column, left);
  return factor == C(0) ? Vec<C>{} : factor * v;
}

// to + the same, in one rounding.
template <class T>
INLINE Vec<Compute<T>> add_scaled(
    Vec<Compute<T>> to,
    const Sequence& factors,
    Vec<Compute<T>> v,
    int64_t n,
    int64_t t,
    int64_t column,
    int64_t left) {
  typedef Compute<T> C;
  if (!factors.data) {
    return to + v;
  }
  Vec<C> factor = load_from<T>(factors, n, t, column, left);
  return factor == C(0) ? to : to + factor * v;
}

// The steps of one slice. Passage i is that between steps i - 1 and i of the
// run; passage 0 leads into it. What goes through is written, with its factors,
// by the step on the near side, so that one barrier a step is enough.
template <class T, ScanForm form>
struct LinearScanSteps {
  typedef Compute<T> C;
  static constexpr bool plain = form == ScanForm::plain;
  static constexpr bool block = form == ScanForm::block;
  static constexpr int most_states = block ? kMostScanStates : 1;
  const LinearScanArgs& g;
  const LinearScanLayout<T>& layout;
  const Running& running;
  // Of a single state and slab, the factors in front of the matrix's product
  // and behind it.
  const Sequence& inner;
  const Sequence& outer;
  RecurrentProduct<T> product;
  Range columns; // this member's
  int64_t ldh;
  Range rows; // positions

  LinearScanSteps(
      const LinearScanArgs& g,
      const LinearScanLayout<T>& layout,
      const Shares& shares)
      : g(g),
        layout(layout),
        running(layout.running),
        inner(g.transposed ? g.B[0].factor : g.gamma),
        outer(g.transposed ? g.gamma : g.B[0].factor),
        product(
            layout.V,
            g.N,
            g.H,
            shares,
            g.transposed ? g.slabs * g.H : g.H,
            layout.ldc,
            0),
        columns(columns_of<C>(product.panels, g.H)),
        ldh(layout.ldh),
        rows{0, 0} {
  }

  INLINE_MEMBER int states() const {
    return block ? g.states : 1;
  }
  INLINE_MEMBER bool passes_by_A() const {
    return !plain && g.A_count > 0;
  }

  // Packs the matrix, and what else is done once for all members.
  INLINE_MEMBER void prepare(const Shares& shares) const {
    Range own = shares.once(panel_count<C>(g.H));
    bool parts = layout.ldp > 0;
    for (int k = 0; k < (parts ? g.slabs : 1); ++k) {
      pack<T>(
          parts ? layout.slab(g.H, k) : layout.V,
          static_cast<const Element<T>*>(g.V.data) + k * g.H * g.V.row_stride,
          g.transposed ? g.V.row_stride : g.V.column_stride,
          g.transposed ? g.V.column_stride : g.V.row_stride,
          g.transposed ? g.slabs * g.H : g.H,
          g.H,
          own.first,
          own.last);
    }
    if (shares.member.index == 0) {
      running.prepare(shares.partition);
      for (int k = 0; layout.restarts && k < states(); ++k) {
        C* to = layout.hidden0 + k * ldh;
        clear(to, ldh);
        if (g.hidden0[k].data) {
          stage_row<T>(
              to,
              static_cast<const Element<T>*>(g.hidden0[k].data),
              g.hidden0[k].stride,
              0,
              g.H);
        }
      }
    }
  }

  // Zeros in the padding.
  INLINE_MEMBER void clear_padding() const {
    for (int k = 0; k < states(); ++k) {
      for (int64_t p = rows.first; p < rows.last; ++p) {
        for (int64_t t = running.length(p); t < g.L; ++t) {
          clear(
              out(k) + (running.row(p) * g.L + t) * g.H + columns.first,
              columns.last - columns.first);
        }
      }
    }
  }

  INLINE_MEMBER Element<T>* out(int k) const {
    return static_cast<Element<T>*>(g.out[k]);
  }

  INLINE_MEMBER int64_t count_at(int64_t i) const {
    Range active = running.at_step(rows, i);
    return active.last - active.first;
  }

  // Whether the first steps have states before them.
  INLINE_MEMBER bool has_hidden() const {
    bool any = g.hidden[0].data;
    for (int k = 1; k < states(); ++k) {
      any = any || g.hidden[k].data;
    }
    return any;
  }

  // Whether anything can come through passage 0.
  INLINE_MEMBER bool begins() const {
    return (!g.transposed && has_hidden()) ||
        (starts_from_state() && !g.course.reverse);
  }

  // Whether an episode may start from something.
  INLINE_MEMBER bool starts_from_state() const {
    return !g.transposed && layout.restarts && g.course.reset.data;
  }

  // Whether anything comes through a passage.
  INLINE_MEMBER bool comes_through(int64_t position, int64_t passage) const {
    if (running.starts(position, passage)) {
      return starts_from_state();
    }
    return !running.truncates(passage) && (passage > 0 || has_hidden());
  }

  INLINE_MEMBER int64_t entered(int64_t i) const {
    return g.transposed ? i + 1 : i;
  }
  INLINE_MEMBER int64_t taken(int64_t i) const {
    return g.transposed ? i : i + 1;
  }

  // A row, and where its step and the passages on both sides of it are.
  struct Row {
    int64_t n; // in the slice
    int64_t number;
    int64_t step, entered, taken;
    int64_t offset;   // of its step in a result
    C* carried;       // of the passage that is taken
    bool comes_in;    // something, through the passage that is entered
    bool goes_on;     // the row has the step that follows
    const C* instead; // what goes on, if that is not the result
  };

  INLINE_MEMBER Row
  row_at(int64_t i, int64_t n, bool comes_in, bool goes_on) const {
    int64_t position = rows.first + n;
    int64_t number = running.row(position);
    int64_t t = running.place(position, i);
    Row row{
        n,
        number,
        t,
        running.place(position, entered(i)),
        running.place(position, taken(i)),
        (number * g.L + t) * g.H,
        layout.carried[taken(i) & 1] + n * layout.ldc,
        comes_in,
        goes_on,
        nullptr};
    if (!plain && comes_in) {
      row.comes_in = comes_through(position, entered(i));
    }
    if (!plain && goes_on && !g.transposed && layout.restarts &&
        running.starts(position, taken(i))) {
      row.instead = layout.hidden0;
    }
    return row;
  }

  // Row n of a slice all of whose rows have the places of its first.
  INLINE_MEMBER Row moved(Row first, int64_t n) const {
    first.n = n;
    first.number += n;
    first.offset += n * g.L * g.H;
    first.carried += n * layout.ldc;
    return first;
  }

  INLINE_MEMBER C* passed_to(const Row& row, int k, int64_t column) const {
    return layout.passed + (row.n * states() + k) * ldh + column;
  }

  // Sends u, a vector of each state, into the passage that a row takes.
  INLINE_MEMBER void carry(
      const Row& row,
      int64_t column,
      int64_t left,
      const Vec<C>* u) const {
    if (block && g.transposed) {
      carry_slabs(row, column, left, u);
    } else {
      store_as(
          row.carried + column,
          scaled<T>(inner, u[0], row.number, row.taken, column, left));
    }
    if (!passes_by_A()) {
      return;
    }
    if (!block) {
      store_as(
          passed_to(row, 0, column),
          scaled<T>(g.A[0].factor, u[0], row.number, row.taken, column, left));
      return;
    }
    Vec<C> sums[most_states] = {};
    for (const ScanPath* path = g.A; path < g.A + g.A_count; ++path) {
      Vec<C>& sum = sums[g.transposed ? path->from : path->to];
      sum = add_scaled<T>(
          sum,
          path->factor,
          u[g.transposed ? path->to : path->from],
          row.number,
          row.taken,
          column,
          left);
    }
    for (int k = 0; k < states(); ++k) {
      store_as(passed_to(row, k, column), sums[k]);
    }
  }

  // B^T u. Slabs lie close together: a part of a vector is stored as one.
  INLINE_MEMBER void carry_slabs(
      const Row& row,
      int64_t column,
      int64_t left,
      const Vec<C>* u) const {
    Vec<C> sums[kMostScanSlabs];
    for (int k = 0; k < g.slabs; ++k) {
      sums[k] = Vec<C>{};
    }
    for (const ScanPath* path = g.B; path < g.B + g.B_count; ++path) {
      sums[path->from] = add_scaled<T>(
          sums[path->from],
          path->factor,
          u[path->to],
          row.number,
          row.taken,
          column,
          left);
    }
    for (int k = 0; k < g.slabs; ++k) {
      store_some<AsComputed<C>>(row.carried + k * g.H + column, sums[k], left);
    }
  }

  // Sends what was before the first steps into passage 0, as a step -1 would.
  INLINE_MEMBER void begin() const {
    for (int64_t n = 0; n < count_at(0); ++n) {
      Row row = row_at(-1, n, false, true);
      for (int64_t j = columns.first; j < columns.last; j += Simd<C>::lanes) {
        int64_t left = columns.last - j;
        Vec<C> u[most_states];
        for (int k = 0; k < states(); ++k) {
          u[k] = Vec<C>{};
          if (row.instead) {
            u[k] = load_as<Vec<C>>(row.instead + k * ldh + j);
          } else if (g.hidden[k].data) {
            u[k] = load_from<T>(g.hidden[k], row.number, 0, j, left);
          }
        }
        carry(row, j, left, u);
      }
    }
  }

  // What the products add to y; those of slabs lie ldh apart.
  INLINE_MEMBER void add_products(
      const Row& row,
      int64_t column,
      int64_t left,
      const C* products,
      Vec<C>* y) const {
    if (!block || g.transposed) {
      y[0] = add_scaled<T>(
          y[0],
          outer,
          load_as<Vec<C>>(products),
          row.number,
          row.entered,
          column,
          left);
      return;
    }
    for (const ScanPath* path = g.B; path < g.B + g.B_count; ++path) {
      y[path->to] = add_scaled<T>(
          y[path->to],
          path->factor,
          load_as<Vec<C>>(products + path->from * ldh),
          row.number,
          row.entered,
          column,
          left);
    }
  }

  // Up to a whole vector of a row's result, from `column` on; `products` is
  // null where nothing comes in.
  INLINE_MEMBER void finish(
      const Row& row,
      int64_t column,
      int64_t left,
      const C* products) const {
    Vec<C> y[most_states];
    for (int k = 0; k < states(); ++k) {
      y[k] = block && !g.s[k].data
          ? Vec<C>{}
          : load_from<T>(g.s[k], row.number, row.step, column, left);
    }
    if (products && (plain || row.comes_in)) {
      for (int k = 0; passes_by_A() && k < states(); ++k) {
        y[k] += load_as<Vec<C>>(passed_to(row, k, column));
      }
      add_products(row, column, left, products, y);
    }
    for (int k = 0; k < states(); ++k) {
      store_some<T>(out(k) + row.offset + column, y[k], left);
    }
    if (row.goes_on) {
      for (int k = 0; !plain && row.instead && k < states(); ++k) {
        y[k] = load_as<Vec<C>>(row.instead + k * ldh + column);
      }
      carry(row, column, left, y);
    }
  }

  // Step i of every row that has it.
  INLINE_MEMBER void step(int64_t i) const {
    int64_t count = count_at(i);
    int64_t coming = 0; // rows that something may come in to
    bool whole = starts_from_state();
    if ((whole || !running.truncates(entered(i))) &&
        (entered(i) > 0 || begins())) {
      coming = count_at(entered(i));
    }
    int64_t going = 0; // rows that go on
    if ((whole || !running.truncates(taken(i))) && taken(i) > 0) {
      going = count_at(taken(i));
    }
    Row first{};
    if (plain) {
      first = row_at(i, 0, true, going > 0);
    }
    auto row = [&](int64_t n) __attribute__((always_inline)) {
      return plain ? moved(first, n) : row_at(i, n, n < coming, n < going);
    };
    auto finish_tile = [&](const Tile<C>& tile) __attribute__((always_inline)) {
      for (int64_t m = 0; m < tile.rows; ++m) {
        Row r = row(tile.row + m);
        const C* values = tile.values ? tile.values + m * tile.stride : nullptr;
        for (int64_t j = 0; j < tile.columns; j += Simd<C>::lanes) {
          finish(
              r,
              tile.column + j,
              tile.columns - j,
              values ? values + j : nullptr);
        }
      }
    };
    const C* from = layout.carried[entered(i) & 1];
    if (block && layout.ldp > 0) {
      multiply_slabs(i, coming, from);
      finish_tile(tile_of(layout.products + columns.first, 0, coming));
      finish_tile(tile_of(nullptr, coming, count));
    } else {
      product.step(i, coming, count, from, Sums<C>{}, finish_tile);
    }
  }

 private:
  INLINE_MEMBER Tile<C> tile_of(C* values, int64_t first, int64_t last) const {
    return Tile<C>{
        values,
        layout.ldp,
        first,
        last - first,
        columns.first,
        columns.last - columns.first};
  }

  // The product with each slab, of the first `coming` rows.
  void multiply_slabs(int64_t i, int64_t coming, const C* from) const {
    bool backward = i % 2 == 1;
    for (int number = 0; number < g.slabs; ++number) {
      int k = backward ? g.slabs - 1 - number : number;
      multiply<T>(
          coming,
          g.H,
          from,
          layout.ldc,
          layout.slab(g.H, k),
          g.H,
          product.panels.first,
          product.panels.last,
          product.chains,
          Sums<C>{nullptr, 0, layout.products + k * ldh, layout.ldp},
          backward,
          [](const Tile<C>&) {});
    }
  }
};

template <class T, ScanForm form>
static void run_linear_scan_as(
    const LinearScanArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  LinearScanLayout<T> layout(arena, g, shares);
  LinearScanSteps<T, form> steps(g, layout, shares);
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

template <class T>
static void run_linear_scan(
    const LinearScanArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  if (g.states > 1 || g.slabs > 1) {
    return run_linear_scan_as<T, ScanForm::block>(g, p, member, scratch);
  }
  bool plain = g.A_count == 0 && !g.course.lengths.data && !g.course.reset.data;
  return plain ? run_linear_scan_as<T, ScanForm::plain>(g, p, member, scratch)
               : run_linear_scan_as<T, ScanForm::single>(g, p, member, scratch);
}

} // namespace
