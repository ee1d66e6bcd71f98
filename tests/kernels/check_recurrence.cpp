// The recurrence and its derivative.

#include "check_case.h"

namespace kernel_tests {

Check::Operands Check::layer() {
  const Chances& chances = draws_.chances();
  Operand& x = draw({c_.N, c_.L, c_.D}, size());
  const Operand& Wxh = draw({c_.H, c_.D}, gain(c_.D));
  const Operand& bias = draw({c_.H}, 0.5);
  // What is left of the units grows by as much as is dropped.
  const Operand& Whh =
      draw({c_.H, c_.H}, gain(c_.H) * (1 - chances.recurrent_dropout));
  Operand& hidden = draw({c_.N, 1, c_.H}, size());
  const Operand& hidden0 = draw({c_.H}, size());
  const Operand& leak = place({c_.H}, drawn_leak());
  poison_x(x);
  poison_hidden(hidden, [&](int64_t n, int64_t j) {
    return !c_.leak && !c_.zoneout &&
        factors(Drawn::recurrent_dropout, n)[static_cast<size_t>(j)] == 0;
  });
  Activation activation = static_cast<Activation>(c_.activation);
  bool is_traced = activation == Activation::traced;
  return Operands{
      RecurrenceArgs{
          c_.N,
          c_.L,
          c_.D,
          c_.H,
          CellKind::elman,
          activation,
          c_.projected != 0,
          x.sequence(),
          c_.projected ? kNoMatrix : Wxh.matrix(),
          c_.bias ? bias.vector() : kNoVector,
          Whh.matrix(),
          kNoVector,
          c_.hidden ? hidden.sequence() : kNoSequence,
          kNoSequence,
          c_.hidden0 ? hidden0.vector() : kNoVector,
          kNoVector,
          c_.leak ? leak.vector() : kNoVector,
          course(runs_),
          draws_.draws(),
          0,
          false,
          is_traced ? &function_ : nullptr,
          is_traced ? &derivative_ : nullptr},
      Layer{
          c_.N,
          c_.L,
          c_.D,
          c_.H,
          activation,
          c_.program,
          c_.projected != 0,
          x.values().data(),
          Wxh.values().data(),
          c_.bias ? bias.values().data() : nullptr,
          Whh.values().data(),
          c_.hidden ? hidden.values().data() : nullptr,
          c_.hidden0 ? hidden0.values().data() : nullptr,
          c_.leak ? leak.values().data() : nullptr,
          runs_,
          chances,
          compute_type()},
      x};
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

// Padding, features that are dropped, and inputs of units that are kept.
void Check::poison_x(Operand& x) const {
  poison_padding(x, c_.D);
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

// States of a row that the forward pass is asked to leave.
int64_t Check::kept() const {
  return kept_states(c_.L, c_.checkpoint_every, c_.latest_checkpoint != 0);
}
// Which of them is that after step i of row n's run; negative: none.
int64_t Check::number(int64_t n, int64_t i) const {
  int64_t length = runs_.length(n), every = c_.checkpoint_every;
  if (every == 0) {
    return runs_.place(n, i);
  }
  if (c_.latest_checkpoint) {
    return i + 1 == (length - 1) / every * every ? 0 : -1;
  }
  return (i + 1) % every == 0 || i + 1 == length ? i / every : -1;
}

// Whether the pre-activations are kept.
bool Check::keeps_preactivations() const {
  bool needed =
      c_.leak || c_.activation == static_cast<int64_t>(Activation::traced);
  return needed && c_.checkpoint_every == 0 && c_.preactivations;
}
Type Check::compute_type() const {
  return type_ == Type::float64 ? Type::float64 : Type::float32;
}

void Check::forward() {
  Operands o = layer();
  Output all(type_, c_.N * c_.L * c_.H);
  Output all_a(compute_type(), c_.N * c_.L * c_.H);
  ForwardArgs whole = {
      o.args,
      all.data(),
      nullptr,
      keeps_preactivations() ? all_a.data() : nullptr};
  run_kernel(kernels_.forward, whole, kAlone, 1);
  expect(all_a.intact(), "memory around the pre-activations was changed");
  compare("states", all, next_states(o.layer, all.values(), rounding_));

  o.args.checkpoint_every = c_.checkpoint_every;
  o.args.latest_checkpoint = c_.latest_checkpoint != 0;
  Output some(type_, c_.N * kept() * c_.H);
  Output last(type_, c_.N * c_.H);
  Output some_a(compute_type(), c_.N * c_.L * c_.H);
  run_kernel(
      kernels_.forward,
      ForwardArgs{
          o.args,
          some.data(),
          c_.state ? last.data() : nullptr,
          keeps_preactivations() ? some_a.data() : nullptr},
      partition_,
      members());
  expect(some_a.intact(), "memory around the pre-activations was changed");
  expect(
      !keeps_preactivations() || some_a.same_bits(0, all_a, 0, all_a.count()),
      "pre-activations depend on how they are shared");
  expect(some.intact(), "memory around the states was changed");
  expect(last.intact(), "memory around the state was changed");
  check_last(o.layer, all, last);
  if (c_.checkpoint_every == 0) {
    same("states depend on how they are shared", all, some);
  }
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      int64_t from = runs_.index(n, i) * c_.H;
      int64_t to = (n * kept() + number(n, i)) * c_.H;
      expect(
          number(n, i) < 0 || some.same_bits(to, all, from, c_.H),
          "states depend on which are kept, or on how they are shared");
    }
  }

  Output other(type_, all.count());
  whole.states = other.data();
  with_other_lengths([&](const Course& course, const Places& places) {
    whole.layer.course = course;
    run_kernel(kernels_.forward, whole, kAlone, 1);
    same_places("a row depends on others", places, c_.H, all, other);
  });
  whole.layer.course = o.args.course;
  with_poisoned_part(o.x, c_.D, false, [&](const Places& places) {
    run_kernel(kernels_.forward, whole, kAlone, 1);
    same_places("an episode depends on others", places, c_.H, all, other);
  });
}

// The states after the last steps, from those after all steps.
void Check::check_last(
    const Layer& layer,
    const Output& all,
    const Output& last) {
  for (int64_t n = 0; c_.state && n < c_.N; ++n) {
    int64_t length = runs_.length(n);
    for (int64_t j = 0; j < c_.H; ++j) {
      double got = last[n * c_.H + j];
      double right = length > 0 ? all[runs_.index(n, length - 1) * c_.H + j]
          : layer.hidden        ? layer.hidden[n * c_.H + j]
                                : 0;
      expect(
          got == right || (std::isnan(got) && std::isnan(right)),
          "the state is not that after the last step");
    }
  }
}

void Check::backward() {
  Operands o = layer();
  Output states(type_, c_.N * c_.L * c_.H);
  Output kept_a(compute_type(), c_.N * c_.L * c_.H);
  run_kernel(
      kernels_.forward,
      ForwardArgs{
          o.args,
          states.data(),
          nullptr,
          keeps_preactivations() ? kept_a.data() : nullptr},
      kAlone,
      1);
  Operand& cotangents = draw({c_.N, c_.L, c_.H}, size());
  poison_padding(cotangents, c_.H);
  const Operand& of_state = draw({c_.N, 1, c_.H}, size());

  // What the forward pass would have left.
  std::vector<double> left(static_cast<size_t>(c_.N * kept() * c_.H), kNaN);
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      for (int64_t j = 0; number(n, i) >= 0 && j < c_.H; ++j) {
        left[static_cast<size_t>((n * kept() + number(n, i)) * c_.H + j)] =
            states[runs_.index(n, i) * c_.H + j];
      }
    }
  }
  const Operand& kept_operand = place({c_.N, kept(), c_.H}, left);
  o.args.checkpoint_every = c_.checkpoint_every;
  o.args.latest_checkpoint = c_.latest_checkpoint != 0;

  int64_t possible = want_all;
  possible &= c_.projected ? ~want_dWxh : ~0;
  possible &= c_.bias ? ~0 : ~want_dbias;
  possible &= c_.hidden ? ~0 : ~want_dhidden;
  possible &= c_.hidden0 ? ~0 : ~want_dhidden0;
  possible &= c_.leak ? ~0 : ~want_dleak;
  int64_t wanted = c_.wanted & possible;
  struct Result {
    Wanted bit;
    const char* name;
    void* BackwardArgs::* place;
    Numbers Gradients::* expected;
    int64_t count;
  };
  const Result results[] = {
      {want_dx, "dx", &BackwardArgs::dx, &Gradients::dx, c_.N * c_.L * c_.D},
      {want_dWxh, "dWxh", &BackwardArgs::dWxh, &Gradients::dWxh, c_.H * c_.D},
      {want_dbias, "dbias", &BackwardArgs::dbias, &Gradients::dbias, c_.H},
      {want_dWhh, "dWhh", &BackwardArgs::dWhh, &Gradients::dWhh, c_.H * c_.H},
      {want_dhidden,
       "dhidden",
       &BackwardArgs::dhidden,
       &Gradients::dhidden,
       c_.N * c_.H},
      {want_dhidden0,
       "dhidden0",
       &BackwardArgs::dhidden0,
       &Gradients::dhidden0,
       c_.H},
      {want_dleak, "dleak", &BackwardArgs::dleak, &Gradients::dleak, c_.H}};

  BackwardArgs args = {};
  args.layer = o.args;
  args.states = kept_operand.sequence();
  args.dstates = c_.dstates ? cotangents.sequence() : kNoSequence;
  args.dstate = c_.state ? of_state.sequence() : kNoSequence;
  std::vector<int64_t> rows(static_cast<size_t>(c_.N));
  for (int64_t n = 0; n < c_.N; ++n) {
    rows[static_cast<size_t>(n)] = n * c_.L * c_.H;
  }
  args.saved = keeps_preactivations()
      ? Sequence{kept_a.data(), rows.data(), c_.H, 1}
      : kNoSequence;
  BackwardArgs alone = args;
  std::vector<std::unique_ptr<Output>> outputs, outputs_alone;
  for (const Result& r : results) {
    outputs.push_back(std::make_unique<Output>(type_, r.count));
    outputs_alone.push_back(std::make_unique<Output>(type_, r.count));
    if (wanted & r.bit) {
      args.*r.place = outputs.back()->data();
    }
    if (possible & r.bit) {
      alone.*r.place = outputs_alone.back()->data();
    }
  }
  run_kernel(kernels_.backward, args, partition_, members());
  // One thread that forms the same sums, and all of them.
  const Partition one_thread = {
      partition_.slices > 1 ? Split::batch : Split::none, 1, partition_.slices};
  run_kernel(kernels_.backward, alone, one_thread, 1);
  Gradients expected = gradients(
      o.layer,
      states.values(),
      c_.dstates ? cotangents.values().data() : nullptr,
      c_.state ? of_state.values().data() : nullptr,
      rounding_);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Result& r = results[i];
    if (wanted & r.bit) {
      compare(r.name, *outputs[i], expected.*r.expected);
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
    with_poisoned_part(cotangents, c_.H, true, [&](const Places& places) {
      run_kernel(kernels_.backward, alone, one_thread, 1);
      same_places(
          "dx of an episode depends on others", places, c_.D, dx, other);
    });
  }
}

} // namespace kernel_tests
