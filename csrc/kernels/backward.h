// The vector-Jacobian product of the nonlinear scan: backward in time, in
// chunks whose weight gradients are formed while their deltas are in cache.

#pragma once

#include "forward.h"

namespace {

// Terms that the weight gradients sum at a time.
constexpr int64_t kBackwardChunkRows = 256;

// A sum (M, K) that each slice forms for itself, and the result that they are
// added up to in order. A single slice sums in the result where that has whole
// vectors of what is computed with.
template <class T>
struct SliceSums {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  Element<T>* out = nullptr; // null: not wanted
  C* sums = nullptr;         // (M, ld), by slice
  int64_t M = 0, K = 0, ld = 0;
  int slices = 0;

  SliceSums() = default;

  SliceSums(Arena& arena, void* result, int64_t rows, int64_t columns, int n)
      : out(static_cast<Element<T>*>(result)), M(rows), K(columns), slices(n) {
    if (sums_in_result()) {
      ld = K;
      sums = reinterpret_cast<C*>(out);
    } else {
      ld = leading_dimension<C>(K);
      sums = arena.take<C>(out ? slices * M * ld : 0);
    }
  }

  bool sums_in_result() const {
    return sizeof(Element<T>) == sizeof(C) && slices == 1 && K % lanes == 0;
  }

  C* of(int slice) const {
    return sums + slice * M * ld;
  }

  // Columns of panels [first, last) become zero.
  void clear_columns(int slice, Range panels) const {
    Range columns = columns_of<C>(panels, K);
    int64_t last = ceil_div(columns.last, lanes) * lanes;
    for (int64_t i = 0; out && i < M; ++i) {
      clear(of(slice) + i * ld + columns.first, last - columns.first);
    }
  }

  // Adds the slices up; rows [own.first, own.last).
  void write(Range own) const {
    if (!out || sums_in_result()) {
      return;
    }
    for (int64_t i = own.first; i < own.last; ++i) {
      for (int64_t j = 0; j < K; j += lanes) {
        Vec<C> total = load_as<Vec<C>>(sums + i * ld + j);
        for (int s = 1; s < slices; ++s) {
          total += load_as<Vec<C>>(of(s) + i * ld + j);
        }
        store_some<T>(out + i * K + j, total, K - j);
      }
    }
  }
};

template <class T>
struct BackwardLayout {
  typedef Compute<T> C;
  int64_t steps;
  int64_t rows;
  ForwardMemory<T> forward;
  Panels<T> transposed; // Whh
  Panels<T> Wxh;        // for dx
  C* states; // ((steps + 1) * rows, ldh): the state before the chunk, then its
             // states; by group
  C* delta[2]; // (steps * rows, ldh) each, by group
  C* a; // pre-activations (steps * rows, ldh), by group; where they are traced
  ProgramMemory<C> derivative;
  C* panel;           // (kOuterTerms, kPanel), by member
  SliceSums<T> dWhh;  // (H, H)
  SliceSums<T> dWxh;  // (H, D)
  SliceSums<T> dbias; // (1, H)

  // Whether steps run forward once more: for the states, or for a traced
  // activation's pre-activations.
  static bool recomputes(const BackwardArgs& args) {
    return args.layer.keep_every > 0 ||
        (args.layer.activation == Activation::traced &&
         !args.preactivations.data);
  }

  static int64_t chunk(const RecurrenceArgs& g, const Shares& shares) {
    if (g.keep_every > 0) {
      return minimum(g.keep_every, g.L);
    }
    int64_t rows = shares.most_rows() > 0 ? shares.most_rows() : 1;
    return minimum(ceil_div(kBackwardChunkRows, rows), g.L);
  }

