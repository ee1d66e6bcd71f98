// The nonlinear scan, in chunks of time that stay in cache.

#pragma once

#include "forward_steps.h"

namespace {

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
    void* to,
    const Sequence& hidden,
    int64_t N,
    int64_t H) {
  for (int64_t n = 0; to && n < N; ++n) {
    copy_or_clear_row<T>(static_cast<Element<T>*>(to) + n * H, hidden, n, H);
  }
}

template <class T>
struct ForwardLayout {
  typedef Compute<T> C;
  int64_t steps;
  ForwardMemory<T> memory;
  Running running;
  Terms<T> terms;
  C* first[kMostStates]; // (rows, ldh) each, by group
  // Rows of slabs (steps * rows) each, by group; with one slab states take
  // their place.
  C* a[2];
  C* states[kMostStates][2]; // (rows, ldh) each, by group, of several slabs
  C* seen[2]; // (rows, ldh) each, by group, where Whh sees other than states

  static int64_t chunk(const RecurrenceArgs& g, const Shares& shares) {
    int64_t ld = Slabs<C>(g).ld;
    int64_t ldd = g.projected ? 0 : leading_dimension<C>(g.D);
    return forward_chunk_steps(
        g.L,
        shares.most_rows(),
        (ldd > ld ? ldd : ld) * static_cast<int64_t>(sizeof(C)));
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
    auto take = [&](bool there, int64_t count) {
      return arena.take<C>(there ? groups * count : 0) + shares.group() * count;
    };
    Slabs<C> slabs(g);
    bool one = g.kind == CellKind::elman;
    for (int s = 0; s < kMostStates; ++s) {
      bool there = s < slabs.shape.states;
      first[s] = take(there, size);
      for (C*& state : states[s]) {
        state = take(there && !one, size);
      }
    }
    for (C*& row : seen) {
      row = take(terms.carries(), size);
    }
    a[0] = take(true, steps * shares.most_rows() * slabs.ld);
    a[1] = one ? take(true, steps * shares.most_rows() * slabs.ld) : a[0];
  }
};

template <class T>
static size_t forward_scratch(const ForwardArgs& args, const Partition& p) {
  Arena arena{0};
  Shares shares{p, kNobody, args.layer.N};
  ForwardLayout<T> layout(arena, args.layer, shares);
  return arena.used + 64;
}

template <class T, class Cell>
struct ForwardRun {
  typedef Compute<T> C;
  const ForwardArgs& args;
  const RecurrenceArgs& g;
  const Shares& shares;
  const ForwardLayout<T>& layout;
  ForwardSteps<T, Cell>& steps;
  int of_states = steps.slabs.shape.states;

  void run_slice() const {
    clear_padding();
    int64_t count = steps.count_at(0);
    int64_t all = steps.rows.last - steps.rows.first;
    StepBuffers<C> at{};
    bool any = false;
    for (int s = of_states - 1; s >= 0; --s) {
      any = steps.stage_first(all, layout.first[s], s);
      write_ended(0, all, layout.first[s], s);
      at.before[s] = layout.first[s];
    }
    at.seen = any ? layout.first[0] : nullptr;
    bool carries = layout.terms.carries();
    if (carries && (any || g.hidden0[0].data)) {
      at.seen = layout.seen[0];
      steps.carry(0, count, layout.first[0], layout.seen[0]);
    }
    if (at.seen) {
      shares.after_step();
    }
    int64_t last = layout.running.most_steps(steps.rows);
    int which = 0;
    for (int64_t i0 = 0; i0 < last; i0 += layout.steps, which ^= 1) {
      int64_t i1 = minimum(i0 + layout.steps, last);
      at.a = layout.a[which];
      steps.project(i0, i1, at.a);
      for (int64_t i = i0; i < i1; ++i) {
        at.next = carries ? layout.seen[(i + 1) & 1] : nullptr;
        for (int s = 0; s < of_states; ++s) {
          at.state[s] = is_gated<Cell>() ? layout.states[s][(i + 1) & 1] : at.a;
        }
        steps.step(i, count, at, StepResults<T>(args, i));
        for (int s = 0; s < of_states; ++s) {
          write_ended(i + 1, count, at.state[s], s);
          at.before[s] = at.state[s];
        }
        at.seen = carries ? at.next : at.state[0];
        at.a += count * steps.slabs.ld;
        count = steps.count_at(i + 1);
      }
    }
  }

 private:
  // Of the first `count` rows, the states of those that have no step i.
  void write_ended(int64_t i, int64_t count, const C* states, int state) const {
    Element<T>* to = static_cast<Element<T>*>(args.state[state]);
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
    for (int64_t p = steps.rows.first; p < steps.rows.last; ++p) {
      if (shares.takes(p)) {
        int64_t length = layout.running.length(p);
        for (int s = 0; s < of_states; ++s) {
          if (args.states[s] && g.kept_every(s) == 0) {
            clear(
                static_cast<Element<T>*>(args.states[s]) +
                    (layout.running.row(p) * g.L + length) * g.H,
                (g.L - length) * g.H);
          }
        }
      }
    }
  }
};

template <class T, class Cell>
static void run_forward(
    const ForwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  const RecurrenceArgs& g = args.layer;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  ForwardLayout<T> layout(arena, g, shares);
  ForwardSteps<T, Cell> steps(
      g, shares, layout.running, layout.terms, layout.memory);
  if (g.L == 0) {
    if (member.index == 0) {
      for (int s = 0; s < kMostStates; ++s) {
        copy_or_clear<T>(args.state[s], g.hidden[s], g.N, g.H);
      }
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
  ForwardRun<T, Cell> run{args, g, shares, layout, steps};
  for (int s = shares.first_slice(); s < p.slices; s += shares.slice_step()) {
    steps.begin(shares.rows(s));
    run.run_slice();
  }
}

} // namespace
