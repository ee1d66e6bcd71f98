// The recurrence and its derivative.

#include "cell_programs.h"
#include "check_case.h"

namespace kernel_tests {

Check::Operands Check::layer() {
  const Chances& chances = draws_.chances();
  int64_t rows = cell().slabs * c_.H;
  Operand& x = draw({c_.N, c_.L, c_.D}, size());
  const Operand& Wxh = draw({rows, c_.D}, gain(c_.D));
  const Operand& bias = draw({rows}, 0.5);
  // What is left of the units grows by as much as is dropped.
  const Operand& Whh =
      draw({rows, c_.H}, gain(c_.H) * (1 - chances.recurrent_dropout));
  Operand& hidden = draw({c_.N, 1, c_.H}, size());
  const Operand& hidden0 = draw({c_.H}, size());
  const Operand& leak = place({c_.H}, drawn_leak());
  const Operand* bhn = c_.bhn ? &draw({c_.H}, 0.5) : nullptr;
  Operand* first_cell = c_.cell ? &draw({c_.N, 1, c_.H}, size()) : nullptr;
  const Operand* cell0 = c_.cell0 ? &draw({c_.H}, size()) : nullptr;
  poison_x(x);
  // What Whh alone sees.
  bool in_product =
      c_.of_kind() != CellKind::gru && !c_.leak && !c_.zoneout && !c_.mask;
  poison_first(hidden, [&](int64_t n, int64_t j) {
    return in_product &&
        factors(Drawn::recurrent_dropout, n)[static_cast<size_t>(j)] == 0;
  });
  if (first_cell) {
    poison_first(*first_cell, [](int64_t, int64_t) { return false; });
  }
  Activation activation = static_cast<Activation>(c_.activation);
  bool is_traced = activation == Activation::traced;
  auto values = [](bool there, const Operand& of) {
    return there ? of.values().data() : nullptr;
  };
  auto given = [](const Operand* of) {
    return of ? of->values().data() : nullptr;
  };
  return Operands{
      RecurrenceArgs{
          c_.N,
          c_.L,
          c_.D,
          c_.H,
          c_.as_program ? CellKind::program : c_.of_kind(),
          activation,
          c_.projected != 0,
          c_.as_program ? &cell_programs(c_.of_kind()) : nullptr,
          x.sequence(),
          c_.projected ? kNoMatrix : Wxh.matrix(),
          c_.bias ? bias.vector() : kNoVector,
          Whh.matrix(),
          bhn ? bhn->vector() : kNoVector,
          kNoVector,
          {c_.hidden ? hidden.sequence() : kNoSequence,
           first_cell ? first_cell->sequence() : kNoSequence},
          {c_.hidden0 ? hidden0.vector() : kNoVector,
           cell0 ? cell0->vector() : kNoVector},
          {c_.leak ? leak.vector() : kNoVector},
          c_.mask ? mask(runs_) : kNoSequence,
          course(runs_),
          draws_.draws(),
          0,
          false,
          0,
          is_traced ? &function_ : nullptr,
          is_traced ? &derivative_ : nullptr},
      Layer{
          c_.N,
          c_.L,
          c_.D,
          c_.H,
          c_.of_kind(),
          {activation, c_.program},
          c_.projected != 0,
          x.values().data(),
          Wxh.values().data(),
          values(c_.bias, bias),
          Whh.values().data(),
          given(bhn),
          {values(c_.hidden, hidden), given(first_cell)},
          {values(c_.hidden0, hidden0), given(cell0)},
          values(c_.leak, leak),
          runs_,
          chances,
          type_},
      x};
}

Check::Left Check::room(int64_t kept, int64_t kept_cells) const {
  int64_t cells = has_cells() ? c_.N * c_.H : 0;
  return Left{
      Output(type_, c_.N * kept * c_.H),
      Output(type_, kept_cells * cells),
      Output(type_, c_.N * c_.H),
      Output(type_, cells),
      Output(compute_type(), c_.N * c_.L * cell().saved * c_.H)};
}

// Of all states; the last ones are not wanted.
ForwardArgs Check::forward_args(const Operands& o, const Left& left) const {
  ForwardArgs args = {o.args, {left.states.data()}, {}};
  args.states[1] = has_cells() ? left.cells.data() : nullptr;
  args.saved = keeps_saved() ? left.saved.data() : nullptr;
  return args;
}

// Of (0, 1), and both ends.
std::vector<double> Check::drawn_leak() {
  std::vector<double> rates(static_cast<size_t>(c_.H));
  for (double& rate : rates) {
    double inside = rounded(type_, std::fabs(random_.real()));
    double any[] = {0, 1, inside, inside, inside, inside};
    rate = any[random_.whole(0, 5)];
  }
  return rates;
}

std::vector<double> Check::factors(Drawn what, int64_t n) const {
  return draws_.chances().factors(
      what, n, what == Drawn::input_dropout ? c_.D : c_.H, compute_type());
}

// Padding, skipped steps, features that are dropped, and inputs of units that
// are kept.
void Check::poison_x(Operand& x) const {
  poison_padding(x, c_.D);
  for (int64_t n = 0; elements_are_apart() && n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      if (runs_.skips(n, i)) {
        poison(x, n, runs_.place(n, i), c_.D);
      }
    }
  }
  for (int64_t n = 0; elements_are_apart() && n < c_.N; ++n) {
    auto felt = factors(Drawn::input_dropout, n);
    for (int64_t t = 0; t < c_.L; ++t) {
      for (int64_t d = 0; d < c_.D; ++d) {
        if (felt[static_cast<size_t>(d)] == 0 ||
            (c_.projected && draws_.chances().keeps(n, t, d))) {
          x.set((n * c_.L + t) * c_.D + d, kNaN);
        }
      }
    }
  }
}

