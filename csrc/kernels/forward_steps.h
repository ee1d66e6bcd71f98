// Steps of the nonlinear scan: the projection, and what happens at each step.

#pragma once

#include "program.h"
#include "recurrent_product.h"
#include "terms.h"

namespace {

template <class T>
struct VectorOps {
  typedef Compute<T> C;
  // As a state is kept: rounded to the type of the call.
  static INLINE_MEMBER Vec<C> stored(Vec<C> a) {
    return T::round(a);
  }
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

// The part of the scratch memory that running steps forward needs; where there
// are no steps only that for a traced activation. First what `prepare` fills,
// in places that no number of steps moves.
template <class T>
struct ForwardMemory {
  typedef Compute<T> C;
  Panels<T> Whh;             // Whh^T
  Panels<T> Wxh;             // Wxh^T
  C* bias;                   // a row of slabs
  C* parameters;             // (parameters, ldh)
  ProgramMemory<C> function; // where the activation, or the cell, is one
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
    Slabs<C> slabs(g);
    int64_t columns = panel_count<C>(g.H) * kPanel<C>;
    int state_slabs = slabs.shape.state_slabs();
    int input_slabs = slabs.shape.input_slabs();
    Whh = take_panels<T>(
        arena,
        steps > 0 ? g.H : 0,
        state_slabs * columns,
        stays_stored<T>(chains),
        product_of<T>(g.sgemm, p, rows, g.H, state_slabs * g.H));
    Wxh = take_panels<T>(
        arena,
        projects ? g.D : 0,
        input_slabs * columns,
        false,
        product_of<T>(
            g.sgemm, p, rows_of_chunk(rows, g.L), g.D, input_slabs * g.H));
    bias = arena.take<C>(steps > 0 ? slabs.ld : 0);
    parameters =
        arena.take<C>(slabs.shape.parameters * leading_dimension<C>(g.H));
    if (const Program* program = g.programs ? &g.programs->step : g.function) {
      function = ProgramMemory<C>(arena, *program, p, member);
    }
    int64_t staged = projects ? steps * rows * ldd : 0;
    x = arena.take<C>(p.threads * staged) + member * staged;
  }
};

// Where one step leaves its results; nowhere at first.
template <class T>
struct StepResults {
  typedef Compute<T> C;
  Element<T>* states[kMostStates] = {};
  C* saved = nullptr;
  int64_t saved_size = 0; // of a step
  const RecurrenceArgs* g = nullptr;
  int64_t step = 0;
  // Where a state is kept.
  struct Place {
    int64_t every = 0; // 0: at every step
    int64_t count = 0; // of a row
    int64_t number = 0;
    bool keeps = false; // every row's, not only that of a row that ends
  };
  Place places[kMostStates];

  StepResults() = default;

  StepResults(const ForwardArgs& args, int64_t i)
      : saved(static_cast<C*>(args.saved)),
        saved_size(shape_of(args.layer).saved * args.layer.H),
        g(&args.layer),
        step(i) {
    for (int s = 0; s < kMostStates; ++s) {
      states[s] = static_cast<Element<T>*>(args.states[s]);
      if (int64_t every = g->kept_every(s)) {
        places[s] = {
            every,
            kept_states(g->L, every, g->latest_checkpoint),
            g->latest_checkpoint ? 0 : i / every,
            (i + 1) % every == 0};
      }
    }
  }

  // Where the state of the row at position p goes; null: nowhere.
  INLINE_MEMBER Element<T>* state(
      const Running& running,
      int64_t p,
      int which = 0) const {
    if (!states[which]) {
      return nullptr;
    }
    int64_t row = running.row(p);
    const Place& at = places[which];
    if (at.every == 0) {
      return states[which] + (row * g->L + running.place(p, step)) * g->H;
    }
    int64_t left = running.length(p) - (step + 1);
    bool keep = g->latest_checkpoint ? at.keeps && left > 0 && left <= at.every
                                     : at.keeps || left == 0;
    return keep ? states[which] + (row * at.count + at.number) * g->H : nullptr;
  }

