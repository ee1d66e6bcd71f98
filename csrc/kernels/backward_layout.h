// The memory of a backward pass, and a member's share of the work.

#pragma once

#include "forward.h"
#include "slice_sums.h"

namespace {

// Terms that the weight gradients sum at a time, where their deltas are not
// more bytes than leave room in a level-2 cache.
constexpr int64_t kBackwardChunkRows = 256;
constexpr int64_t kBackwardChunkBytes = 128 * 1024;

INLINE bool any_of(void* const (&wanted)[kMostStates]) {
  for (void* one : wanted) {
    if (one) {
      return true;
    }
  }
  return false;
}

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
  Slabs<C> slabs;
  Panels<T> transposed; // Whh
  Panels<T> Wxh;        // for dx
  // ((steps + 1) * rows, ldh) each: the state before the chunk, then its
  // states; by group
  C* states[kMostStates];
  C* seen;   // (steps * rows, ldh): what Whh saw, where not all rows see the
             // states; by group
  C* delta;  // rows of slabs (steps * rows), by group
  C* border; // (rows, slabs.ld), by group: delta of the chunk's later neighbour
  // (steps * rows), by group: pre-activations, where they are known, ldh apart;
  // of several slabs what was saved and is computed again, without padding
  C* a;
  C* back; // (rows, ldh): Whh^T delta; by group
  // (rows, ldh) each: what a state passes on beside Whh; by group
  C* held[kMostStates];
  ProgramMemory<C> derivative;
  Sgemm of_state; // of the sums of dWhh; null: the kernels' own
  Sgemm of_input; // of those of dWxh
  // (kOuterTerms, kPanel), by member; by a BLAS a chunk's rows of x
  C* panel;
  RowAt* row_at;   // (steps * rows), by member
  int64_t* begins; // (steps + 1): the first row of each step, by member
  // (ldh) each, by member: a chunk's dhidden0 of each state, its dleak, and its
  // gradients of parameters
  C* sums[kMostStates];
  C* leak_sum;
  C* parameter_sums;                  // (parameters, ldh)
  SliceSums<T> dWhh;                  // (state slabs * H, H)
  SliceSums<T> dWxh;                  // (input slabs * H, D)
  SliceSums<T> dbias;                 // (input slabs, H)
  SliceSums<T> dbhn;                  // (slabs of the state alone, H)
  SliceSums<T> dparameters;           // (parameters, H)
  SliceSums<T> dhidden0[kMostStates]; // (1, H), and so the last
  SliceSums<T> dleak;

  // Whether the derivative starts from pre-activations, not from states: f(a)
  // is no more to be seen in a state that leaks.
  static bool needs_preactivations(const RecurrenceArgs& g) {
    return g.activation == Activation::traced || g.leak[0].data ||
        g.kind != CellKind::elman;
  }

  // Whether steps run forward once more: for the states, or for what the
  // derivative needs beside them.
  static bool recomputes(const BackwardArgs& args) {
    return args.layer.checkpoint_every > 0 ||
        (needs_preactivations(args.layer) && !args.saved.data);
  }

  // Whether what Whh sees are the states before, as they lie one after another.
  bool sees_states() const {
    return !terms.carries() && !terms.skips && !running.lengths;
  }

  // Whether all that a state passes on is what goes through Whh, to the state
  // before.
  bool is_plain() const {
    return sees_states() && !terms.blends();
  }

