// A case is right where the result is that of the reference, the same to the
// bit for every way of sharing the work, and nothing beside it was written to.
// What is to have no part in a result is NaN: padding, units that are dropped
// or kept, a first state where an episode starts.

#include "check_case.h"

namespace kernel_tests {

std::string Check::run() {
  switch (c_.which()) {
    case Entry::matmul:
      matmul();
      break;
    case Entry::outer_sum:
      sum_of_products();
      break;
    case Entry::forward:
      forward();
      break;
    case Entry::backward:
      backward();
      break;
    case Entry::linear_scan:
      scan();
      break;
    case Entry::pointwise:
      pointwise();
      break;
    case Entry::mask:
      mask();
      break;
  }
  for (const auto& operand : operands_) {
    expect(operand->intact(), "an operand, or memory around it, was changed");
  }
  for (const auto& course : courses_) {
    expect(course->intact(), "memory around the course was changed");
  }
  expect(draws_.intact(), "memory around the key was changed");
  return fault_;
}

void Check::matmul() {
  const Operand& x = draw({c_.N, c_.L, c_.D}, size());
  const Operand& w = draw({c_.H, c_.D}, 1);
  const Operand& bias = draw({c_.H}, 1);
  MatmulArgs args = {
      c_.N,
      c_.L,
      c_.D,
      c_.H,
      x.sequence(),
      w.matrix(),
      c_.bias ? bias.vector() : kNoVector,
      nullptr};
  Output out(type_, c_.N * c_.L * c_.H), alone(type_, out.count());
  args.out = out.data();
  run_kernel(kernels_.matmul, args, partition_, members());
  compare(
      "out",
      out,
      product(
          c_.N * c_.L,
          c_.D,
          c_.H,
          x.values().data(),
          w.values().data(),
          c_.bias ? bias.values().data() : nullptr,
          rounding_));
  args.out = alone.data();
  run_kernel(kernels_.matmul, args, kAlone, 1);
  same("out depends on how it is shared", out, alone);
}

void Check::sum_of_products() {
  const Operand& a = draw({c_.N, c_.L, c_.H}, size());
  const Operand& b = draw({c_.N, c_.L, c_.D}, 1);
  OuterSumArgs args = {
      c_.N, c_.L, c_.H, c_.D, a.sequence(), b.sequence(), nullptr};
  Output out(type_, c_.H * c_.D), alone(type_, out.count());
  args.out = out.data();
  run_kernel(kernels_.outer_sum, args, partition_, members());
  compare(
      "out",
      out,
      outer_sum(
          c_.N * c_.L,
          c_.H,
          c_.D,
          a.values().data(),
          b.values().data(),
          rounding_));
  args.out = alone.data();
  run_kernel(kernels_.outer_sum, args, kAlone, 1);
  same("out depends on how it is shared", out, alone);
}

// Factors of passages: some are 0, and what is of no passage is NaN.
const Operand& Check::draw_factors(double scale) {
  Operand& factors = draw({c_.N, c_.L, c_.H}, scale);
  if (!elements_are_apart()) {
    return factors;
  }
  for (int64_t i = 0; i < c_.N * c_.L * c_.H; ++i) {
    if (random_.whole(0, 3) == 0) {
      factors.set(i, 0);
    }
  }
  poison_padding(factors, c_.H);
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t i = 0; i < runs_.length(n); ++i) {
      bool passes = runs_.starts(n, i) ? c_.hidden0 && !c_.transposed
          : i == 0                     ? c_.hidden != 0
                                       : !runs_.truncates(i);
      if (!passes) {
        poison(factors, n, runs_.place(n, i), c_.H);
      }
    }
  }
  return factors;
}

std::vector<Path> Check::draw_paths(
    int64_t to,
    int64_t from,
    bool with_factors,
    double scale,
    int& count,
    ScanPath (&paths)[kMostScanPaths]) {
  std::vector<Path> drawn;
  for (int i = 0; i < to; ++i) {
    for (int k = 0; k < from; ++k) {
      // The first of all, and some others.
      if (count == kMostScanPaths || (i + k > 0 && random_.whole(0, 2) == 0)) {
        continue;
      }
      const Operand* factor = with_factors ? &draw_factors(scale) : nullptr;
      paths[count++] = {i, k, factor ? factor->sequence() : kNoSequence};
      drawn.push_back({i, k, factor ? factor->values().data() : nullptr});
    }
  }
  return drawn;
}