// Of a state, every so many are asked for; 0: all.
int64_t Check::kept_every(int state) const {
  return state == 1 && c_.cells_every ? c_.cells_every : c_.checkpoint_every;
}
// Those of a row that the forward pass is asked to leave.
int64_t Check::kept(int state) const {
  return kept_states(c_.L, kept_every(state), c_.latest_checkpoint != 0);
}
// Which of them is that after step i of row n's run; negative: none.
int64_t Check::number(int64_t n, int64_t i, int state) const {
  int64_t length = runs_.length(n), every = kept_every(state);
  if (every == 0) {
    return runs_.place(n, i);
  }
  if (c_.latest_checkpoint) {
    return i + 1 == (length - 1) / every * every ? 0 : -1;
  }
  return (i + 1) % every == 0 || i + 1 == length ? i / every : -1;
}

bool Check::keeps_saved() const {
  bool needed = c_.kind || c_.leak ||
      c_.activation == static_cast<int64_t>(Activation::traced);
  return needed && kept_every(1) == 0 && c_.saved;
}
Type Check::compute_type() const {
  return computing(type_);
}

std::vector<bool> Check::unsaved() const {
  std::vector<bool> ignored;
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t t = 0; t < c_.L; ++t) {
      ignored.insert(
          ignored.end(),
          static_cast<size_t>(cell().saved * c_.H),
          t >= runs_.length(n) ||
              runs_.skip[static_cast<size_t>(n * c_.L + t)] != 0);
    }
  }
  return ignored;
}