  INLINE_MEMBER C* saved_of(const Running& running, int64_t p) const {
    return saved
        ? saved + (running.row(p) * g->L + running.place(p, step)) * saved_size
        : nullptr;
  }
};

// What a step takes and gives, but for its results. Rows of states are ldh
// elements, those of one step in a row.
template <class C>
struct StepBuffers {
  const C* seen; // by Whh; null: nothing
  // The states before, where a state is more than f(a).
  const C* before[kMostStates];
  C* a;                  // rows of slabs: z, which becomes the pre-activations
  C* state[kMostStates]; // the first may be `a`
  C* next;               // what Whh sees in the next step; null: the state
  C* saved = nullptr;    // rows of what the cell saves, without padding
};

// Steps forward over the rows of one slice.
template <class T, class Cell>
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
  Slabs<C> slabs;
  RecurrentProduct<T, state_slabs_of<Cell>()> product; // with Whh

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
        ldh(leading_dimension<C>(g.H)),
        slabs(g),
        product(
            memory.Whh,
            g.N,
            g.H,
            shares,
            g.H,
            ldh,
            slabs.width,
            slabs.shape.state_slabs()) {
    panels = product.panels;
    columns = columns_of<C>(panels, g.H);
    ldd = leading_dimension<C>(g.D);
  }

  // Packs the weights, once for all members; the caller waits for them.
  void prepare() const {
    Range own = shares.once(panel_count<C>(g.H));
    slabs.pack_state(memory.Whh, g.Whh, own);
    if (!g.projected) {
      slabs.pack_input(memory.Wxh, g.Wxh, g.D, own);
    }
    const CellShape& shape = slabs.shape;
    if (shares.member.index == 0) {
      clear(memory.bias, slabs.ld);
      C* to = memory.bias;
      for (int k = 0; k < shape.slabs(); ++k, to += slabs.width) {
        bool of_input = k >= shape.state_only;
        const Vector& bias = of_input ? g.bias : g.bhn;
        int64_t at = (of_input ? k - shape.state_only : k) * g.H;
        if (bias.data) {
          stage_row<T>(
              to,
              static_cast<const Element<T>*>(bias.data) + at * bias.stride,
              bias.stride,
              0,
              g.H);
        }
      }
    }
    spread();
  }

  // The constants and the parameters of programs, which `function` needs.
  void spread() const {
    if constexpr (is_traced<Cell>()) {
      spread_constants(*g.function, memory.function);
    } else if constexpr (is_program<Cell>()) {
      spread_constants(g.programs->step, memory.function);
      for (int k = 0; shares.member.index == 0 && k < slabs.shape.parameters;
           ++k) {
        stage_row<T>(
            memory.parameters + k * ldh,
            static_cast<const Element<T>*>(g.parameters.data) +
                k * g.H * g.parameters.stride,
            g.parameters.stride,
            0,
            g.H);
      }
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
  bool stage_first(int64_t count, C* to, int state = 0) const {
    const Sequence& hidden = g.hidden[state];
    for (int64_t r = 0; r < count; ++r, to += ldh) {
      if (!hidden.data) {
        clear(to + columns.first, columns.last - columns.first);
        continue;
      }
      stage_row<T>(
          to,
          row_of<T>(hidden, running.row(rows.first + r), 0),
          hidden.feature_stride,
          columns.first,
          columns.last);
    }
    return hidden.data;
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
      terms.drop_inputs(r, t, x, 0, g.D);
      x += ldd;
    });
    int64_t skipped = slabs.input_column();
    const CellShape& shape = slabs.shape;
    multiply<T, input_slabs_of<Cell>()>(
        total,
        g.D,
        memory.x,
        ldd,
        memory.Wxh,
        g.H,
        panels.first,
        panels.last,
        1,
        Sums<C>{memory.bias + skipped, 0, to + skipped, slabs.ld},
        false,
        [](const Tile<C>&) {},
        slabs.width,
        shape.input_slabs());
    // What the products of the steps are added to.
    for (int k = 0; k < shape.state_only; ++k) {
      for (int64_t r = 0; r < total; ++r) {
        slabs.copy_columns(memory.bias, to + r * slabs.ld, k, columns);
      }
    }
  }

  // Step i of the first `count` rows.
  void step(
      int64_t i,
      int64_t count,
      const StepBuffers<C>& at,
      const StepResults<T>& results) const {
    terms.begin_step(i, count);
    bool absent = at.seen && terms.episodes && !g.hidden0[0].data;
    if (absent) {
      swap_started(count, at.a, terms.saved);
    }
    auto finish = [&](const Tile<C>& tile) __attribute__((always_inline)) {
      if constexpr (is_program<Cell>()) {
        // When the whole step is there.
      } else if constexpr (is_gated<Cell>()) {
        finish_gated<0>(tile, at, results, absent);
      } else if constexpr (!is_traced<Cell>()) {
        activate_tile(tile, at, results, absent);
      }
    };
    product.step(
        i,
        at.seen && slabs.shape.state_slabs() > 0 ? count : 0,
        count,
        at.seen,
        {at.a, slabs.ld, at.a, slabs.ld},
        finish);
    if constexpr (is_traced<Cell>() || is_program<Cell>()) {
      if (absent) {
        swap_started(count, terms.saved, at.a);
      }
      if constexpr (is_program<Cell>()) {
        run_cell_program(count, at, results);
      } else {
        run_traced(count, at, results);
      }
    }
    if (at.next) {
      carry(i + 1, count_at(i + 1), at.state[0], at.next);
    }
    shares.after_step();
  }

