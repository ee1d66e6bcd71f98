// The nonlinear scan, in chunks of time that stay in cache.

#pragma once

#include "elman.h"
#include "program.h"
#include "recurrent_product.h"
#include "terms.h"

namespace {

template <class C>
struct VectorOps {
  static INLINE_MEMBER Vec<C> tanh(Vec<C> a) {
    return hyperbolic_tangent<C>(a);
  }
  static INLINE_MEMBER Vec<C> logistic(Vec<C> a) {
    return ::logistic<C>(a);
  }
  // NaN passes; -0 becomes +0, as in mlx.core.maximum(a, 0).
  static INLINE_MEMBER Vec<C> positive_part(Vec<C> a) {
    return a <= C(0) ? Vec<C>{} : a;
  }
  static INLINE_MEMBER Vec<C> where_positive(Vec<C> h, Vec<C> one) {
    return h > C(0) ? one : Vec<C>{};
  }
};

// Bytes of one chunk's states or inputs, at which they still leave room in a
// level-2 cache, and rows that keep the micro-kernel busy.
constexpr int64_t kForwardChunkBytes = 256 * 1024;
constexpr int64_t kForwardChunkRows = 4 * kRows;

INLINE int64_t forward_chunk_steps(int64_t L, int64_t rows, int64_t row_bytes) {
  int64_t per_step = rows > 0 ? rows : 1;
  int64_t steps = kForwardChunkBytes / (per_step * row_bytes);
  int64_t least = ceil_div(kForwardChunkRows, per_step);
  steps = steps > least ? steps : least;
  return minimum(steps, L);
}

// The part of the scratch memory that running steps forward needs; where there
// are no steps only that for a traced activation. First what `prepare` fills,
// in places that no number of steps moves.
template <class T>
struct ForwardMemory {
  typedef Compute<T> C;
  Panels<T> Whh; // Whh^T
  Panels<T> Wxh; // Wxh^T
  C* bias;
  ProgramMemory<C> function; // where the activation is traced
  C* x;                      // (steps * rows, ldd), by member

  // `chains` are those of the products with Whh.
  ForwardMemory(
      Arena& arena,
      const RecurrenceArgs& g,
      const Partition& p,
      int64_t rows,
      int64_t steps,
      int chains,
      int member) {
    int64_t ldd = leading_dimension<C>(g.D);
    bool projects = steps > 0 && !g.projected;
    Whh = take_panels<T>(
        arena, steps > 0 ? g.H : 0, g.H, stays_stored<T>(chains));
    Wxh = take_panels<T>(arena, projects ? g.D : 0, g.H, false);
    bias = arena.take<C>(steps > 0 ? leading_dimension<C>(g.H) : 0);
    if (g.activation == Activation::traced) {
      function = ProgramMemory<C>(arena, *g.function, p, member);
    }
    int64_t staged = projects ? steps * rows * ldd : 0;
    x = arena.take<C>(p.threads * staged) + member * staged;
  }
};

// Where one step leaves its results; nowhere at first.
template <class T>
struct StepResults {
  typedef Compute<T> C;
  Element<T>* states = nullptr;
  C* preactivations = nullptr;
  const RecurrenceArgs* g = nullptr;
  int64_t step = 0;
  int64_t kept = 0; // states of a row
  int64_t slot = 0;
  bool keeps = false; // every row's state, not only that of a row that ends

  StepResults() = default;

  StepResults(const ForwardArgs& args, int64_t i)
      : states(static_cast<Element<T>*>(args.states)),
        preactivations(static_cast<C*>(args.preactivations)),
        g(&args.layer),
        step(i) {
    int64_t every = g->checkpoint_every;
    if (every > 0) {
      kept = kept_states(g->L, every, g->latest_checkpoint);
      slot = g->latest_checkpoint ? 0 : i / every;
      keeps = (i + 1) % every == 0;
    }
  }