  BackwardLayout(Arena& arena, const BackwardArgs& args, const Shares& shares)
      : steps(chunk(args.layer, shares)),
        rows(shares.most_rows()),
        forward(
            arena,
            args.layer,
            shares.partition,
            shares.most_rows(),
            recomputes(args) ? steps : 0,
            args.layer.keep_every > 0 ? chains_for(args.layer.N) : 1,
            shares.member.index) {
    const RecurrenceArgs& g = args.layer;
    int64_t ldh = leading_dimension<C>(g.H);
    int groups = Shares::groups(shares.partition);
    int slices = shares.partition.slices;
    transposed =
        take_panels<T>(arena, g.H, g.H, stays_stored<T>(chains_for(g.N)));
    bool input = args.dx && !g.projected;
    Wxh = take_panels<T>(arena, input ? g.H : 0, g.D, false);
    int64_t size = (steps + 1) * rows * ldh;
    states = arena.take<C>(groups * size) + shares.group() * size;
    size = steps * rows * ldh;
    C* deltas = arena.take<C>(2 * groups * size);
    delta[0] = deltas + 2 * shares.group() * size;
    delta[1] = delta[0] + size;
    bool traced = g.activation == Activation::traced;
    a = arena.take<C>(traced ? groups * size : 0) + shares.group() * size;
    if (traced) {
      derivative = ProgramMemory<C>(
          arena, *g.derivative, shares.partition, shares.member.index);
    }
    size = kOuterTerms * kPanel<C>;
    panel = arena.take<C>(shares.partition.threads * size) +
        shares.member.index * size;
    dWhh = SliceSums<T>(arena, args.dWhh, g.H, g.H, slices);
    dWxh = SliceSums<T>(arena, args.dWxh, g.H, g.D, slices);
    dbias = SliceSums<T>(arena, args.dbias, 1, g.H, slices);
  }
};

template <class T>
static size_t backward_scratch(const BackwardArgs& args, const Partition& p) {
  Arena arena{0};
  Shares shares{p, kNobody, args.layer.N};
  BackwardLayout<T> layout(arena, args, shares);
  return arena.used + 64;
}

template <class T, Activation f>
struct BackwardRun {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  const BackwardArgs& args;
  const RecurrenceArgs& g;
  const Shares& shares;
  const BackwardLayout<T>& layout;
  ForwardSteps<T, f>& steps;
  Range inputs; // panels of D, this member's

  int64_t count() const {
    return steps.rows.last - steps.rows.first;
  }

  void pack_weights() const {
    Range own = shares.once(panel_count<C>(g.H));
    pack<T>(
        layout.transposed,
        g.Whh.data,
        g.Whh.row_stride,
        g.Whh.column_stride,
        g.H,
        g.H,
        own.first,
        own.last);
    if (args.dx && !g.projected) {
      own = shares.once(panel_count<C>(g.D));
      pack<T>(
          layout.Wxh,
          g.Wxh.data,
          g.Wxh.row_stride,
          g.Wxh.column_stride,
          g.H,
          g.D,
          own.first,
          own.last);
    }
    if (layout.recomputes(args) && g.L > 0) {
      steps.prepare();
    }
    if constexpr (f == Activation::traced) {
      spread_constants(*g.derivative, layout.derivative);
    }
  }

  void stage_state(C* to, int64_t index) const {
    for (int64_t n = steps.rows.first; n < steps.rows.last;
         ++n, to += steps.ldh) {
      stage_row<T>(
          to,
          row_of<T>(args.states, n, index),
          args.states.feature_stride,
          steps.columns.first,
          steps.columns.last);
    }
  }

