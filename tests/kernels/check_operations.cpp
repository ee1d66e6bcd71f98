// Every operation of a program on single numbers, through the pointwise kernel,
// against long double.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "call.h"
#include "checks.h"
#include "tolerances.h"

namespace kernel_tests {

namespace {

typedef long double Wide;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Operation {
  Op op;
  const char* name;
  double ulps;
  Wide (*one)(Wide);
  Wide (*two)(Wide, Wide) = nullptr;
};

Wide truth(bool is) {
  return is ? 1 : 0;
}

#define ONE(op, ulps, expression) \
  {Op::op, #op, ulps, [](Wide x) -> Wide { return expression; }}
#define TWO(op, ulps, expression)                           \
  {Op::op, #op, ulps, nullptr, [](Wide x, Wide y) -> Wide { \
     return expression;                                     \
   }}

const Operation kOperations[] = {
    ONE(copy, 0, x),
    ONE(negative, 0, -x),
    ONE(abs, 0, std::fabs(x)),
    ONE(square, kRoundedOnce, x* x),
    ONE(sqrt, kRoundedOnce, std::sqrt(x)),
    ONE(rsqrt, kVectorUlps, 1 / std::sqrt(x)),
    ONE(exp, kVectorUlps, std::exp(x)),
    ONE(expm1, kVectorUlps, std::expm1(x)),
    ONE(log, kVectorUlps, std::log(x)),
    ONE(log2, kVectorUlps, std::log2(x)),
    ONE(log10, kVectorUlps, std::log10(x)),
    ONE(log1p, kVectorUlps, std::log1p(x)),
    ONE(sigmoid, kLogisticUlps, 1 / (1 + std::exp(-x))),
    ONE(tanh, kTanhUlps, std::tanh(x)),
    ONE(erf, kVectorUlps, std::erf(x)),
    ONE(sin, kVectorUlps, std::sin(x)),
    ONE(cos, kVectorUlps, std::cos(x)),
    ONE(tan, kLibraryUlps, std::tan(x)),
    ONE(sinh, kLibraryUlps, std::sinh(x)),
    ONE(cosh, kLibraryUlps, std::cosh(x)),
    ONE(asin, kLibraryUlps, std::asin(x)),
    ONE(acos, kLibraryUlps, std::acos(x)),
    ONE(atan, kLibraryUlps, std::atan(x)),
    ONE(asinh, kLibraryUlps, std::asinh(x)),
    ONE(acosh, kLibraryUlps, std::acosh(x)),
    ONE(atanh, kLibraryUlps, std::atanh(x)),
    ONE(floor, 0, std::floor(x)),
    ONE(ceil, 0, std::ceil(x)),
    ONE(round, 0, std::nearbyint(x)),
    ONE(sign, 0, truth(x > 0) - truth(x < 0)),
    ONE(logical_not, 0, truth(x == 0)),
    TWO(add, kRoundedOnce, x + y),
    TWO(subtract, kRoundedOnce, x - y),
    TWO(multiply, kRoundedOnce, x* y),
    TWO(divide, kRoundedOnce, x / y),
    TWO(maximum, 0, std::isnan(x) || x > y ? x : y),
    TWO(minimum, 0, std::isnan(x) || x < y ? x : y),
    TWO(power, kVectorUlps, std::pow(x, y)),
    TWO(atan2, kLibraryUlps, std::atan2(x, y)),
    TWO(logaddexp,
        kVectorUlps,
        std::isnan(x) || std::isnan(y) ? x + y
            : std::isinf(x) || std::isinf(y)
            ? std::fmax(x, y)
            : std::fmax(x, y) + std::log1p(std::exp(-std::fabs(x - y)))),
    {Op::remainder,
     "remainder",
     kRoundedOnce,
     nullptr,
     [](Wide x, Wide y) -> Wide {
       Wide r = std::fmod(x, y);
       return r != 0 && (r < 0) != (y < 0) ? r + y : r;
     }},
    TWO(greater, 0, truth(x > y)),
    TWO(greater_equal, 0, truth(x >= y)),
    TWO(less, 0, truth(x < y)),
    TWO(less_equal, 0, truth(x <= y)),
    TWO(equal, 0, truth(x == y)),
    TWO(not_equal, 0, truth(x != y)),
    TWO(logical_and, 0, truth(x != 0 && y != 0)),
    TWO(logical_or, 0, truth(x != 0 || y != 0))};

#undef ONE
#undef TWO

typedef std::vector<double> Values;

Values computed(
    const KernelTable& table,
    Type type,
    const Program& program,
    const std::vector<Values>& inputs) {
  Random random(0);
  int64_t count = static_cast<int64_t>(inputs[0].size());
  std::vector<Operand> operands;
  operands.reserve(inputs.size());
  std::vector<const void*> given;
  for (size_t k = 0; k < inputs.size(); ++k) {
    operands.emplace_back(
        type,
        std::vector<int64_t>{count},
        inputs[k],
        Layout::contiguous,
        random);
    given.push_back(operands[k].vector().data);
  }
  Output out(type, count);
  PointwiseArgs args = {count, &program, given.data(), out.data()};
  call(
      table.types[static_cast<int>(type)].pointwise,
      args,
      Partition{Split::none, 1, 1},
      1);
  return out.values();
}

// Numbers that are not normal in the type that is computed with are zero.
double smallest(Type type) {
  return type == Type::float64 ? 0x1p-1022 : 0x1p-126;
}

const Values kSpecial = {0.0,        -0.0, 1,    -1,   0.5,  -0.5, 1.5,
                         -1.5,       2.5,  -2.5, 2,    -2,   3,    -3,
                         100,        -100, 1e4,  -1e4, 1e30, 88.8, kInfinity,
                         -kInfinity, kNaN, 0.25, 88.7, -87.4};

void take(Type type, Values& values, double value) {
  value = rounded(type, value);
  if (!(std::fabs(value) < smallest(type) && value != 0)) {
    values.push_back(value);
  }
}

// Half types: every number. The others: all exponents, the values that matter
// most, and where formulas change.
Values sample_of_one(Type type) {
  Values values;
  for (double value : kSpecial) {
    take(type, values, value);
  }
  if (format(type).bytes == 2) {
    for (uint32_t i = 0; i < 0x10000; ++i) {
      uint16_t bits = static_cast<uint16_t>(i);
      take(type, values, get(type, &bits));
    }
    return values;
  }
  Random random(3);
  for (int i = 0; i < 1 << 13; ++i) {
    double greatest = format(type).greatest;
    int exponent = static_cast<int>((greatest + 1) * random.real());
    take(type, values, std::ldexp(random.real(), exponent));
    take(type, values, random.real());
    take(type, values, 4 * random.real());
    take(type, values, 20 * random.real());
    take(type, values, greatest * random.real());
    take(type, values, 1 + 0.5 * random.real());
    take(type, values, 1e5 * random.real());
    take(
        type,
        values,
        1.5707963267948966 * static_cast<double>(random.whole(-5000, 5000)));
  }
  for (double edge :
       {0.34657,
        0.41421356,
        0.70710678,
        1.0,
        1.41421356,
        0.7854,
        4.0,
        6.0,
        20.0,
        40.0,
        87.3365,
        88.7228,
        708.396,
        709.78,
        8388608.0,
        4503599627370496.0,
        1048576.0}) {
    double step = ulp(type, edge);
    for (int i = -40; i <= 40; ++i) {
      take(type, values, edge + i * step);
      take(type, values, -edge + i * step);
    }
  }
  return values;
}

// Pairs: all special values with each other, and numbers that go together.
std::vector<Values> sample_of_two(Type type) {
  std::vector<Values> pair(2);
  auto add = [&](double a, double b) {
    a = rounded(type, a);
    b = rounded(type, b);
    auto normal = [&](double v) {
      return v == 0 || !(std::fabs(v) < smallest(type));
    };
    if (normal(a) && normal(b)) {
      pair[0].push_back(a);
      pair[1].push_back(b);
    }
  };
  for (double a : kSpecial) {
    for (double b : kSpecial) {
      add(a, b);
    }
  }
  Random random(4);
  for (int i = 0; i < 1 << 13; ++i) {
    double greatest = format(type).greatest;
    // Not so small that a remainder would not be normal.
    auto any = [&] {
      int exponent = static_cast<int>(0.5 * greatest * random.real());
      return std::ldexp(random.real(), exponent);
    };
    add(any(), any());
    add(20 * random.real(), 20 * random.real());
    add(1 + random.real(), greatest * random.real());
    add(any(), 4 * random.real());
    add(20 * random.real(), static_cast<double>(random.whole(-20, 20)));
    double same = 10 * random.real();
    add(same, same);
  }
  return pair;
}

std::string fault(
    Type type,
    const char* name,
    double x,
    double y,
    double got,
    Wide expected) {
  char text[200];
  std::snprintf(
      text,
      sizeof text,
      "%s %s(%.17g, %.17g) is %.17g, not %.17Lg",
      format(type).name,
      name,
      x,
      y,
      got,
      expected);
  return text;
}

void check_operation(
    const KernelTable& table,
    Type type,
    const Operation& operation,
    const std::vector<Values>& inputs,
    std::vector<std::string>& faults) {
  bool one = operation.one != nullptr;
  Instruction code = {
      operation.op,
      static_cast<int16_t>(one ? 1 : 2),
      0,
      static_cast<int16_t>(one ? 0 : 1),
      0};
  const int32_t result = one ? 1 : 2;
  Program program = {&code, 1, nullptr, 0, result, 1, &result, 1};
  Values got = computed(table, type, program, inputs);
  bool half = format(type).bytes == 2;
  double allowed = half && operation.ulps > 0 ? kHalfUlps : operation.ulps;
  double worst = 0, worst_x = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    double x = inputs[0][i];
    double y = one ? 0 : inputs[1][i];
    Wide expected = one ? operation.one(x) : operation.two(x, y);
    if (std::isnan(expected) || std::isnan(got[i])) {
      if (std::isnan(expected) != std::isnan(got[i])) {
        faults.push_back(fault(type, operation.name, x, y, got[i], expected));
        return;
      }
      continue;
    }
    // Rounding may reach infinity, or stop short of it.
    double nearest = rounded(type, static_cast<double>(expected));
    double place = ulp(type, expected);
    if (operation.op == Op::logaddexp) {
      // A sum of a large and a small number.
      place = std::max({place, ulp(type, x), ulp(type, y)});
      place = std::fabs(x - y) < 100 ? place : ulp(type, expected);
    }
    double error = got[i] == nearest
        ? 0
        : static_cast<double>(std::fabs(got[i] - expected)) / place;
    bool vanished = std::fabs(got[i] - expected) < kVanishes * smallest(type);
    bool signs = got[i] != 0 || expected != 0 ||
        std::signbit(got[i]) == std::signbit(expected);
    if (!vanished && error > worst) {
      worst = error;
      worst_x = x;
    }
    if (!(vanished || error <= allowed) || !signs) {
      faults.push_back(fault(type, operation.name, x, y, got[i], expected));
      return;
    }
  }
  if (worst > kRoundedOnce) {
    std::printf(
        "  %s %s: at most %.3f ulp, at %.9g\n",
        format(type).name,
        operation.name,
        worst,
        worst_x);
  }
}

// select(a, b, constant), whose third operand is read at a step of its own.
void check_select(
    const KernelTable& table,
    Type type,
    double constant,
    const std::vector<Values>& inputs,
    std::vector<std::string>& faults) {
  Instruction code = {Op::select, 3, 0, 1, 2};
  const int32_t result = 3;
  Program program = {&code, 1, &constant, 1, 2, 1, &result, 1};
  Values got = computed(table, type, program, inputs);
  for (size_t i = 0; i < got.size(); ++i) {
    double x = inputs[0][i], y = inputs[1][i];
    double expected = x != 0 ? y : constant;
    bool same =
        got[i] == expected && std::signbit(got[i]) == std::signbit(expected);
    if (!same && !(std::isnan(got[i]) && std::isnan(expected))) {
      faults.push_back(fault(type, "select", x, y, got[i], expected));
      return;
    }
  }
}

} // namespace

std::vector<std::string> check_operations(const KernelTable& table) {
  std::vector<std::string> faults;
  for (int i = 0; i < 4; ++i) {
    Type type = static_cast<Type>(i);
    std::vector<Values> one = {sample_of_one(type)};
    std::vector<Values> two = sample_of_two(type);
    for (const Operation& operation : kOperations) {
      check_operation(
          table, type, operation, operation.one ? one : two, faults);
    }
    for (double constant : {0.75, -0.0}) {
      check_select(table, type, constant, two, faults);
    }
  }
  return faults;
}

} // namespace kernel_tests