  INLINE_MEMBER Element<T>* state(const Running& running, int64_t p) const {
    if (!states) {
      return nullptr;
    }
    int64_t row = running.row(p);
    if (g->checkpoint_every == 0) {
      return states + (row * g->L + running.place(p, step)) * g->H;
    }
    int64_t left = running.length(p) - (step + 1);
    bool keep = g->latest_checkpoint
        ? keeps && left > 0 && left <= g->checkpoint_every
        : keeps || left == 0;
    return keep ? states + (row * kept + slot) * g->H : nullptr;
  }

  INLINE_MEMBER C* preactivation(const Running& running, int64_t p) const {
    return preactivations ? preactivations +
            (running.row(p) * g->L + running.place(p, step)) * g->H
                          : nullptr;
  }
};

// What a step takes and gives, but for its results: rows of ldh elements, those
// of one step in a row.
template <class C>
struct StepBuffers {
  const C* seen;   // by Whh; null: nothing
  const C* before; // the states before, where a state is more than f(a)
  C* a;            // z, which becomes the pre-activations
  C* state;        // may be `a`
  C* next;         // what Whh sees in the next step; null: the state
};

// Steps forward over the rows of one slice.
template <class T, Activation f>
struct ForwardSteps {
  typedef Compute<T> C;
  static constexpr int64_t lanes = Simd<C>::lanes;
  const RecurrenceArgs& g;
  const Shares& shares;
  const Running& running;
  Terms<T>& terms;
  const ForwardMemory<T>& memory;
  Range panels; // of H, this member's
  Range columns;
  Range rows{0, 0}; // positions, as `running` has them
  int64_t ldh, ldd;
  RecurrentProduct<T> product; // with Whh

  ForwardSteps(
      const RecurrenceArgs& g,
      const Shares& shares,
      const Running& running,
      Terms<T>& terms,
      const ForwardMemory<T>& memory)
      : g(g),
        shares(shares),
        running(running),
        terms(terms),
        memory(memory),
        product(memory.Whh, g.N, g.H, shares) {
    panels = product.panels;
    columns = columns_of<C>(panels, g.H);
    ldh = product.ldh;
    ldd = leading_dimension<C>(g.D);
  }

  // Packs the weights, once for all members; the caller waits for them.
  void prepare() const {
    Range own = shares.once(panel_count<C>(g.H));
    pack<T>(
        memory.Whh,
        g.Whh.data,
        g.Whh.column_stride,
        g.Whh.row_stride,
        g.H,
        g.H,
        own.first,
        own.last);
    if (!g.projected) {
      pack<T>(
          memory.Wxh,
          g.Wxh.data,
          g.Wxh.column_stride,
          g.Wxh.row_stride,
          g.D,
          g.H,
          own.first,
          own.last);
    }
    if (shares.member.index == 0) {
      clear(memory.bias, ldh);
      if (g.bias.data) {
        stage_row<T>(
            memory.bias,
            static_cast<const Element<T>*>(g.bias.data),
            g.bias.stride,
            0,
            g.H);
      }
    }
    if constexpr (f == Activation::traced) {
      spread_constants(*g.function, memory.function);
    }
  }

  void begin(Range positions) {
    rows = positions;
    terms.begin(positions);
  }

  int64_t count_at(int64_t i) const {
    Range running_rows = running.at_step(rows, i);
    return running_rows.last - running_rows.first;
  }

  // The first states of the first `count` rows into `to`, this member's
  // columns. Returns whether there are any.
  bool stage_hidden(int64_t count, C* to) const {
    for (int64_t r = 0; r < count; ++r, to += ldh) {
      if (!g.hidden.data) {
        clear(to + columns.first, columns.last - columns.first);
        continue;
      }
      stage_row<T>(
          to,
          row_of<T>(g.hidden, running.row(rows.first + r), 0),
          g.hidden.feature_stride,
          columns.first,
          columns.last);
    }
    return g.hidden.data;
  }

  // What Whh sees at step i of the states before it.
  void carry(int64_t i, int64_t count, const C* before, C* to) const {
    for (int64_t r = 0; r < count; ++r) {
      terms.carry(i, r, before + r * ldh, to + r * ldh);
    }
  }