  static int64_t chunk(const RecurrenceArgs& g, const Shares& shares) {
    // The last of a cell's states: where the first is kept, so are the others.
    if (int64_t every = g.kept_every(kMostStates - 1)) {
      return minimum(every, g.L);
    }
    int64_t rows = shares.most_rows() > 0 ? shares.most_rows() : 1;
    int64_t terms = kBackwardChunkRows;
    if (g.kind != CellKind::elman) {
      int64_t row_bytes = Slabs<C>(g).ld * static_cast<int64_t>(sizeof(C));
      terms = minimum(terms, kBackwardChunkBytes / row_bytes);
      terms = terms > kOuterTerms ? terms : kOuterTerms;
    }
    return minimum(ceil_div(terms, rows), g.L);
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
        terms(arena, args.layer, running, shares),
        slabs(args.layer) {
    const RecurrenceArgs& g = args.layer;
    const CellShape& shape = slabs.shape;
    bool gated = g.kind != CellKind::elman;
    int64_t ldh = leading_dimension<C>(g.H);
    int groups = Shares::groups(shares.partition);
    int threads = shares.partition.threads;
    int slices = shares.partition.slices;
    const Partition& p = shares.partition;
    int64_t state_depth = slabs.depth(shape.state_slabs());
    int64_t input_depth = slabs.depth(shape.input_slabs());
    int64_t chunk_rows = rows_of_chunk(rows, g.L);
    transposed = take_panels<T>(
        arena,
        state_depth,
        g.H,
        stays_stored<T>(chains_for(g.N)),
        product_of<T>(g.sgemm, p, rows, state_depth, g.H));
    bool input = args.dx && !g.projected;
    Wxh = take_panels<T>(
        arena,
        input ? input_depth : 0,
        g.D,
        false,
        product_of<T>(g.sgemm, p, chunk_rows, input_depth, g.D));
    of_state = product_of<T>(g.sgemm, p, g.H, chunk_rows, g.H);
    of_input = args.dWxh && !g.projected
        ? product_of<T>(g.sgemm, p, g.H, chunk_rows, g.D)
        : nullptr;
    auto take = [&](int64_t count) {
      return arena.take<C>(groups * count) + shares.group() * count;
    };
    for (int s = 0; s < kMostStates; ++s) {
      bool there = s < shape.states;
      states[s] = take(there ? (steps + 1) * rows * ldh : 0);
      held[s] = take(there && (gated || terms.blends()) ? rows * ldh : 0);
    }
    delta = take(steps * rows * slabs.ld);
    border = take(rows * slabs.ld);
    a = take(
        gated ? steps * rows * (recomputes(args) ? shape.saved * g.H : 0)
            : needs_preactivations(g) ? steps * rows * ldh
                                      : 0);
    seen = take(sees_states() ? 0 : steps * rows * ldh);
    bool finishes_later = gated ? g.programs != nullptr : !is_plain();
    back = take(finishes_later ? rows * ldh : 0);
    if (const Program* program =
            g.programs ? &g.programs->pullback : g.derivative) {
      derivative = ProgramMemory<C>(
          arena, *program, shares.partition, shares.member.index);
    }
    int64_t size = of_input ? steps * rows * leading_dimension<C>(g.D)
                            : kOuterTerms * kPanel<C>;
    panel = arena.take<C>(threads * size) + shares.member.index * size;
    size = steps * rows;
    row_at = arena.take<RowAt>(threads * size) + shares.member.index * size;
    begins = arena.take<int64_t>(threads * (steps + 1)) +
        shares.member.index * (steps + 1);
    for (C*& sum : sums) {
      sum = arena.take<C>(threads * ldh) + shares.member.index * ldh;
    }
    leak_sum = arena.take<C>(threads * ldh) + shares.member.index * ldh;
    size = shape.parameters * ldh;
    parameter_sums = arena.take<C>(threads * size) + shares.member.index * size;
    int64_t input_rows = shape.input_slabs() * g.H;
    dWhh =
        SliceSums<T>(arena, args.dWhh, shape.state_slabs() * g.H, g.H, slices);
    dWxh = SliceSums<T>(arena, args.dWxh, input_rows, g.D, slices);
    dbias = SliceSums<T>(arena, args.dbias, shape.input_slabs(), g.H, slices);
    dbhn = SliceSums<T>(arena, args.dbhn, shape.state_only, g.H, slices);
    dparameters =
        SliceSums<T>(arena, args.dparameters, shape.parameters, g.H, slices);
    for (int s = 0; s < kMostStates; ++s) {
      dhidden0[s] = SliceSums<T>(arena, args.dhidden0[s], 1, g.H, slices);
    }
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

// The chunk at hand: steps [first, last) of the rows at hand that run, one step
// after the other.
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

// What the parts of a run have in common: the call, this member's share of it,
// and the rows at hand.
template <class T>
struct BackwardWork {
  typedef Compute<T> C;
  const BackwardArgs& args;
  const RecurrenceArgs& g;
  const Shares& shares;
  const BackwardLayout<T>& layout;
  Range panels;  // of H, this member's
  Range columns; // of H
  Range inputs;  // panels of D
  int64_t ldh;
  Range rows{0, 0}; // positions

  BackwardWork(
      const BackwardArgs& args,
      const Shares& shares,
      const BackwardLayout<T>& layout)
      : args(args), g(args.layer), shares(shares), layout(layout) {
    panels = shares.panels(panel_count<C>(g.H));
    columns = columns_of<C>(panels, g.H);
    inputs = shares.panels(panel_count<C>(g.D));
    ldh = leading_dimension<C>(g.H);
  }

  int64_t count_at(int64_t i) const {
    Range running_rows = layout.running.at_step(rows, i);
    return running_rows.last - running_rows.first;
  }

  int64_t row_number(int64_t r) const {
    return layout.running.row(rows.first + r);
  }

  // The chunk's own states, which lie behind those before it.
  C* own_states(const Chunk& chunk, int state = 0) const {
    return layout.states[state] + chunk.count(chunk.first) * ldh;
  }

  // The states before step i of the chunk.
  const C* states_before(const Chunk& chunk, int64_t i, int state = 0) const {
    return i == chunk.first
        ? layout.states[state]
        : own_states(chunk, state) + chunk.begin(i - 1) * ldh;
  }

  // Whether something is wanted of what passes to where episodes start.
  bool wants_starts() const {
    return layout.terms.episodes && any_of(args.dhidden0);
  }

  // What Whh saw at the steps of the chunk.
  const C* seen_rows() const {
    return layout.sees_states() ? layout.states[0] : layout.seen;
  }

  // Stages the rows of one sequence into those of a chunk.
  template <class S>
  void stage_rows(const Sequence& from, const Chunk& chunk, C* to) const {
    for (int64_t k = 0; k < chunk.rows(); ++k, to += ldh) {
      stage_row<S>(
          to,
          row_of<S>(from, row_number(layout.row_at[k].r), layout.row_at[k].t),
          from.feature_stride,
          columns.first,
          columns.last);
    }
  }

  Chunk chunk_at(int64_t first, int64_t last) const {
    layout.begins[0] = 0;
    RowAt* at = layout.row_at;
    for (int64_t i = first; i < last; ++i) {
      int64_t count = count_at(i);
      layout.begins[i - first + 1] = layout.begins[i - first] + count;
      for (int64_t r = 0; r < count; ++r) {
        *at++ = RowAt{r, layout.running.place(rows.first + r, i)};
      }
    }
    return Chunk{first, last, layout.begins};
  }
};

} // namespace