void Check::forward() {
  Operands o = layer();
  Left all = room(c_.L, c_.L);
  ForwardArgs whole = forward_args(o, all);
  run_kernel(kernels_.forward, whole, kAlone, 1);
  expect(all.saved.intact(), "memory around what is saved was changed");
  Results right = next_states(
      o.layer, {all.states.values(), all.cells.values()}, rounding_);
  compare("states", all.states, right.states[0]);
  if (has_cells()) {
    compare("cells", all.cells, right.states[1]);
  }
  if (c_.kind && keeps_saved() && !c_.as_program) {
    compare("saved", all.saved, right.saved, unsaved());
  }

  o.args.checkpoint_every = c_.checkpoint_every;
  o.args.latest_checkpoint = c_.latest_checkpoint != 0;
  o.args.cells_every = c_.cells_every;
  Left some = room(kept(0), kept(1));
  ForwardArgs args = forward_args(o, some);
  args.state[0] = c_.state ? some.last.data() : nullptr;
  args.states[1] = c_.cells ? args.states[1] : nullptr;
  args.state[1] = has_cells() && c_.last_cell ? some.last_cell.data() : nullptr;
  run_kernel(kernels_.forward, args, partition_, members());
  expect(some.saved.intact(), "memory around what is saved was changed");
  expect(
      !keeps_saved() ||
          some.saved.same_bits(0, all.saved, 0, all.saved.count()),
      "what is saved depends on how it is shared");
  expect(some.last.intact(), "memory around the state was changed");
  expect(some.last_cell.intact(), "memory around the last cell was changed");
  check_kept(all.states, some.states, 0);
  if (c_.state) {
    check_last(o.layer.first[0], all.states, some.last);
  }
  if (args.states[1]) {
    check_kept(all.cells, some.cells, 1);
  }
  if (args.state[1]) {
    check_last(o.layer.first[1], all.cells, some.last_cell);
  }

  Left other = room(c_.L, c_.L);
  whole = forward_args(o, other);
  whole.layer.checkpoint_every = 0;
  whole.layer.latest_checkpoint = false;
  whole.layer.cells_every = 0;
  auto expect_same = [&](const char* message, const Places& places) {
    run_kernel(kernels_.forward, whole, kAlone, 1);
    same_places(message, places, c_.H, all.states, other.states);
    if (has_cells()) {
      same_places(message, places, c_.H, all.cells, other.cells);
    }
  };
  with_other_lengths([&](const Course& course, const Places& places) {
    whole.layer.course = course;
    expect_same("a row depends on others", places);
  });
  whole.layer.course = o.args.course;
  with_poisoned_part(o.x, c_.D, false, [&](const Places& places) {
    expect_same("an episode depends on others", places);
  });
}

void Check::check_kept(const Output& all, const Output& some, int state) {
  expect(some.intact(), "memory around the states was changed");
  if (kept_every(state) == 0) {
    same("states depend on how they are shared", all, some);
  }
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      int64_t from = runs_.index(n, i) * c_.H;
      int64_t found = number(n, i, state);
      int64_t to = (n * kept(state) + found) * c_.H;
      expect(
          found < 0 || some.same_bits(to, all, from, c_.H),
          "states depend on which are kept, or on how they are shared");
    }
  }
}

// The states after the last steps, from those after all steps and the first.
void Check::check_last(
    const double* first,
    const Output& all,
    const Output& last) {
  for (int64_t n = 0; n < c_.N; ++n) {
    int64_t length = runs_.length(n);
    for (int64_t j = 0; j < c_.H; ++j) {
      double got = last[n * c_.H + j];
      double right = length > 0 ? all[runs_.index(n, length - 1) * c_.H + j]
          : first               ? first[n * c_.H + j]
                                : 0;
      expect(
          got == right || (std::isnan(got) && std::isnan(right)),
          "the state is not that after the last step");
    }
  }
}

// What the forward pass would have left.
const Operand& Check::kept_of(const Output& all, int state) {
  int64_t count = kept(state);
  std::vector<double> left(static_cast<size_t>(c_.N * count * c_.H), kNaN);
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      int64_t found = number(n, i, state);
      for (int64_t j = 0; found >= 0 && j < c_.H; ++j) {
        left[static_cast<size_t>((n * count + found) * c_.H + j)] =
            all[runs_.index(n, i) * c_.H + j];
      }
    }
  }
  return place({c_.N, count, c_.H}, left);
}