  // Calls use(r, t, i) for the rows of steps [first, last) that run, in the
  // order in which they lie in memory; returns their number.
  template <class Use>
  INLINE_MEMBER int64_t each_row(int64_t first, int64_t last, Use use) const {
    int64_t total = 0;
    for (int64_t i = first; i < last; ++i) {
      int64_t count = count_at(i);
      for (int64_t r = 0; r < count; ++r) {
        use(r, running.place(rows.first + r, i), i);
      }
      total += count;
    }
    return total;
  }

  // z of steps [first, last) of the rows that run, this member's columns.
  void project(int64_t first, int64_t last, C* to) const {
    if (g.projected) {
      each_row(first, last, [&](int64_t r, int64_t t, int64_t) {
        stage_row<T>(
            to,
            row_of<T>(g.x, running.row(rows.first + r), t),
            g.x.feature_stride,
            columns.first,
            columns.last);
        to += ldh;
      });
      return;
    }
    C* x = memory.x;
    int64_t total = each_row(first, last, [&](int64_t r, int64_t t, int64_t) {
      stage_row<T>(
          x,
          row_of<T>(g.x, running.row(rows.first + r), t),
          g.x.feature_stride,
          0,
          g.D);
      terms.drop_inputs(r, x, 0, g.D);
      x += ldd;
    });
    multiply<T>(
        total,
        g.D,
        memory.x,
        ldd,
        memory.Wxh,
        g.H,
        panels.first,
        panels.last,
        1,
        Sums<C>{memory.bias, 0, to, ldh},
        false,
        [](const Tile<C>&) {});
  }

  // Step i of the first `count` rows.
  void step(
      int64_t i,
      int64_t count,
      const StepBuffers<C>& at,
      const StepResults<T>& results) const {
    terms.begin_step(i, count);
    bool absent = at.seen && terms.episodes && !g.hidden0.data;
    if (absent) {
      swap_started(count, at.a, terms.saved);
    }
    auto finish = [&](const Tile<C>& tile) __attribute__((always_inline)) {
      if constexpr (f != Activation::traced) {
        activate_tile(tile, at, results, absent);
      }
    };
    product.step(
        i, at.seen ? count : 0, count, at.seen, {at.a, ldh, at.a, ldh}, finish);
    if constexpr (f == Activation::traced) {
      if (absent) {
        swap_started(count, terms.saved, at.a);
      }
      run_traced(count, at, results);
    }
    if (at.next) {
      carry(i + 1, count_at(i + 1), at.state, at.next);
    }
    shares.after_step();
  }

 private:
  // Copies the rows whose episode starts: no product is added to them.
  void swap_started(int64_t count, const C* from, C* to) const {
    for (int64_t r = 0; r < count; ++r) {
      if (terms.starts_row(r)) {
        for (int64_t j = columns.first; j < columns.last; j += lanes) {
          store_as(to + r * ldh + j, load_as<Vec<C>>(from + r * ldh + j));
        }
      }
    }
  }

  // The state before the step at hand, as the sum in h_t has it.
  INLINE_MEMBER const C* state_before(const StepBuffers<C>& at, int64_t r)
      const {
    return terms.starts_row(r) ? terms.hidden0 : at.before + r * ldh;
  }

  INLINE_MEMBER void activate_tile(
      const Tile<C>& tile,
      const StepBuffers<C>& at,
      const StepResults<T>& results,
      bool absent) const {
    bool blends = terms.blends();
    bool plain =
        !blends && !absent && at.state == at.a && !results.preactivations;
    for (int64_t m = 0; m < tile.rows; ++m) {
      int64_t r = tile.row + m;
      C* values = tile.values + m * tile.stride;
      Element<T>* out = results.state(running, rows.first + r);
      if (plain) {
        for (int64_t j = 0; j < tile.columns; j += lanes) {
          Vec<C> h = T::round(
              mlx_recurrent::elman::activate<f, VectorOps<C>>(
                  load_as<Vec<C>>(values + j)));
          store_as(values + j, h);
          if (out) {
            store_some<Rounded<T>>(out + tile.column + j, h, tile.columns - j);
          }
        }
        continue;
      }
      C* a_out = results.preactivation(running, rows.first + r);
      const C* q = blends ? state_before(at, r) : nullptr;
      bool restored = absent && terms.starts_row(r);
      for (int64_t j = 0; j < tile.columns; j += lanes) {
        int64_t column = tile.column + j;
        Vec<C> a = load_as<Vec<C>>(
            restored ? terms.saved + r * ldh + column : values + j);
        store_as(values + j, a);
        finish_vector(
            r,
            column,
            tile.columns - j,
            a,
            mlx_recurrent::elman::activate<f, VectorOps<C>>(a),
            q,
            at,
            out,
            a_out);
      }
    }
  }