  // Fills layout.states with the state before t0 and the states of [t0, t1).
  // Returns whether there is a state before t0. A traced activation's
  // pre-activations go to layout.a.
  bool load_states(int64_t t0, int64_t t1) const {
    int64_t block = count() * steps.ldh;
    bool before = true;
    if (t0 > 0) {
      stage_state(
          layout.states, g.keep_every > 0 ? t0 / g.keep_every - 1 : t0 - 1);
    } else {
      before = steps.stage_hidden(layout.states);
    }
    if (g.keep_every == 0) {
      for (int64_t t = t0; t < t1; ++t) {
        stage_state(layout.states + (t - t0 + 1) * block, t);
      }
      if constexpr (f == Activation::traced) {
        if (args.preactivations.data) {
          load_preactivations(t0, t1);
        } else {
          shares.after_step();
          recompute_preactivations(t0, t1, before);
        }
      }
      return before;
    }
    shares.after_step();
    C* states = layout.states + block;
    if constexpr (f == Activation::traced) {
      steps.project(t0, t1, layout.a);
    } else {
      steps.project(t0, t1, states);
    }
    for (int64_t t = t0; t < t1; ++t) {
      C* state = states + (t - t0) * block;
      const C* previous = t > t0 || before ? state - block : nullptr;
      if constexpr (f == Activation::traced) {
        C* a = layout.a + (t - t0) * block;
        steps.traced_step(t, previous, a, state, nullptr, 0, nullptr);
        shares.after_step();
      } else {
        steps.step(t, previous, state);
      }
    }
    return before;
  }

