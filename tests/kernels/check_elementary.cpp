// The activations on single numbers, and the conversions of half types: through
// the table, as a layer whose only step has no product.

#include <cmath>
#include <cstdio>
#include <limits>

#include "call.h"
#include "checks.h"
#include "tolerances.h"

namespace kernel_tests {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// f of each of `values`, which are numbers of the type.
std::vector<double> activated(
    const KernelTable& table,
    Type type,
    Activation activation,
    const std::vector<double>& values) {
  int64_t N = static_cast<int64_t>(values.size());
  Random random(0);
  Operand x(type, {N, 1, 1}, values, Layout::contiguous, random);
  Operand Whh(type, {1, 1}, 1, Layout::contiguous, random);
  Output out(type, N);
  RecurrenceArgs g = {};
  g.N = N;
  g.L = g.D = g.H = 1;
  g.activation = activation;
  g.projected = true;
  g.x = x.sequence();
  g.Whh = Whh.matrix();
  call(
      table.types[static_cast<int>(type)].forward,
      ForwardArgs{g, {out.data()}, {}},
      Partition{Split::none, 1, 1},
      1);
  return out.values();
}

// Half types: every number. The others: 2^18 each with exponents and with
// values spread evenly, and the numbers around where the formulas change.
std::vector<double> sample(Type type) {
  std::vector<double> values;
  if (format(type).bytes == 2) {
    for (uint32_t i = 0; i < 0x10000; ++i) {
      uint16_t bits = static_cast<uint16_t>(i);
      values.push_back(get(type, &bits));
    }
    return values;
  }
  Random random(1);
  for (int i = 0; i < 1 << 18; ++i) {
    double exponent = std::floor(random.real() * 40) - 30;
    values.push_back(std::ldexp(random.real(), static_cast<int>(exponent)));
    values.push_back(25 * random.real());
    values.push_back((type == Type::float64 ? 720 : 100) * random.real());
  }
  for (double edge :
       {0.55, 9.01, 19.06, 20.0, 40.0, 87.0, 88.7, 708.0, 710.0}) {
    double step = ulp(type, edge);
    for (int i = -200; i <= 200; ++i) {
      values.push_back(edge + i * step);
      values.push_back(-edge + i * step);
    }
  }
  for (double& value : values) {
    value = rounded(type, value);
  }
  return values;
}

std::string fault(
    Type type,
    const char* what,
    double x,
    double got,
    long double expected) {
  char text[200];
  std::snprintf(
      text,
      sizeof text,
      "%s %s(%.17g) is %.17g, not %.17Lg",
      format(type).name,
      what,
      x,
      got,
      expected);
  return text;
}

long double true_value(Activation activation, double x) {
  long double wide = x;
  switch (activation) {
    case Activation::tanh:
      return std::tanh(wide);
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-wide));
    case Activation::relu:
      return wide <= 0 ? 0 : wide;
    case Activation::identity:
    case Activation::traced:
      break;
  }
  return wide;
}

const char* name_of(Activation activation) {
  const char* names[] = {"tanh", "relu", "sigmoid", "identity"};
  return names[static_cast<int>(activation)];
}

void check_values(
    const KernelTable& table,
    Type type,
    Activation activation,
    std::vector<std::string>& faults) {
  bool half = format(type).bytes == 2;
  double allowed = activation == Activation::tanh ? kTanhUlps
      : activation == Activation::sigmoid         ? kLogisticUlps
                                                  : 0;
  allowed = half && allowed > 0 ? kHalfUlps : allowed;
  double least = std::ldexp(1.0, format(type).least);
  double flushed = type == Type::float64 ? 0x1p-1022 : 0x1p-126;
  std::vector<double> values = sample(type);
  std::vector<double> got = activated(table, type, activation, values);
  double worst = 0, worst_at = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    long double expected = true_value(activation, values[i]);
    if (std::isnan(expected)) {
      if (!std::isnan(got[i])) {
        faults.push_back(
            fault(type, name_of(activation), values[i], got[i], expected));
        return;
      }
      continue;
    }
    bool vanished = activation == Activation::sigmoid && got[i] == 0 &&
        expected < kVanishes * least;
    // Denormal numbers of the type that is computed with are flushed.
    vanished = vanished || (got[i] == 0 && std::fabs(expected) < flushed);
    // Infinity is reached where it is the nearest number.
    double error = std::isinf(got[i]) && got[i] == static_cast<double>(expected)
        ? 0
        : static_cast<double>(std::fabs(got[i] - expected)) /
            ulp(type, expected);
    if (!vanished && !(error <= worst)) {
      worst = error;
      worst_at = values[i];
    }
    bool bounded =
        allowed == 0 || (std::fabs(got[i]) <= 1 && got[i] * expected >= 0);
    // Also the sign of zero, which relu drops.
    bool signs = got[i] != 0 || expected != 0 ||
        std::signbit(got[i]) == std::signbit(expected);
    if (!(vanished || error <= allowed) || !bounded || !signs) {
      faults.push_back(
          fault(type, name_of(activation), values[i], got[i], expected));
      return;
    }
  }
  std::printf(
      "  %s %s: at most %.3f ulp, at %.9g\n",
      format(type).name,
      name_of(activation),
      worst,
      worst_at);
}