void Check::scan() {
  LinearScanArgs args{};
  args.N = c_.N;
  args.L = c_.L;
  args.H = c_.H;
  args.states = static_cast<int>(c_.states);
  args.slabs = static_cast<int>(c_.slabs);
  args.transposed = c_.transposed != 0;
  args.course = course(runs_);
  const double states = static_cast<double>(c_.states);
  const double sums = states * static_cast<double>(c_.slabs);
  const Operand& V = draw({c_.slabs * c_.H, c_.H}, gain(c_.H) / sums);
  const Operand& gamma = draw_factors();
  args.V = V.matrix();
  args.gamma = c_.gamma ? gamma.sequence() : kNoSequence;
  LinearScan expected{
      c_.N,
      c_.L,
      c_.H,
      args.slabs,
      args.transposed,
      {},
      V.values().data(),
      {},
      {},
      c_.gamma ? gamma.values().data() : nullptr,
      {},
      {},
      runs_};
  if (c_.alpha) {
    expected.A = draw_paths(
        c_.states, c_.states, true, 1 / states, args.A_count, args.A);
  }
  expected.B =
      draw_paths(c_.states, c_.slabs, c_.beta, 1, args.B_count, args.B);
  std::vector<Operand*> s;
  std::vector<std::unique_ptr<Output>> out, alone;
  for (int64_t k = 0; k < c_.states; ++k) {
    Operand& source = draw({c_.N, c_.L, c_.H}, size());
    poison_padding(source, c_.H);
    Operand& hidden = draw({c_.N, 1, c_.H}, size());
    const Operand& hidden0 = draw({c_.H}, size());
    poison_first(hidden, [&](int64_t n, int64_t j) {
      int64_t at = runs_.index(n, 0) * c_.H + j;
      bool passes = k == 0 && !(c_.gamma && gamma[at] == 0);
      for (const Path& path : expected.A) {
        passes = passes || (path.from == k && path.factor[at] != 0);
      }
      return !passes;
    });
    // Of several states any may be without these, but one.
    auto there = [&] { return k == 0 || random_.whole(0, 3) > 0; };
    bool has_source = there();
    bool has_hidden = c_.hidden && there();
    bool has_hidden0 = c_.hidden0 && there();
    args.s[k] = has_source ? source.sequence() : kNoSequence;
    args.hidden[k] = has_hidden ? hidden.sequence() : kNoSequence;
    args.hidden0[k] = has_hidden0 ? hidden0.vector() : kNoVector;
    expected.s.push_back(has_source ? source.values().data() : nullptr);
    expected.hidden.push_back(has_hidden ? hidden.values().data() : nullptr);
    expected.hidden0.push_back(has_hidden0 ? hidden0.values().data() : nullptr);
    s.push_back(&source);
    out.push_back(std::make_unique<Output>(type_, c_.N * c_.L * c_.H));
    alone.push_back(std::make_unique<Output>(type_, c_.N * c_.L * c_.H));
    args.out[k] = out.back()->data();
  }
  auto each = [&](auto use) {
    for (size_t k = 0; k < out.size(); ++k) {
      use(k, *out[k], *alone[k]);
    }
  };
  run_kernel(kernels_.linear_scan, args, partition_, members());
  const std::vector<Numbers> right = linear_scan(expected, rounding_);
  each([&](size_t k, Output& got, Output& other) {
    compare("out", got, right[k]);
    args.out[k] = other.data();
  });
  auto run_alone = [&] { run_kernel(kernels_.linear_scan, args, kAlone, 1); };
  run_alone();
  each([&](size_t, Output& got, Output& other) {
    same("out depends on how it is shared", got, other);
  });

  const Course own = args.course;
  with_other_lengths([&](const Course& other, const Places& places) {
    args.course = other;
    run_alone();
    each([&](size_t, Output& got, Output& again) {
      same_places("a row depends on others", places, c_.H, again, got);
    });
  });
  args.course = own;
  with_poisoned_part(*s[0], c_.H, true, [&](const Places& places) {
    run_alone();
    each([&](size_t, Output& got, Output& again) {
      same_places("an episode depends on others", places, c_.H, again, got);
    });
  });
}

void Check::pointwise() {
  int64_t count = c_.N * c_.L * c_.H;
  const Operand& a = draw({count}, 3);
  const Operand& cotangent = draw({count}, 1);
  const void* inputs[2] = {a.vector().data, cotangent.vector().data};
  for (const Program* program : {&function_, &derivative_}) {
    Output out(type_, count), alone(type_, count);
    PointwiseArgs args = {count, program, inputs, out.data()};
    run_kernel(kernels_.pointwise, args, partition_, members());
    compare(
        "out",
        out,
        program == &function_
            ? traced_values(c_.program, a.values(), rounding_)
            : traced_products(
                  c_.program, a.values(), cotangent.values(), rounding_));
    args.out = alone.data();
    run_kernel(kernels_.pointwise, args, kAlone, 1);
    same("out depends on how it is shared", out, alone);
  }
}

void Check::mask() {
  Drawn what = static_cast<Drawn>(c_.drawn);
  const Chances& chances = draws_.chances();
  Output out(type_, c_.N * c_.L * c_.H);
  run_kernel(
      kernels_.mask,
      MaskArgs{c_.N, c_.L, c_.H, what, draws_.draws(), out.data()},
      partition_,
      members());
  expect(out.intact(), "memory around the mask was changed");
  for (int64_t n = 0; n < c_.N; ++n) {
    for (int64_t t = 0; t < c_.L; ++t) {
      auto right = what == Drawn::zoneout ? chances.updates(n, t, c_.H)
          : what == Drawn::zoneout_of_second
          ? chances.updates(n, t, c_.H, 1)
          : chances.factors(what, n, c_.H, compute_type());
      for (int64_t j = 0; j < c_.H; ++j) {
        expect(
            out[(n * c_.L + t) * c_.H + j] ==
                rounded(type_, right[static_cast<size_t>(j)]),
            "the mask is not that of its key");
      }
    }
  }
}

std::string check_case(
    const KernelTable& table,
    const Case& c,
    Largest (&largest)[kEntries]) {
  return Check(table, c, largest).run();
}

} // namespace kernel_tests