  // Step i of a gated cell whose slabs and first states are known: what it
  // saves, and its states from number `first` on.
  template <int first>
  void finish_known(int64_t i, int64_t count, const StepBuffers<C>& at) const {
    terms.begin_step(i, count);
    int64_t size = columns.last - columns.first;
    finish_gated<first>(
        {at.a + columns.first, slabs.ld, 0, count, columns.first, size},
        at,
        StepResults<T>(),
        false);
  }

  // A program's pre-activations, of a row of slabs: all that it saves.
  void save_slabs(const C* a, C* to) const {
    for (int64_t j = columns.first; j < columns.last; j += lanes) {
      save_slabs(j, columns.last - j, a, to);
    }
  }

 private:
  INLINE_MEMBER void save_slabs(int64_t j, int64_t left, const C* a, C* to)
      const {
    for (int k = 0; k < slabs.shape.slabs(); ++k) {
      store_some<AsComputed<C>>(
          to + k * g.H + j, load_as<Vec<C>>(a + k * slabs.width + j), left);
    }
  }

  // Copies the rows whose episode starts: no product is added to them.
  void swap_started(int64_t count, const C* from, C* to) const {
    for (int64_t r = 0; r < count; ++r) {
      if (terms.starts_row(r)) {
        for (int k = 0; k < slabs.shape.slabs(); ++k) {
          slabs.copy_columns(
              from + r * slabs.ld, to + r * slabs.ld, k, columns);
        }
      }
    }
  }

  // The state before the step at hand, as the sum in h_t has it.
  INLINE_MEMBER const C* state_before(
      const StepBuffers<C>& at,
      int64_t r,
      int state = 0) const {
    return terms.starts_row(r) ? terms.started_at[state]
                               : at.before[state] + r * ldh;
  }

  template <int first>
  INLINE_MEMBER void finish_gated(
      const Tile<C>& tile,
      const StepBuffers<C>& at,
      const StepResults<T>& results,
      bool absent) const {
    constexpr CellShape shape = shape_as<Cell>();
    for (int64_t m = 0; m < tile.rows; ++m) {
      int64_t r = tile.row + m;
      int64_t position = rows.first + r;
      // From here on by the number of the unit.
      const C* a = absent && terms.starts_row(r)
          ? terms.saved + r * slabs.ld
          : tile.values + m * tile.stride - tile.column;
      const C* q[shape.states];
      Element<T>* out[shape.states];
      for (int s = 0; s < shape.states; ++s) {
        q[s] = state_before(at, r, s);
        out[s] = results.state(running, position, s);
      }
      C* saved = at.saved ? at.saved + r * shape.saved * g.H
                          : results.saved_of(running, position);
      int64_t last = tile.column + tile.columns;
      for (int64_t j = tile.column; j < last; j += lanes) {
        finish_units<first>(r, j, last - j, a, q, at, out, saved);
      }
    }
  }

  // Up to a whole vector of a row's units.
  template <int first>
  INLINE_MEMBER void finish_units(
      int64_t r,
      int64_t j,
      int64_t left,
      const C* a,
      const C* const* q,
      const StepBuffers<C>& at,
      Element<T>* const* out,
      C* saved) const {
    constexpr CellShape shape = shape_as<Cell>();
    Vec<C> before[shape.states];
    Vec<C> y[shape.states];
    Vec<C> kept[shape.saved];
#pragma GCC unroll 8
    for (int s = 0; s < shape.states; ++s) {
      before[s] = load_as<Vec<C>>(q[s] + j);
    }
    run_cell(a + j, before, y, kept);
#pragma GCC unroll 8
    for (int s = first; s < shape.states; ++s) {
      if (terms.blends()) {
        y[s] = terms.state_of(r, j, before[s], y[s], s);
      }
      y[s] = T::round(y[s]);
      store_as(at.state[s] + r * ldh + j, y[s]);
      if (out[s]) {
        store_some<Rounded<T>>(out[s] + j, y[s], left);
      }
    }
    if (saved) {
      save_units(j, left, kept, saved);
    }
  }

