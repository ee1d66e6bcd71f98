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

// Row r of a slice at place t in time: what a row of a chunk's buffers is.
struct RowAt {
  int64_t r, t;
};

template <class T>
struct BackwardLayout {
  typedef Compute<T> C;
  int64_t steps;
  int64_t rows;
  ForwardMemory<T> forward;
  Running running;
  Terms<T> terms;
  Panels<T> transposed; // Whh
  Panels<T> Wxh;        // for dx
  C* states; // ((steps + 1) * rows, ldh): the state before the chunk, then its
             // states; by group
  C* seen;   // (steps * rows, ldh): what Whh saw, where not all rows see the
             // states; by group
  C* delta[2]; // (steps * rows, ldh) each, by group
  C* a; // pre-activations (steps * rows, ldh), by group; where they are known
  C* back; // (rows, ldh): Whh^T delta; by group
  C* held; // (rows, ldh): what a state passes on beside Whh; by group
  ProgramMemory<C> derivative;
  C* panel;              // (kOuterTerms, kPanel), by member
  RowAt* row_at;         // (steps * rows), by member
  int64_t* begins;       // (steps + 1): the first row of each step, by member
  C* sums[2];            // (ldh) each, by member: a chunk's dhidden0 and dleak
  SliceSums<T> dWhh;     // (H, H)
  SliceSums<T> dWxh;     // (H, D)
  SliceSums<T> dbias;    // (1, H)
  SliceSums<T> dhidden0; // (1, H)
  SliceSums<T> dleak;    // (1, H)

  // Whether the derivative starts from pre-activations, not from states: f(a)
  // is no more to be seen in a state that leaks.
  static bool needs_preactivations(const RecurrenceArgs& g) {
    return g.activation == Activation::traced || g.leak.data;
  }

  // Whether steps run forward once more: for the states, or for the
  // pre-activations.
  static bool recomputes(const BackwardArgs& args) {
    return args.layer.checkpoint_every > 0 ||
        (needs_preactivations(args.layer) && !args.preactivations.data);
  }

  // Whether what Whh sees are the states before, as they lie one after another.
  bool sees_states() const {
    return !terms.carries() && !running.lengths;
  }

  // Whether all that a state passes on is what goes through Whh, to the state
  // before.
  bool is_plain() const {
    return sees_states() && !terms.blends();
  }

