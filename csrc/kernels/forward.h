// The nonlinear scan, in chunks of time that stay in cache.

#pragma once

#include "elman.h"
#include "program.h"

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

// The part of the scratch memory that running steps forward needs; none where
// there are no steps. First what `prepare` fills, in places that no number of
// steps moves.
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
    if (steps > 0 && g.activation == Activation::traced) {
      function = ProgramMemory<C>(arena, *g.function, p, member);
    }
    int64_t staged = projects ? steps * rows * ldd : 0;
    x = arena.take<C>(p.threads * staged) + member * staged;
  }
};

// Steps forward over the rows of one slice.
template <class T, Activation f>
struct ForwardSteps {
  typedef Compute<T> C;
  const RecurrenceArgs& g;
  const Shares& shares;
  const ForwardMemory<T>& memory;
  Range panels; // of H, this member's
  Range columns;
  Range rows; // of the batch
  int64_t ldh, ldd;
  int chains;

  ForwardSteps(
      const RecurrenceArgs& g,
      const Shares& shares,
      const ForwardMemory<T>& memory)
      : g(g), shares(shares), memory(memory), rows{0, 0} {
    panels = shares.panels(panel_count<C>(g.H));
    columns = columns_of<C>(panels, g.H);
    ldh = leading_dimension<C>(g.H);
    ldd = leading_dimension<C>(g.D);
    chains = chains_for(g.N);
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

  // The state before step 0 of this slice into `to` (rows, ldh), this member's
  // columns. Returns whether there is one.
  bool stage_hidden(C* to) const {
    if (!g.hidden.data) {
      return false;
    }
    for (int64_t n = rows.first; n < rows.last; ++n, to += ldh) {
      stage_row<T>(
          to,
          row_of<T>(g.hidden, n, 0),
          g.hidden.feature_stride,
          columns.first,
          columns.last);
    }
    return true;
  }

  // z of steps [t0, t1) into `states` (steps * rows, ldh), this member's
  // columns.
  void project(int64_t t0, int64_t t1, C* states) const {
    int64_t count = rows.last - rows.first;
    if (g.projected) {
      C* to = states;
      for (int64_t t = t0; t < t1; ++t) {
        for (int64_t n = rows.first; n < rows.last; ++n, to += ldh) {
          stage_row<T>(
              to,
              row_of<T>(g.x, n, t),
              g.x.feature_stride,
              columns.first,
              columns.last);
        }
      }
      return;
    }
    C* to = memory.x;
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t n = rows.first; n < rows.last; ++n, to += ldd) {
        stage_row<T>(to, row_of<T>(g.x, n, t), g.x.feature_stride, 0, g.D);
      }
    }
    multiply<T>(
        (t1 - t0) * count,
        g.D,
        memory.x,
        ldd,
        memory.Wxh,
        g.H,
        panels.first,
        panels.last,
        1,
        Sums<C>{memory.bias, 0, states, ldh},
        false,
        [](const Tile<C>&) {});
  }

  // state += Whh previous, for step t.
  template <class Consume>
  INLINE_MEMBER void add_recurrent(
      int64_t t,
      const C* previous,
      C* state,
      Consume consume) const {
    multiply<T>(
        rows.last - rows.first,
        g.H,
        previous,
        ldh,
        memory.Whh,
        g.H,
        panels.first,
        panels.last,
        chains,
        Sums<C>{state, ldh, state, ldh},
        t % 2 == 1,
        consume);
  }

  // Step t, which turns z into the state in `state` (rows, ldh). Row n of it
  // goes to out + n * out_stride as well, unless `out` is null; in the same way
  // its pre-activations go to `a_out`.
  void step(
      int64_t t,
      const C* previous,
      C* state,
      Element<T>* out = nullptr,
      int64_t out_stride = 0,
      C* a_out = nullptr) const {
    if constexpr (f == Activation::traced) {
      traced_step(t, previous, state, state, out, out_stride, a_out);
    } else {
      inlined_step(t, previous, state, out, out_stride);
    }
    shares.after_step();
  }

  // The same with z in `a`, which becomes the pre-activations; it may be
  // `state`.
  void traced_step(
      int64_t t,
      const C* previous,
      C* a,
      C* state,
      Element<T>* out,
      int64_t out_stride,
      C* a_out) const {
    if (previous) {
      add_recurrent(t, previous, a, [](const Tile<C>&) {});
    }
    run_program<C>(
        *g.function,
        memory.function,
        rows.last - rows.first,
        columns,
        [&](int64_t row, int64_t column, C* to) __attribute__((always_inline)) {
          Vec<C> given = load_as<Vec<C>>(a + row * ldh + column);
          store_as(to, given);
          if (a_out) {
            store_some<AsComputed<C>>(
                a_out + row * out_stride + column,
                given,
                columns.last - column);
          }
        },
        [&](int64_t row, int64_t column, Vec<C> h)
            __attribute__((always_inline)) {
              h = T::round(h);
              store_as(state + row * ldh + column, h);
              if (out) {
                store_some<Rounded<T>>(
                    out + row * out_stride + column, h, columns.last - column);
              }
            });
  }

  void inlined_step(
      int64_t t,
      const C* previous,
      C* state,
      Element<T>* out,
      int64_t out_stride) const {
    auto finish = [&](int64_t row,
                      int64_t column,
                      C* at,
                      int64_t left) __attribute__((always_inline)) {
      Vec<C> h =
          mlx_recurrent::elman::activate<f, VectorOps<C>>(load_as<Vec<C>>(at));
      h = T::round(h);
      store_as(at, h);
      if (out) {
        store_some<Rounded<T>>(out + row * out_stride + column, h, left);
      }
    };
    if (previous) {
      add_recurrent(
          t,
          previous,
          state,
          [&](const Tile<C>& tile)
              __attribute__((always_inline)) { tile.each(finish); });
    } else {
      Tile<C>{
          state + columns.first,
          ldh,
          0,
          static_cast<int>(rows.last - rows.first),
          columns.first,
          columns.last - columns.first}
          .each(finish);
    }
  }
};