  // The cell's step of a vector of units, whose slabs begin at `a`.
  INLINE_MEMBER void run_cell(
      const C* a,
      const Vec<C>* before,
      Vec<C>* y,
      Vec<C>* kept) const {
    constexpr CellShape shape = shape_as<Cell>();
    Vec<C> in[shape.slabs()];
    constexpr int count = shape.slabs(); // a call in the loop is not unrolled
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) {
      in[k] = load_as<Vec<C>>(a + k * slabs.width);
    }
    Cell::template step<VectorOps<T>>(in, before, splat<C>(C(1)), y, kept);
  }

  INLINE_MEMBER void save_units(
      int64_t j,
      int64_t left,
      const Vec<C>* kept,
      C* saved) const {
    constexpr CellShape shape = shape_as<Cell>();
#pragma GCC unroll 8
    for (int k = 0; k < shape.saved; ++k) {
      store_some<AsComputed<C>>(saved + k * g.H + j, kept[k], left);
    }
  }

  INLINE_MEMBER void activate_tile(
      const Tile<C>& tile,
      const StepBuffers<C>& at,
      const StepResults<T>& results,
      bool absent) const {
    constexpr Activation f = Cell::activation;
    bool blends = terms.blends();
    bool plain = !blends && !absent && at.state[0] == at.a && !results.saved;
    for (int64_t m = 0; m < tile.rows; ++m) {
      int64_t r = tile.row + m;
      C* values = tile.values + m * tile.stride;
      Element<T>* out = results.state(running, rows.first + r);
      if (plain) {
        for (int64_t j = 0; j < tile.columns; j += lanes) {
          Vec<C> h = T::round(
              mlx_recurrent::elman::activate<f, VectorOps<T>>(
                  load_as<Vec<C>>(values + j)));
          store_as(values + j, h);
          if (out) {
            store_some<Rounded<T>>(out + tile.column + j, h, tile.columns - j);
          }
        }
        continue;
      }
      C* a_out = results.saved_of(running, rows.first + r);
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
            mlx_recurrent::elman::activate<f, VectorOps<T>>(a),
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
    store_as(at.state[0] + r * ldh + column, h);
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
          if (C* a_out = results.saved_of(running, rows.first + r)) {
            store_some<AsComputed<C>>(a_out + column, a, columns.last - column);
          }
        },
        [&](int64_t r, int64_t column, const BlockResults<C>& h)
            __attribute__((always_inline)) {
              finish_vector(
                  r,
                  column,
                  columns.last - column,
                  Vec<C>{},
                  h[0],
                  blends ? state_before(at, r) : nullptr,
                  at,
                  results.state(running, rows.first + r),
                  nullptr);
            });
  }

  // A cell that is a program, of all rows of a step.
  void run_cell_program(
      int64_t count,
      const StepBuffers<C>& at,
      const StepResults<T>& results) const {
    const CellShape& shape = slabs.shape;
    bool blends = terms.blends();
    run_program<C>(
        g.programs->step,
        memory.function,
        count,
        columns,
        [&](int64_t r, int64_t j, C* to) __attribute__((always_inline)) {
          const C* a = at.a + r * slabs.ld + j;
          for (int k = 0; k < shape.slabs(); ++k, to += kBlock<C>) {
            store_as(to, load_as<Vec<C>>(a + k * slabs.width));
          }
          for (int s = 0; s < shape.states; ++s, to += kBlock<C>) {
            store_as(to, load_as<Vec<C>>(state_before(at, r, s) + j));
          }
          for (int k = 0; k < shape.parameters; ++k, to += kBlock<C>) {
            store_as(to, load_as<Vec<C>>(memory.parameters + k * ldh + j));
          }
          C* saved = at.saved ? at.saved + r * shape.saved * g.H
                              : results.saved_of(running, rows.first + r);
          if (saved) {
            save_slabs(j, columns.last - j, a - j, saved);
          }
        },
        [&](int64_t r, int64_t j, const BlockResults<C>& y)
            __attribute__((always_inline)) {
              for (int s = 0; s < shape.states; ++s) {
                Vec<C> h = y[s];
                if (blends) {
                  Vec<C> q = load_as<Vec<C>>(state_before(at, r, s) + j);
                  h = terms.state_of(r, j, q, h, s);
                }
                h = T::round(h);
                store_as(at.state[s] + r * ldh + j, h);
                if (Element<T>* out =
                        results.state(running, rows.first + r, s)) {
                  store_some<Rounded<T>>(out + j, h, columns.last - j);
                }
              }
            });
  }
};

} // namespace