  static int64_t chunk(const RecurrenceArgs& g, const Shares& shares) {
    if (g.checkpoint_every > 0) {
      return minimum(g.checkpoint_every, g.L);
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
            args.layer.checkpoint_every > 0 ? chains_for(args.layer.N) : 1,
            shares.member.index),
        running(arena, args.layer.course, args.layer.N, args.layer.L),
        terms(arena, args.layer, running, shares) {
    const RecurrenceArgs& g = args.layer;
    int64_t ldh = leading_dimension<C>(g.H);
    int groups = Shares::groups(shares.partition);
    int threads = shares.partition.threads;
    int slices = shares.partition.slices;
    transposed =
        take_panels<T>(arena, g.H, g.H, stays_stored<T>(chains_for(g.N)));
    bool input = args.dx && !g.projected;
    Wxh = take_panels<T>(arena, input ? g.H : 0, g.D, false);
    auto take = [&](int64_t count) {
      return arena.take<C>(groups * count) + shares.group() * count;
    };
    states = take((steps + 1) * rows * ldh);
    delta[0] = take(steps * rows * ldh);
    delta[1] = take(steps * rows * ldh);
    a = take(needs_preactivations(g) ? steps * rows * ldh : 0);
    seen = take(sees_states() ? 0 : steps * rows * ldh);
    back = take(is_plain() ? 0 : rows * ldh);
    held = take(terms.blends() ? rows * ldh : 0);
    if (g.activation == Activation::traced) {
      derivative = ProgramMemory<C>(
          arena, *g.derivative, shares.partition, shares.member.index);
    }
    int64_t size = kOuterTerms * kPanel<C>;
    panel = arena.take<C>(threads * size) + shares.member.index * size;
    size = steps * rows;
    row_at = arena.take<RowAt>(threads * size) + shares.member.index * size;
    begins = arena.take<int64_t>(threads * (steps + 1)) +
        shares.member.index * (steps + 1);
    for (C*& sum : sums) {
      sum = arena.take<C>(threads * ldh) + shares.member.index * ldh;
    }
    dWhh = SliceSums<T>(arena, args.dWhh, g.H, g.H, slices);
    dWxh = SliceSums<T>(arena, args.dWxh, g.H, g.D, slices);
    dbias = SliceSums<T>(arena, args.dbias, 1, g.H, slices);
    dhidden0 = SliceSums<T>(arena, args.dhidden0, 1, g.H, slices);
    dleak = SliceSums<T>(arena, args.dleak, 1, g.H, slices);
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

  // The chunk at hand: steps [first, last) of the rows of `steps` that run, one
  // step after the other.
  struct Chunk {
    int64_t first, last;
    const int64_t* begins;

    int64_t begin(int64_t i) const {
      return begins[i - first];
    }
    int64_t count(int64_t i) const {
      return begin(i + 1) - begin(i);
    }
    int64_t rows() const {
      return begin(last);
    }
  };

  int64_t ldh() const {
    return steps.ldh;
  }

  // Whether something is wanted of what passes to where episodes start.
  bool wants_starts() const {
    return args.dhidden0 && layout.terms.episodes;
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
      if (args.dleak) {
        spread_constants(*g.function, layout.forward.function);
      }
    }
  }

  Chunk chunk_at(int64_t first, int64_t last) const {
    layout.begins[0] = 0;
    RowAt* at = layout.row_at;
    for (int64_t i = first; i < last; ++i) {
      int64_t count = steps.count_at(i);
      layout.begins[i - first + 1] = layout.begins[i - first] + count;
      for (int64_t r = 0; r < count; ++r) {
        *at++ = RowAt{r, layout.running.place(steps.rows.first + r, i)};
      }
    }
    return Chunk{first, last, layout.begins};
  }

  int64_t row_number(int64_t r) const {
    return layout.running.row(steps.rows.first + r);
  }

  // Stages the rows of one sequence into those of a chunk.
  template <class S>
  void stage_rows(const Sequence& from, const Chunk& chunk, C* to) const {
    for (int64_t k = 0; k < chunk.rows(); ++k, to += ldh()) {
      stage_row<S>(
          to,
          row_of<S>(from, row_number(layout.row_at[k].r), layout.row_at[k].t),
          from.feature_stride,
          steps.columns.first,
          steps.columns.last);
    }
  }

  // Stages the states before the chunk; returns whether there are any.
  bool stage_before(const Chunk& chunk, C* to) const {
    int64_t i = chunk.first, count = chunk.count(i);
    if (i == 0) {
      return steps.stage_hidden(count, to);
    }
    for (int64_t r = 0; r < count; ++r, to += ldh()) {
      int64_t index = g.latest_checkpoint ? 0
          : g.checkpoint_every > 0
          ? i / g.checkpoint_every - 1
          : layout.running.place(steps.rows.first + r, i - 1);
      stage_row<T>(
          to,
          row_of<T>(args.states, row_number(r), index),
          args.states.feature_stride,
          steps.columns.first,
          steps.columns.last);
    }
    return true;
  }

  // Where the states before step i are, of a chunk whose own are at `states`.
  const C* states_before(const Chunk& chunk, const C* states, int64_t i) const {
    return i == chunk.first ? layout.states
                            : states + chunk.begin(i - 1) * ldh();
  }

  // What Whh saw at the steps of the chunk.
  const C* seen_rows() const {
    return layout.sees_states() ? layout.states : layout.seen;
  }

  // Fills layout.states with the states before the chunk and its own; layout.a
  // with its pre-activations, where they are needed; layout.seen with what Whh
  // saw, where those were not the states before. Returns whether Whh saw
  // something at the first step.
  bool load_states(const Chunk& chunk, C* states) const {
    bool any = stage_before(chunk, layout.states);
    if (g.checkpoint_every > 0) {
      shares.after_step();
      recompute(chunk, any, states);
    } else {
      stage_rows<T>(args.states, chunk, states);
    }
    if (!layout.sees_states()) {
      for (int64_t i = chunk.first; i < chunk.last; ++i) {
        steps.carry(
            i,
            chunk.count(i),
            states_before(chunk, states, i),
            layout.seen + chunk.begin(i) * ldh());
      }
      any = true;
    }
    if (layout.needs_preactivations(g) && g.checkpoint_every == 0) {
      if (args.preactivations.data) {
        stage_rows<AsComputed<C>>(args.preactivations, chunk, layout.a);
      } else {
        shares.after_step();
        recompute_preactivations(chunk, any);
      }
    }
    return any;
  }

  // The chunk's steps, forward once more.
  void recompute(const Chunk& chunk, bool any, C* states) const {
    const Terms<T>& terms = layout.terms;
    bool apart = layout.needs_preactivations(g);
    C* a = apart ? layout.a : states;
    steps.project(chunk.first, chunk.last, a);
    const C* seen = any ? layout.states : nullptr;
    if (terms.carries() && (any || g.hidden0.data)) {
      // Of the first step alone: the others' is written by the step before.
      steps.carry(
          chunk.first, chunk.count(chunk.first), layout.states, layout.seen);
      shares.after_step();
      seen = layout.seen;
    }
    for (int64_t i = chunk.first; i < chunk.last; ++i) {
      int64_t at = chunk.begin(i) * ldh();
      C* next = terms.carries() && i + 1 < chunk.last
          ? layout.seen + chunk.begin(i + 1) * ldh()
          : nullptr;
      steps.step(
          i,
          chunk.count(i),
          StepBuffers<C>{
              seen, states_before(chunk, states, i), a + at, states + at, next},
          StepResults<T>());
      seen = terms.carries() ? next : states + at;
    }
  }

  // From the states, which are known, all steps of a chunk in one product.
  void recompute_preactivations(const Chunk& chunk, bool any) const {
    int64_t skipped = any ? 0 : chunk.count(chunk.first);
    C* a = layout.a + skipped * ldh();
    steps.project(chunk.first, chunk.last, layout.a);
    multiply<T>(
        chunk.rows() - skipped,
        g.H,
        seen_rows() + skipped * ldh(),
        ldh(),
        layout.forward.Whh,
        g.H,
        steps.panels.first,
        steps.panels.last,
        1,
        Sums<C>{a, ldh(), a, ldh()},
        false,
        [](const Tile<C>&) {});
  }

  // The cotangents of the chunk's states.
  void load_cotangents(const Chunk& chunk, C* delta) const {
    if (args.dstates.data) {
      stage_rows<T>(args.dstates, chunk, delta);
    } else {
      for (int64_t k = 0; k < chunk.rows(); ++k) {
        clear(
            delta + k * ldh() + steps.columns.first,
            steps.columns.last - steps.columns.first);
      }
    }
    // Of a row's last state.
    for (int64_t i = chunk.first; args.dstate.data && i < chunk.last; ++i) {
      for (int64_t r = steps.count_at(i + 1); r < chunk.count(i); ++r) {
        C* to = delta + (chunk.begin(i) + r) * ldh();
        for (int64_t j = steps.columns.first; j < steps.columns.last;
             j += lanes) {
          store_as(
              to + j,
              load_as<Vec<C>>(to + j) +
                  load_from<T>(
                      args.dstate,
                      row_number(r),
                      0,
                      j,
                      steps.columns.last - j));
        }
      }
    }
  }

  // result = sums + Whh^T later, of `count` rows, for step i.
  template <class Consume>
  INLINE_MEMBER void multiply_back(
      int64_t i,
      int64_t count,
      const C* later,
      const Sums<C>& sums,
      Consume consume) const {
    multiply<T>(
        count,
        g.H,
        later,
        ldh(),
        layout.transposed,
        g.H,
        steps.panels.first,
        steps.panels.last,
        steps.chains,
        sums,
        i % 2 == 1,
        consume);
  }

  // `delta`, which holds the cotangents of the states of step i, becomes that
  // of its pre-activations. `later` is delta of the step after it; `known` the
  // states, or the pre-activations where those are needed.
  void step(
      const Chunk& chunk,
      int64_t i,
      const C* states,
      const C* later,
      C* delta) const {
    const Terms<T>& terms = layout.terms;
    int64_t at = chunk.begin(i) * ldh();
    int64_t count = chunk.count(i);
    const C* known = (layout.needs_preactivations(g) ? layout.a : states) + at;
    C* now = delta + at;
    if (layout.is_plain() && layout.running.truncates(i + 1)) {
      later = nullptr;
    }
    if (!layout.is_plain()) {
      if (later && (wants_starts() || !layout.running.truncates(i + 1))) {
        collect(i + 1, steps.count_at(i + 1), later, now);
      }
      terms.begin_step(i, count);
      finish_rows(count, known, states_before(chunk, states, i), now);
    } else if (f == Activation::traced || !later) {
      if (later) {
        multiply_back(
            i,
            count,
            later,
            Sums<C>{now, ldh(), now, ldh()},
            [](const Tile<C>&) {});
      }
      finish_rows(count, known, nullptr, now);
    } else {
      multiply_back(
          i,
          count,
          later,
          Sums<C>{now, ldh(), now, ldh()},
          [&](const Tile<C>& tile) __attribute__((always_inline)) {
            if constexpr (f != Activation::traced) {
              scale_tile(tile, known);
            }
          });
    }
    shares.after_step();
  }

  // What row r of the step whose deltas were multiplied into layout.back passes
  // on to the state before.
  INLINE_MEMBER Vec<C> passed(int64_t r, int64_t j) const {
    int64_t at = r * ldh() + j;
    Vec<C> w = layout.terms.seen(r, j, load_as<Vec<C>>(layout.back + at));
    return layout.terms.blends() ? w + load_as<Vec<C>>(layout.held + at) : w;
  }

  // Adds what the states of step i pass on to `to`, the cotangents of the
  // states before; or to dhidden0 where an episode starts.
  void collect(int64_t i, int64_t count, const C* delta, C* to) const {
    multiply_back(
        i,
        count,
        delta,
        Sums<C>{nullptr, 0, layout.back, ldh()},
        [](const Tile<C>&) {});
    bool whole = !layout.running.truncates(i);
    for (int64_t r = 0; r < count; ++r) {
      bool starts = layout.running.starts(steps.rows.first + r, i);
      C* sum = starts ? layout.sums[0] : whole ? to + r * ldh() : nullptr;
      for (int64_t j = steps.columns.first; sum && j < steps.columns.last;
           j += lanes) {
        store_as(sum + j, load_as<Vec<C>>(sum + j) + passed(r, j));
      }
    }
  }

  // The cotangents of states in `delta` become those of their pre-activations;
  // what passes beside f goes to layout.held.
  void finish_rows(int64_t count, const C* known, const C* before, C* delta)
      const {
    const Terms<T>& terms = layout.terms;
    bool blends = terms.blends();
    if constexpr (f == Activation::traced) {
      if (args.dleak) {
        run_program<C>(
            *g.function,
            layout.forward.function,
            count,
            steps.columns,
            [&](int64_t r, int64_t j, C* to) __attribute__((always_inline)) {
              store_as(to, load_as<Vec<C>>(known + r * ldh() + j));
            },
            [&](int64_t r, int64_t j, Vec<C> h) __attribute__((always_inline)) {
              add_dleak(
                  r, j, before, load_as<Vec<C>>(delta + r * ldh() + j), h);
            });
      }
      run_program<C>(
          *g.derivative,
          layout.derivative,
          count,
          steps.columns,
          [&](int64_t r, int64_t j, C* to) __attribute__((always_inline)) {
            int64_t at = r * ldh() + j;
            store_as(to, load_as<Vec<C>>(known + at));
            Vec<C> d = load_as<Vec<C>>(delta + at);
            store_as(to + kBlock<C>, blends ? split(r, j, d) : d);
          },
          [&](int64_t r, int64_t j, Vec<C> d) __attribute__((always_inline)) {
            store_as(
                delta + r * ldh() + j,
                blends ? Terms<T>::selected(terms.rate(r, j), d) : d);
          });
    } else {
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t j = steps.columns.first; j < steps.columns.last;
             j += lanes) {
          int64_t at = r * ldh() + j;
          Vec<C> d = load_as<Vec<C>>(delta + at);
          Vec<C> h = load_as<Vec<C>>(known + at);
          if (layout.needs_preactivations(g)) {
            h = mlx_recurrent::elman::activate<f, VectorOps<C>>(h);
          }
          if (args.dleak) {
            add_dleak(r, j, before, d, h);
          }
          if (blends) {
            d = split(r, j, d);
          }
          d = d * slope_at(h);
          store_as(
              delta + at, blends ? Terms<T>::selected(terms.rate(r, j), d) : d);
        }
      }
    }
  }

  // Of lambda, the cotangents of some states, what goes through f; what passes
  // beside it goes to layout.held.
  INLINE_MEMBER Vec<C> split(int64_t r, int64_t j, Vec<C> lambda) const {
    Vec<C> k = layout.terms.rate(r, j);
    store_as(layout.held + r * ldh() + j, Terms<T>::gate(C(1) - k, lambda));
    return Terms<T>::gate(k, lambda);
  }

  // Adds lambda (f(a) - q), but for units that were kept.
  INLINE_MEMBER void add_dleak(
      int64_t r,
      int64_t j,
      const C* before,
      Vec<C> lambda,
      Vec<C> h) const {
    const Terms<T>& terms = layout.terms;
    const C* q = terms.starts_row(r) ? terms.hidden0 : before + r * ldh();
    Vec<C> d = lambda * (h - load_as<Vec<C>>(q + j));
    if (terms.draws_units) {
      d = terms.unless_kept(r, j, d, Vec<C>{});
    }
    C* sum = layout.sums[1] + j;
    store_as(sum, load_as<Vec<C>>(sum) + d);
  }

  // f'(a) where f(a) = h.
  static INLINE_MEMBER Vec<C> slope_at(Vec<C> h) {
    return mlx_recurrent::elman::slope<f, VectorOps<C>>(h, splat<C>(C(1)));
  }

  INLINE_MEMBER void scale_tile(const Tile<C>& tile, const C* known) const {
    for (int64_t m = 0; m < tile.rows; ++m) {
      for (int64_t j = 0; j < tile.columns; j += lanes) {
        C* at = tile.values + m * tile.stride + j;
        const C* from = known + (tile.row + m) * ldh() + tile.column + j;
        store_as(at, load_as<Vec<C>>(at) * slope_at(load_as<Vec<C>>(from)));
      }
    }
  }

  void add_dWhh(int64_t K, const C* delta, const C* seen, C* sums) const {
    for (int64_t p = steps.panels.first; p < steps.panels.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      const C* from = seen + j0;
      accumulate_outer<C>(
          K,
          delta,
          ldh(),
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
            from += ldh();
          });
    }
  }

  void add_dWxh(const Chunk& chunk, const C* delta, C* sums) const {
    const Terms<T>& terms = layout.terms;
    for (int64_t p = inputs.first; p < inputs.last; ++p) {
      int64_t j0 = p * kPanel<C>;
      int64_t width = minimum(kPanel<C>, g.D - j0);
      const RowAt* at = layout.row_at;
      accumulate_outer<C>(
          chunk.rows(),
          delta,
          ldh(),
          layout.panel,
          width,
          0,
          g.H,
          sums + j0,
          layout.dWxh.ld,
          [&](C* to) {
            stage_panel_row<T>(
                to,
                row_of<T>(g.x, row_number(at->r), at->t) +
                    j0 * g.x.feature_stride,
                g.x.feature_stride,
                width);
            terms.drop_inputs(at->r, to - j0, j0, j0 + width);
            ++at;
          });
    }
  }

  void add_dbias(int64_t K, const C* delta, C* sums) const {
    for (int64_t j = steps.columns.first; j < steps.columns.last; j += lanes) {
      // In blocks, like the other sums: a running sum over all steps would
      // lose what each adds.
      Vec<C> total = {};
      for (int64_t k = 0; k < K; ++k) {
        total += load_as<Vec<C>>(delta + k * ldh() + j);
      }
      store_as(sums + j, load_as<Vec<C>>(sums + j) + total);
    }
  }

  void write_dx(const Chunk& chunk, const C* delta) const {
    const Terms<T>& terms = layout.terms;
    Element<T>* out = static_cast<Element<T>*>(args.dx);
    auto row_at = [&](int64_t k) {
      const RowAt& at = layout.row_at[k];
      return out + (row_number(at.r) * g.L + at.t) * g.D;
    };
    if (g.projected) {
      for (int64_t k = 0; k < chunk.rows(); ++k) {
        write_row<T>(
            row_at(k),
            delta + k * ldh(),
            steps.columns.first,
            steps.columns.last);
      }
      return;
    }
    multiply<T>(
        chunk.rows(),
        g.H,
        delta,
        ldh(),
        layout.Wxh,
        g.D,
        inputs.first,
        inputs.last,
        1,
        Sums<C>{},
        false,
        [&](const Tile<C>& tile) {
          for (int64_t m = 0; m < tile.rows; ++m) {
            Element<T>* to = row_at(tile.row + m) + tile.column;
            C* values = tile.values + m * tile.stride;
            terms.drop_inputs(
                layout.row_at[tile.row + m].r,
                values - tile.column,
                tile.column,
                tile.column + tile.columns);
            for (int64_t j = 0; j < tile.columns; j += lanes) {
              store_some<T>(
                  to + j, load_as<Vec<C>>(values + j), tile.columns - j);
            }
          }
        });
  }

  // The cotangents of the first states, from delta of the first step.
  void write_dhidden(int64_t count, const C* delta) const {
    Element<T>* out = static_cast<Element<T>*>(args.dhidden);
    if (layout.is_plain()) {
      multiply_back(0, count, delta, Sums<C>{}, [&](const Tile<C>& tile) {
        tile.each([&](int64_t r, int64_t column, C* at, int64_t left) {
          store_some<T>(
              out + row_number(r) * g.H + column, load_as<Vec<C>>(at), left);
        });
      });
      return;
    }
    C* rows = layout.states;
    for (int64_t r = 0; r < count; ++r) {
      clear(
          rows + r * ldh() + steps.columns.first,
          steps.columns.last - steps.columns.first);
    }
    collect(0, count, delta, rows);
    for (int64_t r = 0; out && r < count; ++r) {
      write_row<T>(
          out + row_number(r) * g.H,
          rows + r * ldh(),
          steps.columns.first,
          steps.columns.last);
    }
  }

  // This member's columns of the slice's sums become zero.
  void clear_sums(int slice) const {
    layout.dWhh.clear_columns(slice, steps.panels);
    layout.dWxh.clear_columns(slice, inputs);
    const SliceSums<T>* rows[] = {
        &layout.dbias, &layout.dhidden0, &layout.dleak};
    for (const auto* sum : rows) {
      sum->clear_columns(slice, steps.panels);
    }
    clear_chunk_sums();
  }

  void clear_chunk_sums() const {
    for (C* sum : layout.sums) {
      clear(sum, ldh());
    }
  }

  INLINE_MEMBER void add_columns(const C* from, C* to) const {
    for (int64_t j = steps.columns.first; j < steps.columns.last; j += lanes) {
      store_as(to + j, load_as<Vec<C>>(to + j) + load_as<Vec<C>>(from + j));
    }
  }

  // What a chunk's steps have added up goes to the slice's sums.
  void move_chunk_sums(int slice) const {
    if (layout.is_plain()) {
      return;
    }
    if (args.dhidden0) {
      add_columns(layout.sums[0], layout.dhidden0.of(slice));
    }
    if (args.dleak) {
      add_columns(layout.sums[1], layout.dleak.of(slice));
    }
    clear_chunk_sums();
  }

  // Results of rows and steps that nothing else writes.
  void write_rest(Range positions) const {
    Element<T>* dx = static_cast<Element<T>*>(args.dx);
    Element<T>* dhidden = static_cast<Element<T>*>(args.dhidden);
    for (int64_t p = positions.first; p < positions.last; ++p) {
      if (!shares.takes(p)) {
        continue;
      }
      int64_t row = layout.running.row(p), length = layout.running.length(p);
      int64_t begin = g.latest_checkpoint ? 0 : length;
      if (dx) {
        clear(dx + (row * g.L + begin) * g.D, (g.L - begin) * g.D);
      }
      if (dhidden && length == 0) {
        copy_or_clear_row<T>(dhidden + row * g.H, args.dstate, row, g.H);
      } else if (dhidden && g.latest_checkpoint) {
        clear(dhidden + row * g.H, g.H);
      }
    }
    if (g.latest_checkpoint) {
      shares.after_step(); // some of it is written once more
    }
  }

  void run_slice(int slice) const {
    clear_sums(slice);
    Range all = shares.rows(slice);
    write_rest(all);
    if (!g.latest_checkpoint) {
      int64_t most = layout.running.most_steps(all);
      run_chunks(slice, all, 0, ceil_div(most, layout.steps));
      return;
    }
    // Rows whose last blocks are the same, together: nothing passes to the
    // blocks before.
    for (Range rows = all; rows.first < all.last; rows.first = rows.last) {
      int64_t block = last_block(rows.first);
      rows.last = rows.first + 1;
      while (rows.last < all.last && last_block(rows.last) == block) {
        ++rows.last;
      }
      run_chunks(slice, rows, block, block + 1);
    }
  }

  int64_t last_block(int64_t position) const {
    int64_t length = layout.running.length(position);
    return length > 0 ? (length - 1) / layout.steps : 0;
  }

  // Of these rows, chunks [first, last), from the last to the first.
  void run_chunks(int slice, Range rows, int64_t first, int64_t last) const {
    steps.begin(rows);
    int64_t most = layout.running.most_steps(rows);
    const C* later = nullptr;
    int which = 0;
    int64_t count = 0;
    for (int64_t c = last - 1; c >= first && most > 0; --c, which ^= 1) {
      Chunk chunk =
          chunk_at(c * layout.steps, minimum((c + 1) * layout.steps, most));
      count = chunk.count(chunk.first);
      C* delta = layout.delta[which];
      C* states = layout.states + count * ldh();
      bool any = load_states(chunk, states);
      load_cotangents(chunk, delta);
      for (int64_t i = chunk.last - 1; i >= chunk.first; --i) {
        step(chunk, i, states, later, delta);
        later = delta + chunk.begin(i) * ldh();
      }
      if (args.dWhh) {
        int64_t skipped = any ? 0 : count;
        add_dWhh(
            chunk.rows() - skipped,
            delta + skipped * ldh(),
            seen_rows() + skipped * ldh(),
            layout.dWhh.of(slice));
      }
      if (args.dWxh) {
        add_dWxh(chunk, delta, layout.dWxh.of(slice));
      }
      if (args.dbias) {
        add_dbias(chunk.rows(), delta, layout.dbias.of(slice));
      }
      if (args.dx) {
        write_dx(chunk, delta);
      }
      move_chunk_sums(slice);
    }
    if (!later) {
      return;
    }
    if (first > 0 && wants_starts()) {
      // Nothing passes this border but to an episode that starts there.
      collect(first * layout.steps, count, later, nullptr);
      move_chunk_sums(slice);
    } else if (first == 0 && (args.dhidden || wants_starts())) {
      write_dhidden(count, later);
      move_chunk_sums(slice);
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
  ForwardSteps<T, f> steps(
      g, shares, layout.running, layout.terms, layout.forward);
  BackwardRun<T, f> run{
      args, g, shares, layout, steps, shares.panels(panel_count<C>(g.D))};
  run.pack_weights();
  layout.terms.prepare();
  if (member.index == 0) {
    layout.running.prepare(p);
  }
  wait(member);
  if (g.L > 0) {
    for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
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
  const SliceSums<T>* rows[] = {&layout.dbias, &layout.dhidden0, &layout.dleak};
  for (const auto* sum : rows) {
    sum->write(shares.once(1));
  }
}

} // namespace