void check_special(
    const KernelTable& table,
    Type type,
    std::vector<std::string>& faults) {
  struct Special {
    Activation activation;
    double x, expected;
  };
  const Special all[] = {
      {Activation::tanh, 0.0, 0.0},
      {Activation::tanh, -0.0, -0.0},
      {Activation::tanh, kInfinity, 1},
      {Activation::tanh, -kInfinity, -1},
      {Activation::tanh, 30000, 1},
      {Activation::sigmoid, 0.0, 0.5},
      {Activation::sigmoid, -0.0, 0.5},
      {Activation::sigmoid, kInfinity, 1},
      {Activation::sigmoid, -kInfinity, 0},
      {Activation::sigmoid, 30000, 1},
      {Activation::sigmoid, -30000, 0},
      {Activation::relu, -0.0, 0.0},
      {Activation::relu, kInfinity, kInfinity},
      {Activation::relu, -kInfinity, 0},
      {Activation::identity, -0.0, -0.0},
      {Activation::identity, -kInfinity, -kInfinity},
      {Activation::tanh, kNaN, kNaN},
      {Activation::sigmoid, kNaN, kNaN},
      {Activation::relu, kNaN, kNaN},
      {Activation::identity, kNaN, kNaN}};
  for (const Special& s : all) {
    double got = activated(table, type, s.activation, {s.x})[0];
    bool right = std::isnan(s.expected)
        ? std::isnan(got)
        : got == s.expected && std::signbit(got) == std::signbit(s.expected);
    if (!right) {
      faults.push_back(
          fault(type, name_of(s.activation), s.x, got, s.expected));
    }
  }
}

// float32 to a half type: products of two of its numbers are exact in float32.
void check_narrowing(
    const KernelTable& table,
    Type type,
    std::vector<std::string>& faults) {
  Random random(2);
  std::vector<double> values = sample(type);
  int64_t rows = static_cast<int64_t>(values.size());
  Operand x(type, {rows, 1, 1}, values, Layout::contiguous, random);
  double tiny = type == Type::float16 ? 0x1.004p-12 : 0x1.02p-100;
  for (double factor : {1.0, 0.5, -1.5, 0.75, 255.0, 1.0 / 3, tiny, -tiny}) {
    Operand w(
        type,
        {1, 1},
        std::vector<double>{rounded(type, factor)},
        Layout::contiguous,
        random);
    Output out(type, rows);
    MatmulArgs args = {};
    args.N = rows;
    args.L = args.K = args.M = 1;
    args.x = x.sequence();
    args.w = w.matrix();
    args.out = out.data();
    call(
        table.types[static_cast<int>(type)].matmul,
        args,
        Partition{Split::none, 1, 1},
        1);
    for (int64_t i = 0; i < rows; ++i) {
      double product = values[static_cast<size_t>(i)] * w[0];
      double expected = rounded(type, product);
      // Denormal factors and products are flushed.
      bool flushed = out[i] == 0 && std::isfinite(product) &&
          (std::fabs(product) < 0x1p-126 ||
           std::fabs(values[static_cast<size_t>(i)]) < 0x1p-126);
      if (!flushed && !std::isnan(expected) && out[i] != expected) {
        char name[40];
        std::snprintf(name, sizeof name, "%g times ", w[0]);
        faults.push_back(fault(
            type, name, values[static_cast<size_t>(i)], out[i], expected));
        return;
      }
      if (std::isnan(expected) != std::isnan(out[i])) {
        faults.push_back(fault(
            type, "NaN of ", values[static_cast<size_t>(i)], out[i], expected));
        return;
      }
    }
  }
}

} // namespace

std::vector<std::string> check_elementary(const KernelTable& table) {
  std::vector<std::string> faults;
  for (int i = 0; i < 4; ++i) {
    Type type = static_cast<Type>(i);
    for (Activation activation :
         {Activation::tanh,
          Activation::relu,
          Activation::sigmoid,
          Activation::identity}) {
      check_values(table, type, activation, faults);
    }
    check_special(table, type, faults);
    if (format(type).bytes == 2) {
      check_narrowing(table, type, faults);
    }
  }
  return faults;
}

} // namespace kernel_tests
