// The states of a chunk and what Whh saw of them, known or computed again.

#pragma once

#include "backward_layout.h"

namespace {

template <class T, class Cell>
struct ChunkStates {
  typedef Compute<T> C;
  const BackwardWork<T>& work;
  const ForwardSteps<T, Cell>& steps;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const Shares& shares = work.shares;
  const BackwardLayout<T>& layout = work.layout;
  Range columns = work.columns;
  int64_t ldh = work.ldh;
  const CellShape& shape = layout.slabs.shape;
  int of_states = shape.states;

  // Fills layout.states with the states before the chunk and its own; layout.a
  // with what else the derivative needs, unless it is read where the forward
  // pass left it; layout.seen with what Whh saw, where those were not the
  // states before. Returns whether Whh saw something at the first step. `room`
  // is for rows of slabs.
  bool load(const Chunk& chunk, C* room) const {
    bool any = false;
    for (int s = of_states - 1; s >= 0; --s) {
      any = stage_before(chunk, s);
    }
    if (g.checkpoint_every > 0) {
      shares.after_step();
      recompute(chunk, any, room);
    } else {
      for (int s = 0; s < of_states; ++s) {
        if (g.kept_every(s) == 0) {
          work.template stage_rows<T>(
              kept(s), chunk, work.own_states(chunk, s));
        }
      }
    }
    if (!layout.sees_states()) {
      for (int64_t i = chunk.first; i < chunk.last; ++i) {
        steps.carry(
            i,
            chunk.count(i),
            work.states_before(chunk, i),
            layout.seen + chunk.begin(i) * ldh);
      }
      any = true;
    }
    if (layout.needs_preactivations(g) && g.checkpoint_every == 0) {
      if (!args.saved.data) {
        shares.after_step();
        recompute_preactivations(chunk, any, room);
      } else if (!is_gated<Cell>()) {
        work.template stage_rows<AsComputed<C>>(args.saved, chunk, layout.a);
      }
    }
    return any;
  }

 private:
  const Sequence& kept(int s) const {
    return args.states[s];
  }

  // Stages a state before the chunk; returns whether there is any.
  bool stage_before(const Chunk& chunk, int s) const {
    int64_t i = chunk.first, count = chunk.count(i);
    C* to = layout.states[s];
    if (i == 0) {
      return steps.stage_first(count, to, s);
    }
    int64_t every = g.kept_every(s);
    for (int64_t r = 0; r < count; ++r, to += ldh) {
      int64_t index = g.latest_checkpoint ? 0
          : every > 0                     ? i / every - 1
                      : layout.running.place(work.rows.first + r, i - 1);
      stage_row<T>(
          to,
          row_of<T>(kept(s), work.row_number(r), index),
          kept(s).feature_stride,
          columns.first,
          columns.last);
    }
    return true;
  }

  // The chunk's steps, forward once more.
  void recompute(const Chunk& chunk, bool any, C* room) const {
    const Terms<T>& terms = layout.terms;
    C* a = is_gated<Cell>()              ? room
        : layout.needs_preactivations(g) ? layout.a
                                         : work.own_states(chunk);
    steps.project(chunk.first, chunk.last, a);
    StepBuffers<C> at{};
    at.seen = any ? layout.states[0] : nullptr;
    if (terms.carries() && (any || g.hidden0[0].data)) {
      // Of the first step alone: the others' is written by the step before.
      steps.carry(
          chunk.first, chunk.count(chunk.first), layout.states[0], layout.seen);
      shares.after_step();
      at.seen = layout.seen;
    }
    for (int64_t i = chunk.first; i < chunk.last; ++i) {
      place_step(chunk, i, a, at);
      at.next = terms.carries() && i + 1 < chunk.last
          ? layout.seen + chunk.begin(i + 1) * ldh
          : nullptr;
      steps.step(i, chunk.count(i), at, StepResults<T>());
      at.seen = terms.carries() ? at.next : at.state[0];
    }
  }

  // Where a chunk's step i takes its states and slabs, of rows from `a` on, and
  // leaves them.
  void place_step(const Chunk& chunk, int64_t i, C* a, StepBuffers<C>& at)
      const {
    int64_t begin = chunk.begin(i);
    at.a = a + begin * steps.slabs.ld;
    for (int s = 0; s < of_states; ++s) {
      at.before[s] = work.states_before(chunk, i, s);
      at.state[s] = work.own_states(chunk, s) + begin * ldh;
    }
    if (is_gated<Cell>()) {
      at.saved = layout.a + begin * shape.saved * g.H;
    }
  }

  // From the states that Whh sees, which are known, all steps of a chunk in one
  // product.
  void recompute_preactivations(const Chunk& chunk, bool any, C* room) const {
    int64_t skipped = any ? 0 : chunk.count(chunk.first);
    int64_t ld = steps.slabs.ld;
    C* all = is_gated<Cell>() ? room : layout.a;
    C* a = all + skipped * ld;
    steps.project(chunk.first, chunk.last, all);
    multiply<T, state_slabs_of<Cell>()>(
        shape.state_slabs() > 0 ? chunk.rows() - skipped : 0,
        g.H,
        work.seen_rows() + skipped * ldh,
        ldh,
        layout.forward.Whh,
        g.H,
        work.panels.first,
        work.panels.last,
        1,
        Sums<C>{a, ld, a, ld},
        false,
        [](const Tile<C>&) {},
        steps.slabs.width,
        shape.state_slabs());
    if constexpr (is_gated<Cell>()) {
      if constexpr (is_program<Cell>()) {
        for (int64_t k = 0; k < chunk.rows(); ++k) {
          steps.save_slabs(all + k * ld, layout.a + k * shape.saved * g.H);
        }
      } else {
        bool known = g.kept_every(of_states - 1) == 0;
        for (int64_t i = chunk.first; i < chunk.last; ++i) {
          StepBuffers<C> at{};
          place_step(chunk, i, all, at);
          if (known) {
            steps.template finish_known<Cell::states>(i, chunk.count(i), at);
          } else {
            steps.template finish_known<1>(i, chunk.count(i), at);
          }
        }
      }
    }
  }
};

} // namespace
