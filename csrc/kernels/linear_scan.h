// The linear scan and its transpose: the derivative of the nonlinear one.

#pragma once

#include "recurrent_product.h"
#include "running.h"

namespace {

template <class T>
struct LinearScanLayout {
  typedef Compute<T> C;
  Running running;
  Panels<T> V;   // V^T; transposed, V
  C* hidden0;    // (ldh,)
  C* carried[2]; // what V is multiplied with, by parity of the passage
  C* passed;     // alpha * y (rows, ldh), like `carried`

  LinearScanLayout(Arena& arena, const LinearScanArgs& g, const Shares& shares)
      : running(arena, g.course, g.N, g.L) {
    int64_t ldh = leading_dimension<C>(g.H);
    int64_t size = shares.most_rows() * ldh;
    int64_t groups = Shares::groups(shares.partition);
    V = take_panels<T>(arena, g.H, g.H, stays_stored<T>(chains_for(g.N)));
    hidden0 = arena.take<C>(g.hidden0.data ? ldh : 0);
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
// by the step on the near side, so that one barrier a step is enough. `plain`:
// all rows have the same steps, and only the product passes, everywhere.
template <class T, bool plain>
struct LinearScanSteps {
  typedef Compute<T> C;
  const LinearScanArgs& g;
  const LinearScanLayout<T>& layout;
  const Running& running;
  // The factors in front of the matrix's product and behind it.
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
        inner(g.transposed ? g.beta : g.gamma),
        outer(g.transposed ? g.gamma : g.beta),
        product(layout.V, g.N, g.H, shares),
        columns(columns_of<C>(product.panels, g.H)),
        ldh(product.ld),
        rows{0, 0} {
  }

  // Packs the matrix, and what else is done once for all members.
  INLINE_MEMBER void prepare(const Shares& shares) const {
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
      if (g.hidden0.data) {
        stage_row<T>(
            layout.hidden0,
            static_cast<const Element<T>*>(g.hidden0.data),
            g.hidden0.stride,
            0,
            g.H);
      }
    }
  }

  // Zeros in the padding.
  INLINE_MEMBER void clear_padding() const {
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
  INLINE_MEMBER bool begins() const {
    return (!g.transposed && g.hidden.data) ||
        (starts_from_state() && !g.course.reverse);
  }

  // Whether an episode may start from something.
  bool starts_from_state() const {
    return !g.transposed && g.hidden0.data && g.course.reset.data;
  }

  // Whether anything comes through a passage.
  INLINE_MEMBER bool comes_through(int64_t position, int64_t passage) const {
    if (running.starts(position, passage)) {
      return starts_from_state();
    }
    return !running.truncates(passage) && (passage > 0 || g.hidden.data);
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
    Element<T>* out;
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
        static_cast<Element<T>*>(g.out) + (number * g.L + t) * g.H,
        layout.carried[taken(i) & 1] + n * ldh,
        comes_in,
        goes_on,
        nullptr};
    if (!plain && comes_in) {
      row.comes_in = comes_through(position, entered(i));
    }
    if (!plain && goes_on && !g.transposed && g.hidden0.data &&
        running.starts(position, taken(i))) {
      row.instead = layout.hidden0;
    }
    return row;
  }

  // Row n of a slice all of whose rows have the places of its first.
  INLINE_MEMBER Row moved(Row first, int64_t n) const {
    first.n = n;
    first.number += n;
    first.out += n * g.L * g.H;
    first.carried += n * ldh;
    return first;
  }

  // Sends u into the passage that a row takes.
  INLINE_MEMBER void carry(
      const Row& row,
      int64_t column,
      int64_t left,
      Vec<C> u) const {
    store_as(
        row.carried + column,
        scaled<T>(inner, u, row.number, row.taken, column, left));
    if (!plain && g.alpha.data) {
      store_as(
          layout.passed + row.n * ldh + column,
          scaled<T>(g.alpha, u, row.number, row.taken, column, left));
    }
  }

  // Sends what was before the first steps into passage 0, as a step -1 would.
  INLINE_MEMBER void begin() const {
    for (int64_t n = 0; n < count_at(0); ++n) {
      Row row = row_at(-1, n, false, true);
      for (int64_t j = columns.first; j < columns.last; j += Simd<C>::lanes) {
        int64_t left = columns.last - j;
        Vec<C> u = {};
        if (row.instead) {
          u = load_as<Vec<C>>(row.instead + j);
        } else if (g.hidden.data) {
          u = load_from<T>(g.hidden, row.number, 0, j, left);
        }
        carry(row, j, left, u);
      }
    }
  }

  // Up to a whole vector of a row's result, from `column` on; `product` is null
  // where nothing comes in.
  INLINE_MEMBER void finish(
      const Row& row,
      int64_t column,
      int64_t left,
      const C* product) const {
    Vec<C> y = load_from<T>(g.s, row.number, row.step, column, left);
    if (product && (plain || row.comes_in)) {
      if (!plain && g.alpha.data) {
        y += load_as<Vec<C>>(layout.passed + row.n * ldh + column);
      }
      y = add_scaled<T>(
          y,
          outer,
          load_as<Vec<C>>(product),
          row.number,
          row.entered,
          column,
          left);
    }
    store_some<T>(row.out + column, y, left);
    if (row.goes_on) {
      Vec<C> u = y;
      if (!plain && row.instead) {
        u = load_as<Vec<C>>(row.instead + column);
      }
      carry(row, column, left, u);
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
    product.step(
        i,
        coming,
        count,
        layout.carried[entered(i) & 1],
        Sums<C>{},
        [&](const Tile<C>& tile) __attribute__((always_inline)) {
          for (int64_t m = 0; m < tile.rows; ++m) {
            Row r = row(tile.row + m);
            const C* values =
                tile.values ? tile.values + m * tile.stride : nullptr;
            for (int64_t j = 0; j < tile.columns; j += Simd<C>::lanes) {
              finish(
                  r,
                  tile.column + j,
                  tile.columns - j,
                  values ? values + j : nullptr);
            }
          }
        });
  }
};

template <class T, bool plain>
static void run_linear_scan_as(
    const LinearScanArgs& g,
    const Partition& p,
    const Member& member,
    char* scratch) {
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  LinearScanLayout<T> layout(arena, g, shares);
  LinearScanSteps<T, plain> steps(g, layout, shares);
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
  bool plain = !g.alpha.data && !g.course.lengths.data && !g.course.reset.data;
  return plain ? run_linear_scan_as<T, true>(g, p, member, scratch)
               : run_linear_scan_as<T, false>(g, p, member, scratch);
}

} // namespace
