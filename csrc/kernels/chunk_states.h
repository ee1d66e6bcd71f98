// The states of a chunk and what Whh saw of them, known or computed again.

#pragma once

#include "backward_layout.h"

namespace {

template <class T, Activation f>
struct ChunkStates {
  typedef Compute<T> C;
  const BackwardWork<T>& work;
  const ForwardSteps<T, f>& steps;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const Shares& shares = work.shares;
  const BackwardLayout<T>& layout = work.layout;
  Range columns = work.columns;
  int64_t ldh = work.ldh;

  // Fills layout.states with the states before the chunk and its own; layout.a
  // with its pre-activations, where they are needed; layout.seen with what Whh
  // saw, where those were not the states before. Returns whether Whh saw
  // something at the first step.
  bool load(const Chunk& chunk, C* states) const {
    bool any = stage_before(chunk, layout.states);
    if (g.checkpoint_every > 0) {
      shares.after_step();
      recompute(chunk, any, states);
    } else {
      work.template stage_rows<T>(args.states, chunk, states);
    }
    if (!layout.sees_states()) {
      for (int64_t i = chunk.first; i < chunk.last; ++i) {
        steps.carry(
            i,
            chunk.count(i),
            before(chunk, states, i),
            layout.seen + chunk.begin(i) * ldh);
      }
      any = true;
    }
    if (layout.needs_preactivations(g) && g.checkpoint_every == 0) {
      if (args.preactivations.data) {
        work.template stage_rows<AsComputed<C>>(
            args.preactivations, chunk, layout.a);
      } else {
        shares.after_step();
        recompute_preactivations(chunk, any);
      }
    }
    return any;
  }

  // Where the states before step i are, of a chunk whose own are at `states`.
  const C* before(const Chunk& chunk, const C* states, int64_t i) const {
    return i == chunk.first ? layout.states : states + chunk.begin(i - 1) * ldh;
  }

 private:
  // Stages the states before the chunk; returns whether there are any.
  bool stage_before(const Chunk& chunk, C* to) const {
    int64_t i = chunk.first, count = chunk.count(i);
    if (i == 0) {
      return steps.stage_hidden(count, to);
    }
    for (int64_t r = 0; r < count; ++r, to += ldh) {
      int64_t index = g.latest_checkpoint ? 0
          : g.checkpoint_every > 0
          ? i / g.checkpoint_every - 1
          : layout.running.place(work.rows.first + r, i - 1);
      stage_row<T>(
          to,
          row_of<T>(args.states, work.row_number(r), index),
          args.states.feature_stride,
          columns.first,
          columns.last);
    }
    return true;
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
      int64_t at = chunk.begin(i) * ldh;
      C* next = terms.carries() && i + 1 < chunk.last
          ? layout.seen + chunk.begin(i + 1) * ldh
          : nullptr;
      steps.step(
          i,
          chunk.count(i),
          StepBuffers<C>{
              seen, before(chunk, states, i), a + at, states + at, next},
          StepResults<T>());
      seen = terms.carries() ? next : states + at;
    }
  }

  // From the states, which are known, all steps of a chunk in one product.
  void recompute_preactivations(const Chunk& chunk, bool any) const {
    int64_t skipped = any ? 0 : chunk.count(chunk.first);
    C* a = layout.a + skipped * ldh;
    steps.project(chunk.first, chunk.last, layout.a);
    multiply<T>(
        chunk.rows() - skipped,
        g.H,
        work.seen_rows() + skipped * ldh,
        ldh,
        layout.forward.Whh,
        g.H,
        work.panels.first,
        work.panels.last,
        1,
        Sums<C>{a, ldh, a, ldh},
        false,
        [](const Tile<C>&) {});
  }
};

} // namespace
