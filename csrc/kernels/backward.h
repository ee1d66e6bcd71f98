// The vector-Jacobian product of the nonlinear scan: backward in time, in
// chunks whose weight gradients are formed while their deltas are in cache.

#pragma once

#include "chunk_states.h"
#include "cotangent_steps.h"
#include "gated_cotangents.h"
#include "weight_gradients.h"

namespace {

template <class T, class Cell, bool gated = is_gated<Cell>()>
struct CotangentsFor {
  typedef CotangentSteps<T, Cell> type;
};

template <class T, class Cell>
struct CotangentsFor<T, Cell, true> {
  typedef GatedCotangents<T, Cell> type;
};

template <class T, class Cell>
struct BackwardRun {
  typedef Compute<T> C;
  static constexpr int lanes = Simd<C>::lanes;
  BackwardWork<T>& work;
  ForwardSteps<T, Cell>& steps;
  const BackwardArgs& args = work.args;
  const RecurrenceArgs& g = work.g;
  const Shares& shares = work.shares;
  const BackwardLayout<T>& layout = work.layout;
  ChunkStates<T, Cell> states{work, steps};
  typename CotangentsFor<T, Cell>::type cotangents{work};
  WeightGradients<T> weights{work};

  void pack_weights() const {
    Range own = shares.once(panel_count<C>(g.H));
    const Slabs<C>& slabs = layout.slabs;
    slabs.pack_back(layout.transposed, g.Whh, true, g.H, own);
    if (args.dx && !g.projected) {
      own = shares.once(panel_count<C>(g.D));
      slabs.pack_back(layout.Wxh, g.Wxh, false, g.D, own);
    }
    if (layout.recomputes(args) && g.L > 0) {
      steps.prepare();
    }
    if constexpr (is_traced<Cell>()) {
      spread_constants(*g.derivative, layout.derivative);
      if (args.dleak) {
        spread_constants(*g.function, layout.forward.function);
      }
    } else if constexpr (is_program<Cell>()) {
      spread_constants(g.programs->pullback, layout.derivative);
      steps.spread();
    }
  }

  void run_slice(int slice) {
    weights.clear(slice);
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

 private:
  int64_t last_block(int64_t position) const {
    int64_t length = layout.running.length(position);
    return length > 0 ? (length - 1) / layout.steps : 0;
  }

  // Of these rows, chunks [first, last), from the last to the first.
  void run_chunks(int slice, Range rows, int64_t first, int64_t last) {
    work.rows = rows;
    steps.begin(rows);
    int64_t most = layout.running.most_steps(rows);
    C* delta = layout.delta;
    const C* later = nullptr;
    int64_t count = 0;
    for (int64_t c = last - 1; c >= first && most > 0; --c) {
      Chunk chunk = work.chunk_at(
          c * layout.steps, minimum((c + 1) * layout.steps, most));
      count = chunk.count(chunk.first);
      bool any = states.load(chunk, delta);
      cotangents.load(chunk, delta);
      for (int64_t i = chunk.last - 1; i >= chunk.first; --i) {
        cotangents.step(chunk, i, later, delta);
        later = delta + chunk.begin(i) * layout.slabs.ld;
      }
      weights.add(slice, chunk, delta, any);
      if (args.dx) {
        write_dx(chunk, delta);
      }
      keep_border(count);
      later = layout.border;
    }
    if (!later) {
      return;
    }
    if (first > 0 && work.wants_starts()) {
      // Nothing passes this border but to an episode that starts there.
      cotangents.collect(first * layout.steps, count, later);
      weights.move_chunk_sums(slice);
    } else if (first == 0 && (any_of(args.dhidden) || work.wants_starts())) {
      cotangents.write_first(count, later);
      weights.move_chunk_sums(slice);
    }
  }

  // Keeps delta of a chunk's first step, in whose place the next one's come.
  void keep_border(int64_t count) const {
    const Slabs<C>& slabs = layout.slabs;
    for (int64_t r = 0; r < count; ++r) {
      for (int k = 0; k < slabs.shape.state_slabs(); ++k) {
        int64_t at = r * slabs.ld;
        slabs.copy_columns(
            layout.delta + at, layout.border + at, k, work.columns);
      }
    }
    shares.after_step();
  }

  void write_dx(const Chunk& chunk, const C* delta) const {
    const Terms<T>& terms = layout.terms;
    Element<T>* out = static_cast<Element<T>*>(args.dx);
    auto row_at = [&](int64_t k) {
      const RowAt& at = layout.row_at[k];
      return out + (work.row_number(at.r) * g.L + at.t) * g.D;
    };
    if (g.projected) {
      for (int64_t k = 0; k < chunk.rows(); ++k) {
        write_row<T>(
            row_at(k),
            delta + k * work.ldh,
            work.columns.first,
            work.columns.last);
      }
      return;
    }
    const Slabs<C>& slabs = layout.slabs;
    multiply<T>(
        chunk.rows(),
        slabs.depth(slabs.shape.input_slabs()),
        delta + slabs.input_column(),
        slabs.ld,
        layout.Wxh,
        g.D,
        work.inputs.first,
        work.inputs.last,
        1,
        Sums<C>{},
        false,
        [&](const Tile<C>& tile) {
          for (int64_t m = 0; m < tile.rows; ++m) {
            Element<T>* to = row_at(tile.row + m) + tile.column;
            C* values = tile.values + m * tile.stride;
            terms.drop_inputs(
                layout.row_at[tile.row + m].r,
                layout.row_at[tile.row + m].t,
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

  // Results of rows and steps that nothing else writes.
  void write_rest(Range positions) const {
    Element<T>* dx = static_cast<Element<T>*>(args.dx);
    for (int64_t p = positions.first; p < positions.last; ++p) {
      if (!shares.takes(p)) {
        continue;
      }
      int64_t row = layout.running.row(p), length = layout.running.length(p);
      int64_t begin = g.latest_checkpoint ? 0 : length;
      if (dx) {
        clear(dx + (row * g.L + begin) * g.D, (g.L - begin) * g.D);
      }
      for (int s = 0; s < layout.slabs.shape.states; ++s) {
        Element<T>* first = static_cast<Element<T>*>(args.dhidden[s]);
        Element<T>* to = first ? first + row * g.H : nullptr;
        if (to && length == 0) {
          copy_or_clear_row<T>(to, args.dstate[s], row, g.H);
        } else if (to && g.latest_checkpoint) {
          clear(to, g.H);
        }
      }
    }
    if (g.latest_checkpoint) {
      shares.after_step(); // some of it is written once more
    }
  }
};

template <class T, class Cell>
static void run_backward(
    const BackwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  const RecurrenceArgs& g = args.layer;
  Shares shares{p, member, g.N};
  Arena arena = arena_at(scratch);
  BackwardLayout<T> layout(arena, args, shares);
  ForwardSteps<T, Cell> steps(
      g, shares, layout.running, layout.terms, layout.forward);
  BackwardWork<T> work(args, shares, layout);
  BackwardRun<T, Cell> run{work, steps};
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
      run.weights.clear(s);
    }
    if (member.index == 0) {
      for (int s = 0; s < kMostStates; ++s) {
        copy_or_clear<T>(args.dhidden[s], args.dstate[s], g.N, g.H);
      }
    }
  }
  wait(member);
  run.weights.write();
}

} // namespace