  void load_preactivations(int64_t t0, int64_t t1) const {
    const Sequence& a = args.preactivations;
    C* to = layout.a;
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t n = steps.rows.first; n < steps.rows.last;
           ++n, to += steps.ldh) {
        stage_row<AsComputed<C>>(
            to,
            row_of<AsComputed<C>>(a, n, t),
            a.feature_stride,
            steps.columns.first,
            steps.columns.last);
      }
    }
  }

  // From the states, which are known, all steps of [t0, t1) in one product.
  void recompute_preactivations(int64_t t0, int64_t t1, bool before) const {
    int64_t skipped = before ? 0 : count();
    C* a = layout.a + skipped * steps.ldh;
    steps.project(t0, t1, layout.a);
    multiply<T>(
        (t1 - t0) * count() - skipped,
        g.H,
        layout.states + skipped * steps.ldh,
        steps.ldh,
        layout.forward.Whh,
        g.H,
        steps.panels.first,
        steps.panels.last,
        1,
        Sums<C>{a, steps.ldh, a, steps.ldh},
        false,
        [](const Tile<C>&) {});
  }

  void load_cotangents(int64_t t0, int64_t t1, C* delta) const {
    const Sequence& d = args.dstates;
    C* to = delta;
    for (int64_t t = t0; t < t1; ++t) {
      for (int64_t n = steps.rows.first; n < steps.rows.last;
           ++n, to += steps.ldh) {
        if (d.data) {
          stage_row<T>(
              to,
              row_of<T>(d, n, t),
              d.feature_stride,
              steps.columns.first,
              steps.columns.last);
        } else {
          clear(
              to + steps.columns.first,
              steps.columns.last - steps.columns.first);
        }
      }
    }
    if (t1 == g.L && args.dstate.data) {
      add_state_cotangent(to - count() * steps.ldh);
    }
  }

  void add_state_cotangent(C* to) const {
    for (int64_t n = steps.rows.first; n < steps.rows.last;
         ++n, to += steps.ldh) {
      for (int64_t j = steps.columns.first; j < steps.columns.last;
           j += lanes) {
        store_as(
            to + j,
            load_as<Vec<C>>(to + j) +
                load_from<T>(args.dstate, n, 0, j, steps.columns.last - j));
      }
    }
  }

  // delta += Whh^T later, for step t.
  template <class Consume>
  INLINE_MEMBER void add_recurrent(
      int64_t t,
      const C* later,
      C* delta,
      Consume consume) const {
    multiply<T>(
        count(),
        g.H,
        later,
        steps.ldh,
        layout.transposed,
        g.H,
        steps.panels.first,
        steps.panels.last,
        steps.chains,
        Sums<C>{delta, steps.ldh, delta, steps.ldh},
        t % 2 == 1,
        consume);
  }

  // delta, which holds the cotangent of the states of step t, becomes that of
  // its pre-activations; `later` is delta of the step after it, and `known` the
  // states, or the pre-activations where the activation is traced.
  void step(int64_t t, const C* later, const C* known, C* delta) const {
    if constexpr (f == Activation::traced) {
      if (later) {
        add_recurrent(t, later, delta, [](const Tile<C>&) {});
      }
      run_program<C>(
          *g.derivative,
          layout.derivative,
          count(),
          steps.columns,
          [&](int64_t row, int64_t column, C* to)
              __attribute__((always_inline)) {
                int64_t i = row * steps.ldh + column;
                store_as(to, load_as<Vec<C>>(known + i));
                store_as(to + kBlock<C>, load_as<Vec<C>>(delta + i));
              },
          [&](int64_t row, int64_t column, Vec<C> d)
              __attribute__((always_inline)) {
                store_as(delta + row * steps.ldh + column, d);
              });
    } else {
      inlined_step(t, later, known, delta);
    }
    shares.after_step();
  }

  void inlined_step(int64_t t, const C* later, const C* state, C* delta) const {
    Vec<C> one = splat<C>(C(1));
    auto finish =
        [&](int64_t row, int64_t column, C* at, int64_t)
            __attribute__((always_inline)) {
              Vec<C> h = load_as<Vec<C>>(state + row * steps.ldh + column);
              store_as(
                  at,
                  load_as<Vec<C>>(at) *
                      mlx_recurrent::elman::slope<f, VectorOps<C>>(h, one));
            };
    if (later) {
      add_recurrent(
          t,
          later,
          delta,
          [&](const Tile<C>& tile)
              __attribute__((always_inline)) { tile.each(finish); });
    } else {
      Tile<C>{
          delta + steps.columns.first,
          steps.ldh,
          0,
          static_cast<int>(count()),
          steps.columns.first,
          steps.columns.last - steps.columns.first}
          .each(finish);
    }
  }

  void add_dWhh(int64_t K, const C* delta, const C* previous, C* sums) const {
    for (int64_t p = steps.panels.first; p < steps.panels.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      const C* from = previous + j0;
      accumulate_outer<C>(
          K,
          delta,
          steps.ldh,
          layout.panel,
          minimum(kPanel<C>, g.H - j0),
          0,
          g.H,
          sums + j0,
          layout.dWhh.ld,
          [&](C* to) {
            for (int64_t j = 0; j < kPanel<C>; j += lanes) {
              store_as(to + j, load_as<Vec<C>>(from + j));
            }
            from += steps.ldh;
          });
    }
  }

  void add_dWxh(int64_t t0, int64_t t1, const C* delta, C* sums) const {
    for (int64_t p = inputs.first; p < inputs.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      int64_t width = minimum(kPanel<C>, g.D - j0);
      int64_t t = t0;
      int64_t n = steps.rows.first;
      accumulate_outer<C>(
          (t1 - t0) * count(),
          delta,
          steps.ldh,
          layout.panel,
          width,
          0,
          g.H,
          sums + j0,
          layout.dWxh.ld,
          [&](C* to) {
            stage_panel_row<T>(
                to,
                row_of<T>(g.x, n, t) + j0 * g.x.feature_stride,
                g.x.feature_stride,
                width);
            if (++n == steps.rows.last) {
              n = steps.rows.first;
              ++t;
            }
          });
    }
  }

  void add_dbias(int64_t K, const C* delta, C* sums) const {
    for (int64_t j = steps.columns.first; j < steps.columns.last; j += lanes) {
      // In blocks, like the other sums: a running sum over all steps would
      // lose what each adds.
      Vec<C> total = {};
      for (int64_t k = 0; k < K; ++k) {
        total += load_as<Vec<C>>(delta + k * steps.ldh + j);
      }
      store_as(sums + j, load_as<Vec<C>>(sums + j) + total);
    }
  }

  void write_dx(int64_t t0, int64_t t1, const C* delta) const {
    Element<T>* out = static_cast<Element<T>*>(args.dx);
    auto row_at = [&](int64_t k) {
      int64_t n = steps.rows.first + k % count();
      int64_t t = t0 + k / count();
      return out + (n * g.L + t) * g.D;
    };
    if (g.projected) {
      for (int64_t k = 0; k < (t1 - t0) * count(); ++k) {
        write_row<T>(
            row_at(k),
            delta + k * steps.ldh,
            steps.columns.first,
            steps.columns.last);
      }
      return;
    }
    multiply<T>(
        (t1 - t0) * count(),
        g.H,
        delta,
        steps.ldh,
        layout.Wxh,
        g.D,
        inputs.first,
        inputs.last,
        1,
        Sums<C>{},
        false,
        [&](const Tile<C>& tile) {
          tile.each([&](int64_t row, int64_t column, C* at, int64_t left) {
            store_some<T>(row_at(row) + column, load_as<Vec<C>>(at), left);
          });
        });
  }

  void write_dhidden(const C* delta) const {
    Element<T>* out = static_cast<Element<T>*>(args.dhidden);
    multiply<T>(
        count(),
        g.H,
        delta,
        steps.ldh,
        layout.transposed,
        g.H,
        steps.panels.first,
        steps.panels.last,
        steps.chains,
        Sums<C>{},
        false,
        [&](const Tile<C>& tile) {
          tile.each([&](int64_t row, int64_t column, C* at, int64_t left) {
            store_some<T>(
                out + (steps.rows.first + row) * g.H + column,
                load_as<Vec<C>>(at),
                left);
          });
        });
  }

  // This member's columns of the slice's sums become zero.
  void clear_sums(int slice) const {
    layout.dWhh.clear_columns(slice, steps.panels);
    layout.dWxh.clear_columns(slice, inputs);
    layout.dbias.clear_columns(slice, steps.panels);
  }

  void run_slice(int slice) const {
    clear_sums(slice);
    int64_t block = count() * steps.ldh;
    const C* later = nullptr;
    int which = 0;
    for (int64_t c = ceil_div(g.L, layout.steps) - 1; c >= 0; --c, which ^= 1) {
      int64_t t0 = c * layout.steps;
      int64_t t1 = minimum(t0 + layout.steps, g.L);
      C* delta = layout.delta[which];
      bool before = load_states(t0, t1);
      load_cotangents(t0, t1, delta);
      for (int64_t t = t1 - 1; t >= t0; --t) {
        C* now = delta + (t - t0) * block;
        const C* known = f == Activation::traced
            ? layout.a + (t - t0) * block
            : layout.states + (t - t0 + 1) * block;
        step(t, later, known, now);
        later = now;
      }
      int64_t K = (t1 - t0) * count();
      if (args.dWhh) {
        int64_t skipped = before ? 0 : 1;
        add_dWhh(
            K - skipped * count(),
            delta + skipped * block,
            layout.states + skipped * block,
            layout.dWhh.of(slice));
      }
      if (args.dWxh) {
        add_dWxh(t0, t1, delta, layout.dWxh.of(slice));
      }
      if (args.dbias) {
        add_dbias(K, delta, layout.dbias.of(slice));
      }
      if (args.dx) {
        write_dx(t0, t1, delta);
      }
    }
    if (args.dhidden && later) {
      write_dhidden(later);
    }
  }
};

template <class T, Activation f>
static void run_backward(
    const BackwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  typedef Compute<T> C;
  const RecurrenceArgs& g = args.layer;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  BackwardLayout<T> layout(arena, args, shares);
  ForwardSteps<T, f> steps(g, shares, layout.forward);
  BackwardRun<T, f> run{
      args, g, shares, layout, steps, shares.panels(panel_count<C>(g.D))};
  run.pack_weights();
  wait(member);
  if (g.L > 0) {
    for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
      steps.rows = shares.rows(s);
      run.run_slice(s);
    }
  } else {
    for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
      run.clear_sums(s);
    }
    if (args.dhidden && member.index == 0) {
      copy_or_clear<T>(
          static_cast<Element<T>*>(args.dhidden), args.dstate, g.N, g.H);
    }
  }
  wait(member);
  layout.dWhh.write(shares.once(g.H));
  layout.dWxh.write(shares.once(g.H));
  layout.dbias.write(shares.once(1));
}

} // namespace