  // Of a = the pre-activations and h = f(a), what is left of them.
  INLINE_MEMBER void finish_vector(
      int64_t r,
      int64_t column,
      int64_t left,
      Vec<C> a,
      Vec<C> h,
      const C* q,
      const StepBuffers<C>& at,
      Element<T>* out,
      C* a_out) const {
    if (q) {
      h = terms.state_of(r, column, load_as<Vec<C>>(q + column), h);
    }
    h = T::round(h);
    store_as(at.state + r * ldh + column, h);
    if (out) {
      store_some<Rounded<T>>(out + column, h, left);
    }
    if (a_out) {
      store_some<AsComputed<C>>(a_out + column, a, left);
    }
  }

  void run_traced(
      int64_t count,
      const StepBuffers<C>& at,
      const StepResults<T>& results) const {
    bool blends = terms.blends();
    run_program<C>(
        *g.function,
        memory.function,
        count,
        columns,
        [&](int64_t r, int64_t column, C* to) __attribute__((always_inline)) {
          Vec<C> a = load_as<Vec<C>>(at.a + r * ldh + column);
          store_as(to, a);
          if (C* a_out = results.preactivation(running, rows.first + r)) {
            store_some<AsComputed<C>>(a_out + column, a, columns.last - column);
          }
        },
        [&](int64_t r, int64_t column, Vec<C> h)
            __attribute__((always_inline)) {
              finish_vector(
                  r,
                  column,
                  columns.last - column,
                  Vec<C>{},
                  h,
                  blends ? state_before(at, r) : nullptr,
                  at,
                  results.state(running, rows.first + r),
                  nullptr);
            });
  }
};

// A row that had no steps: its state is `hidden`, or zero.
template <class T>
static void copy_or_clear_row(
    Element<T>* to,
    const Sequence& hidden,
    int64_t n,
    int64_t H) {
  clear(to, H);
  for (int64_t i = 0; hidden.data && i < H; ++i) {
    to[i] = row_of<T>(hidden, n, 0)[i * hidden.feature_stride];
  }
}

template <class T>
static void copy_or_clear(
    Element<T>* to,
    const Sequence& hidden,
    int64_t N,
    int64_t H) {
  for (int64_t n = 0; n < N; ++n) {
    copy_or_clear_row<T>(to + n * H, hidden, n, H);
  }
}

template <class T>
struct ForwardLayout {
  typedef Compute<T> C;
  int64_t steps;
  ForwardMemory<T> memory;
  Running running;
  Terms<T> terms;
  C* hidden;    // (rows, ldh), by group
  C* states[2]; // (steps * rows, ldh) each, by group
  C* seen[2];   // (rows, ldh) each, by group, where Whh sees other than states

  static int64_t chunk(const RecurrenceArgs& g, const Shares& shares) {
    int64_t widest = !g.projected && g.D > g.H ? g.D : g.H;
    return forward_chunk_steps(
        g.L,
        shares.most_rows(),
        leading_dimension<C>(widest) * static_cast<int64_t>(sizeof(C)));
  }