// A call of no steps: its state is `hidden`, or zero.
template <class T>
static void copy_or_clear(
    Element<T>* to,
    const Sequence& hidden,
    int64_t N,
    int64_t H) {
  clear(to, N * H);
  for (int64_t n = 0; hidden.data && n < N; ++n) {
    const Element<T>* from = row_of<T>(hidden, n, 0);
    for (int64_t i = 0; i < H; ++i) {
      to[n * H + i] = from[i * hidden.feature_stride];
    }
  }
}

template <class T>
struct ForwardLayout {
  typedef Compute<T> C;
  int64_t steps;
  ForwardMemory<T> memory;
  C* hidden;    // (rows, ldh), by group
  C* states[2]; // (steps * rows, ldh) each, by group

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
            shares.member.index) {
    int64_t size = shares.most_rows() * leading_dimension<C>(g.H);
    int groups = Shares::groups(shares.partition);
    hidden = arena.take<C>(groups * size) + shares.group() * size;
    size *= steps;
    C* all = arena.take<C>(2 * groups * size);
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
static void run_forward(
    const ForwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  const RecurrenceArgs& g = args.layer;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  ForwardLayout<T> layout(arena, g, shares);
  ForwardSteps<T, f> steps(g, shares, layout.memory);
  Element<T>* out = static_cast<Element<T>*>(args.states);
  Element<T>* last = static_cast<Element<T>*>(args.state);
  C* a_out = static_cast<C*>(args.preactivations);
  if (g.L == 0) {
    if (last && member.index == 0) {
      copy_or_clear<T>(last, g.hidden, g.N, g.H);
    }
    return;
  }
  int64_t kept = kept_states(g.L, g.keep_every);
  int64_t every = g.keep_every == 0 ? 1 : g.keep_every;

  if (!args.prepared) {
    steps.prepare();
    wait(member);
  }
  for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
    steps.rows = shares.rows(s);
    int64_t count = steps.rows.last - steps.rows.first;
    C* previous = nullptr;
    if (steps.stage_hidden(layout.hidden)) {
      previous = layout.hidden;
      shares.after_step();
    }
    int which = 0;
    for (int64_t t0 = 0; t0 < g.L; t0 += layout.steps, which ^= 1) {
      int64_t t1 = minimum(t0 + layout.steps, g.L);
      C* states = layout.states[which];
      steps.project(t0, t1, states);
      for (int64_t t = t0; t < t1; ++t) {
        C* state = states + (t - t0) * count * steps.ldh;
        bool keep = (t + 1) % every == 0 || t + 1 == g.L;
        steps.step(
            t,
            previous,
            state,
            keep ? out + (steps.rows.first * kept + t / every) * g.H : nullptr,
            kept * g.H,
            a_out ? a_out + (steps.rows.first * g.L + t) * g.H : nullptr);
        previous = state;
      }
    }
    for (int64_t n = 0; last && n < count; ++n) {
      write_row<T>(
          last + (steps.rows.first + n) * g.H,
          previous + n * steps.ldh,
          steps.columns.first,
          steps.columns.last);
    }
  }
}

} // namespace
