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
const Operand& Check::draw_factors() {
  Operand& factors = draw({c_.N, c_.L, c_.H}, 1);
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

void Check::scan() {
  Operand& s = draw({c_.N, c_.L, c_.H}, size());
  poison_padding(s, c_.H);
  const Operand& V = draw({c_.H, c_.H}, gain(c_.H));
  const Operand& alpha = draw_factors();
  const Operand& beta = draw_factors();
  const Operand& gamma = draw_factors();
  Operand& hidden = draw({c_.N, 1, c_.H}, size());
  const Operand& hidden0 = draw({c_.H}, size());
  poison_hidden(hidden, [&](int64_t n, int64_t j) {
    int64_t at = runs_.index(n, 0) * c_.H + j;
    return c_.gamma && gamma[at] == 0 && (!c_.alpha || alpha[at] == 0);
  });
  LinearScanArgs args = {
      c_.N,
      c_.L,
      c_.H,
      c_.transposed != 0,
      course(runs_),
      s.sequence(),
      V.matrix(),
      c_.alpha ? alpha.sequence() : kNoSequence,
      c_.beta ? beta.sequence() : kNoSequence,
      c_.gamma ? gamma.sequence() : kNoSequence,
      c_.hidden ? hidden.sequence() : kNoSequence,
      c_.hidden0 ? hidden0.vector() : kNoVector,
      nullptr};
  Output out(type_, c_.N * c_.L * c_.H), alone(type_, out.count());
  args.out = out.data();
  run_kernel(kernels_.linear_scan, args, partition_, members());
  compare(
      "out",
      out,
      linear_scan(
          LinearScan{
              c_.N,
              c_.L,
              c_.H,
              c_.transposed != 0,
              s.values().data(),
              V.values().data(),
              c_.alpha ? alpha.values().data() : nullptr,
              c_.beta ? beta.values().data() : nullptr,
              c_.gamma ? gamma.values().data() : nullptr,
              c_.hidden ? hidden.values().data() : nullptr,
              c_.hidden0 ? hidden0.values().data() : nullptr,
              runs_},
          rounding_));
  args.out = alone.data();
  run_kernel(kernels_.linear_scan, args, kAlone, 1);
  same("out depends on how it is shared", out, alone);

  const Course own = args.course;
  with_other_lengths([&](const Course& other, const Places& places) {
    args.course = other;
    run_kernel(kernels_.linear_scan, args, kAlone, 1);
    same_places("a row depends on others", places, c_.H, alone, out);
  });
  args.course = own;
  with_poisoned_part(s, c_.H, true, [&](const Places& places) {
    run_kernel(kernels_.linear_scan, args, kAlone, 1);
    same_places("an episode depends on others", places, c_.H, alone, out);
  });
}

void Check::pointwise() {
  int64_t count = c_.N * c_.L * c_.H;
  const Operand& a = draw({count}, 3);
  const Operand& cotangent = draw({count}, 1);
  const void* inputs[2] = {a.vector().data, cotangent.vector().data};
  for (const Program* program : {&function_, &derivative_}) {
    Output out(type_, count), alone(type_, count);
    PointwiseArgs args = {count, program, {inputs[0], inputs[1]}, out.data()};
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
      auto right = what == Drawn::zoneout
          ? chances.updates(n, t, c_.H)
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