  ForwardLayout(Arena& arena, const RecurrenceArgs& g, const Shares& shares)
      : steps(chunk(g, shares)),
        memory(
            arena,
            g,
            shares.partition,
            shares.most_rows(),
            steps,
            chains_for(g.N),
            shares.member.index),
        running(arena, g.course, g.N, g.L),
        terms(arena, g, running, shares) {
    int64_t size = shares.most_rows() * leading_dimension<C>(g.H);
    int groups = Shares::groups(shares.partition);
    hidden = arena.take<C>(groups * size) + shares.group() * size;
    C* all = arena.take<C>(terms.carries() ? 2 * groups * size : 0);
    seen[0] = all + 2 * shares.group() * size;
    seen[1] = seen[0] + size;
    size *= steps;
    all = arena.take<C>(2 * groups * size);
    states[0] = all + 2 * shares.group() * size;
    states[1] = states[0] + size;
  }
};

template <class T>
static size_t forward_scratch(const ForwardArgs& args, const Partition& p) {
  Arena arena{0};
  Shares shares{p, kNobody, args.layer.N};
  ForwardLayout<T> layout(arena, args.layer, shares);
  return arena.used + 64;
}

template <class T, Activation f>
struct ForwardRun {
  typedef Compute<T> C;
  const ForwardArgs& args;
  const RecurrenceArgs& g;
  const Shares& shares;
  const ForwardLayout<T>& layout;
  ForwardSteps<T, f>& steps;

  void run_slice() const {
    clear_padding();
    int64_t count = steps.count_at(0);
    bool any =
        steps.stage_hidden(steps.rows.last - steps.rows.first, layout.hidden);
    write_ended(0, steps.rows.last - steps.rows.first, layout.hidden);
    const C* before = layout.hidden;
    const C* seen = any ? before : nullptr;
    bool carries = layout.terms.carries();
    if (carries && (any || g.hidden0.data)) {
      seen = layout.seen[0];
      steps.carry(0, count, before, layout.seen[0]);
    }
    if (seen) {
      shares.after_step();
    }
    int64_t last = layout.running.most_steps(steps.rows);
    int which = 0;
    for (int64_t i0 = 0; i0 < last; i0 += layout.steps, which ^= 1) {
      int64_t i1 = minimum(i0 + layout.steps, last);
      C* state = layout.states[which];
      steps.project(i0, i1, state);
      for (int64_t i = i0; i < i1; ++i) {
        C* next = carries ? layout.seen[(i + 1) & 1] : nullptr;
        steps.step(
            i,
            count,
            StepBuffers<C>{seen, before, state, state, next},
            StepResults<T>(args, i));
        write_ended(i + 1, count, state);
        before = state;
        seen = carries ? next : state;
        state += count * steps.ldh;
        count = steps.count_at(i + 1);
      }
    }
  }

 private:
  // Of the first `count` rows, the states of those that have no step i.
  void write_ended(int64_t i, int64_t count, const C* states) const {
    Element<T>* to = static_cast<Element<T>*>(args.state);
    for (int64_t r = to ? steps.count_at(i) : count; r < count; ++r) {
      write_row<T>(
          to + layout.running.row(steps.rows.first + r) * g.H,
          states + r * steps.ldh,
          steps.columns.first,
          steps.columns.last);
    }
  }

  // Where a row has no step its outputs are zero.
  void clear_padding() const {
    if (g.checkpoint_every > 0) {
      return;
    }
    for (int64_t p = steps.rows.first; p < steps.rows.last; ++p) {
      if (shares.takes(p)) {
        int64_t length = layout.running.length(p);
        clear(
            static_cast<Element<T>*>(args.states) +
                (layout.running.row(p) * g.L + length) * g.H,
            (g.L - length) * g.H);
      }
    }
  }
};

template <class T, Activation f>
static void run_forward(
    const ForwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  const RecurrenceArgs& g = args.layer;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  ForwardLayout<T> layout(arena, g, shares);
  ForwardSteps<T, f> steps(
      g, shares, layout.running, layout.terms, layout.memory);
  if (g.L == 0) {
    if (args.state && member.index == 0) {
      copy_or_clear<T>(
          static_cast<Element<T>*>(args.state), g.hidden, g.N, g.H);
    }
    return;
  }
  if (!args.prepared) {
    steps.prepare();
  }
  layout.terms.prepare();
  if (member.index == 0) {
    layout.running.prepare(p);
  }
  wait(member);
  ForwardRun<T, f> run{args, g, shares, layout, steps};
  for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
    steps.begin(shares.rows(s));
    run.run_slice();
  }
}

} // namespace