void Check::backward() {
  Operands o = layer();
  Left all = room(c_.L, c_.L);
  run_kernel(kernels_.forward, forward_args(o, all), kAlone, 1);
  Operand& of_states = draw({c_.N, c_.L, c_.H}, size());
  poison_padding(of_states, c_.H);
  const Operand& of_last = draw({c_.N, 1, c_.H}, size());
  const Operand& kept_states = kept_of(all.states, 0);
  o.args.checkpoint_every = c_.checkpoint_every;
  o.args.latest_checkpoint = c_.latest_checkpoint != 0;
  o.args.cells_every = c_.cells_every;

  BackwardArgs args = {};
  args.layer = o.args;
  args.states[0] = kept_states.sequence();
  args.dstates[0] = c_.dstates ? of_states.sequence() : kNoSequence;
  args.dstate[0] = c_.state ? of_last.sequence() : kNoSequence;
  Cotangents cotangents = {
      {c_.dstates ? of_states.values().data() : nullptr},
      {c_.state ? of_last.values().data() : nullptr}};
  if (has_cells()) {
    Operand& of_cells = draw({c_.N, c_.L, c_.H}, size());
    poison_padding(of_cells, c_.H);
    const Operand& of_last_cell = draw({c_.N, 1, c_.H}, size());
    args.states[1] = kept_of(all.cells, 1).sequence();
    if (c_.dcells) {
      args.dstates[1] = of_cells.sequence();
      cotangents.states[1] = of_cells.values().data();
    }
    if (c_.last_cell) {
      args.dstate[1] = of_last_cell.sequence();
      cotangents.last[1] = of_last_cell.values().data();
    }
  }
  int64_t width = cell().saved * c_.H;
  std::vector<int64_t> rows(static_cast<size_t>(c_.N));
  for (int64_t n = 0; n < c_.N; ++n) {
    rows[static_cast<size_t>(n)] = n * c_.L * width;
  }
  if (keeps_saved()) {
    args.saved = Sequence{all.saved.data(), rows.data(), width, 1};
  }

  Gradients d = gradients(
      o.layer,
      {all.states.values(), all.cells.values()},
      cotangents,
      rounding_);
  struct Result {
    Wanted bit;
    bool possible;
    const char* name;
    void*& (*place)(BackwardArgs& args);
    const Numbers& expected;
  };
#define AT(member) [](BackwardArgs& args) -> void*& { return args.member; }
  const Result results[] = {
      {want_dx, true, "dx", AT(dx), d.dx},
      {want_dWxh, !c_.projected, "dWxh", AT(dWxh), d.dWxh},
      {want_dbias, c_.bias != 0, "dbias", AT(dbias), d.dbias},
      {want_dWhh, true, "dWhh", AT(dWhh), d.dWhh},
      {want_dbhn, c_.bhn != 0, "dbhn", AT(dbhn), d.dbhn},
      {want_dhidden, c_.hidden != 0, "dhidden", AT(dhidden[0]), d.dfirst[0]},
      {want_dcell, c_.cell != 0, "dcell", AT(dhidden[1]), d.dfirst[1]},
      {want_dhidden0,
       c_.hidden0 != 0,
       "dhidden0",
       AT(dhidden0[0]),
       d.dstarts[0]},
      {want_dcell0, c_.cell0 != 0, "dcell0", AT(dhidden0[1]), d.dstarts[1]},
      {want_dleak, c_.leak != 0, "dleak", AT(dleak), d.dleak}};
#undef AT

  BackwardArgs alone = args;
  std::vector<std::unique_ptr<Output>> outputs, outputs_alone;
  for (const Result& r : results) {
    int64_t count = static_cast<int64_t>(r.expected.size());
    outputs.push_back(std::make_unique<Output>(type_, count));
    outputs_alone.push_back(std::make_unique<Output>(type_, count));
    if (r.possible && (c_.wanted & r.bit)) {
      r.place(args) = outputs.back()->data();
    }
    if (r.possible) {
      r.place(alone) = outputs_alone.back()->data();
    }
  }
  run_kernel(kernels_.backward, args, partition_, members());
  // One thread that forms the same sums, and all of them.
  const Partition one_thread = {
      partition_.slices > 1 ? Split::batch : Split::none, 1, partition_.slices};
  run_kernel(kernels_.backward, alone, one_thread, 1);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Result& r = results[i];
    if (r.possible && (c_.wanted & r.bit)) {
      compare(r.name, *outputs[i], r.expected);
      same(
          "a gradient depends on which are wanted, or on how it is shared",
          *outputs[i],
          *outputs_alone[i]);
    }
  }

  const Output& dx = *outputs_alone[0];
  Output other(type_, dx.count());
  alone.dx = other.data();
  with_other_lengths([&](const Course& course, const Places& places) {
    alone.layer.course = course;
    run_kernel(kernels_.backward, alone, one_thread, 1);
    same_places("dx of a row depends on others", places, c_.D, dx, other);
  });
  alone.layer.course = o.args.course;
  if (c_.dstates) {
    with_poisoned_part(of_states, c_.H, true, [&](const Places& places) {
      run_kernel(kernels_.backward, alone, one_thread, 1);
      same_places(
          "dx of an episode depends on others", places, c_.D, dx, other);
    });
  }
}

} // namespace kernel_tests
