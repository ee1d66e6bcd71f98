#include "primitives/expression.h"

#include <bit>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "kernels/partition.h"
#include "mlx/ops.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

using kernels::Op;

namespace {

typedef mx::array (*Unary)(const mx::array&, mx::StreamOrDevice);
typedef mx::array (
    *Binary)(const mx::array&, const mx::array&, mx::StreamOrDevice);

// An operation by its names: of MLX's primitive and of MLX's function.
struct Operation {
  Op op;
  const char* primitive;
  const char* function;
  Unary unary;
  Binary binary;
};

constexpr Operation kOperations[] = {
    {Op::negative, "Negative", "negative", mx::negative, nullptr},
    {Op::abs, "Abs", "abs", mx::abs, nullptr},
    {Op::square, "Square", "square", mx::square, nullptr},
    {Op::sqrt, "Sqrt", "sqrt", mx::sqrt, nullptr},
    {Op::rsqrt, "Rsqrt", "rsqrt", mx::rsqrt, nullptr},
    {Op::exp, "Exp", "exp", mx::exp, nullptr},
    {Op::expm1, "Expm1", "expm1", mx::expm1, nullptr},
    {Op::log, "Log", "log", mx::log, nullptr},
    {Op::log2, "Log2", "log2", mx::log2, nullptr},
    {Op::log10, "Log10", "log10", mx::log10, nullptr},
    {Op::log1p, "Log1p", "log1p", mx::log1p, nullptr},
    {Op::sigmoid, "Sigmoid", "sigmoid", mx::sigmoid, nullptr},
    {Op::tanh, "Tanh", "tanh", mx::tanh, nullptr},
    {Op::erf, "Erf", "erf", mx::erf, nullptr},
    {Op::sin, "Sin", "sin", mx::sin, nullptr},
    {Op::cos, "Cos", "cos", mx::cos, nullptr},
    {Op::tan, "Tan", "tan", mx::tan, nullptr},
    {Op::sinh, "Sinh", "sinh", mx::sinh, nullptr},
    {Op::cosh, "Cosh", "cosh", mx::cosh, nullptr},
    {Op::asin, "ArcSin", "arcsin", mx::arcsin, nullptr},
    {Op::acos, "ArcCos", "arccos", mx::arccos, nullptr},
    {Op::atan, "ArcTan", "arctan", mx::arctan, nullptr},
    {Op::asinh, "ArcSinh", "arcsinh", mx::arcsinh, nullptr},
    {Op::acosh, "ArcCosh", "arccosh", mx::arccosh, nullptr},
    {Op::atanh, "ArcTanh", "arctanh", mx::arctanh, nullptr},
    {Op::floor, "Floor", "floor", mx::floor, nullptr},
    {Op::ceil, "Ceil", "ceil", mx::ceil, nullptr},
    {Op::round, "Round", "round", mx::round, nullptr},
    {Op::sign, "Sign", "sign", mx::sign, nullptr},
    {Op::logical_not, "LogicalNot", "logical_not", mx::logical_not, nullptr},
    {Op::add, "Add", "add", nullptr, mx::add},
    {Op::subtract, "Subtract", "subtract", nullptr, mx::subtract},
    {Op::multiply, "Multiply", "multiply", nullptr, mx::multiply},
    {Op::divide, "Divide", "divide", nullptr, mx::divide},
    {Op::maximum, "Maximum", "maximum", nullptr, mx::maximum},
    {Op::minimum, "Minimum", "minimum", nullptr, mx::minimum},
    {Op::power, "Power", "power", nullptr, mx::power},
    {Op::atan2, "ArcTan2", "arctan2", nullptr, mx::arctan2},
    {Op::logaddexp, "LogAddExp", "logaddexp", nullptr, mx::logaddexp},
    {Op::remainder, "Remainder", "remainder", nullptr, mx::remainder},
    {Op::greater, "Greater", "greater", nullptr, mx::greater},
    {Op::greater_equal,
     "GreaterEqual",
     "greater_equal",
     nullptr,
     mx::greater_equal},
    {Op::less, "Less", "less", nullptr, mx::less},
    {Op::less_equal, "LessEqual", "less_equal", nullptr, mx::less_equal},
    {Op::equal,
     "Equal",
     "equal",
     nullptr,
     [](const mx::array& a, const mx::array& b, mx::StreamOrDevice s) {
       return mx::equal(a, b, s);
     }},
    {Op::not_equal, "NotEqual", "not_equal", nullptr, mx::not_equal},
    {Op::logical_and, "LogicalAnd", "logical_and", nullptr, mx::logical_and},
    {Op::logical_or, "LogicalOr", "logical_or", nullptr, mx::logical_or},
    {Op::select, "Select", "where", nullptr, nullptr},
};

const Operation& described(Op op) {
  for (const Operation& operation : kOperations) {
    if (operation.op == op) {
      return operation;
    }
  }
  throw std::invalid_argument("[mlx_recurrent] no such operation");
}

// The program's result for numbers, by the kernel that runs it elsewhere.
double run_once(const kernels::Program& program, mx::Dtype dtype) {
  double result = 0;
  auto run = [&](auto zero) {
    decltype(zero) out = 0;
    decltype(zero) none = 0;
    const void* input = &none; // which constants do not read
    kernels::PointwiseArgs args{1, &program, &input, &out};
    const auto& kernel =
        kernels::table()->types[static_cast<int>(kernel_type(dtype))].pointwise;
    kernels::Partition alone{kernels::Split::none, 1, 1};
    std::vector<char> scratch(kernel.scratch(args, alone));
    kernel.run(
        args, alone, kernels::Member{0, 1, nullptr, nullptr}, scratch.data());
    result = out;
  };
  // Half types are computed in float32.
  if (dtype == mx::float64) {
    run(0.0);
  } else {
    dtype = mx::float32;
    run(0.0f);
  }
  return result;
}

} // namespace

const Op* operation_of(const std::string& primitive) {
  for (const Operation& operation : kOperations) {
    if (primitive == operation.primitive) {
      return &operation.op;
    }
  }
  return nullptr;
}

int operands_of(Op op) {
  return op == Op::select ? 3 : described(op).binary ? 2 : 1;
}

// Constants are equal by their bits: a NaN is itself, and -0 is not 0.
bool Expression::Node::operator==(const Node& other) const {
  return kind == other.kind && op == other.op && a == other.a && b == other.b &&
      c == other.c &&
      std::bit_cast<uint64_t>(value) == std::bit_cast<uint64_t>(other.value);
}

int Expression::add(const Node& node) {
  for (int i = 0; i < size(); ++i) {
    if (nodes_[i] == node) {
      return i;
    }
  }
  nodes_.push_back(node);
  return size() - 1;
}

int Expression::argument(int index) {
  return add({Kind::argument, Op::copy, index, -1, -1, 0});
}

int Expression::constant(double value) {
  return add({Kind::constant, Op::copy, -1, -1, -1, value});
}

int Expression::operation(Op op, int a, int b, int c) {
  return add({Kind::operation, op, a, b, c, 0});
}

int Expression::number(int a) {
  return add({Kind::number, Op::copy, a, -1, -1, 0});
}

int Expression::stopped(int a) {
  return add({Kind::stopped, Op::copy, a, -1, -1, 0});
}

size_t Expression::hash() const {
  size_t seed = results_.size();
  auto mix = [&](uint64_t value) {
    seed ^= std::hash<uint64_t>{}(value) + 0x9e3779b97f4a7c15u + (seed << 6) +
        (seed >> 2);
  };
  for (const Node& node : nodes_) {
    mix(static_cast<uint64_t>(node.kind) << 8 | static_cast<uint64_t>(node.op));
    mix(static_cast<uint64_t>(node.a + 1) << 32 |
        static_cast<uint64_t>(node.b + 1) << 16 |
        static_cast<uint64_t>(node.c + 1));
    mix(std::bit_cast<uint64_t>(node.value));
  }
  for (int result : results_) {
    mix(static_cast<uint64_t>(result));
  }
  return seed;
}

std::vector<std::string> Expression::names() const {
  std::vector<std::string> names;
  for (const Node& node : nodes_) {
    if (node.kind == Kind::operation) {
      names.push_back(described(node.op).function);
    } else if (node.kind == Kind::stopped) {
      names.push_back("stop_gradient");
    }
  }
  return names;
}

// What a node becomes among the nodes of a simpler expression.
class Expression::Simplifier {
 public:
  explicit Simplifier(mx::Dtype dtype) : dtype_(dtype) {
  }

  // 1 / cosh(x)^2 is MLX's derivative of tanh(x): 1 - tanh(x)^2 is cheaper.
  bool cosh_is_of_tanh = false;
  int argument_that_is_one = -1;

  int operation(Op op, int a, int b, int c) {
    if (is_constant(a) && is_constant(b) && is_constant(c)) {
      return computed(op, a, b, c);
    }
    if (op == Op::multiply) {
      if (is(a, 1)) {
        return b;
      }
      if (is(b, 1)) {
        return a;
      }
    }
    if (op == Op::divide && out.is_constant(b)) {
      int exponent;
      // To the same bits.
      if (std::abs(std::frexp(value(b), &exponent)) == 0.5 &&
          std::abs(exponent) < 100) {
        return operation(Op::multiply, a, out.constant(1 / value(b)), -1);
      }
    }
    if (op == Op::divide && cosh_is_of_tanh && is_result_of(b, Op::square)) {
      int base = out.nodes()[b].a;
      if (is_result_of(base, Op::cosh)) {
        int tanh = out.operation(Op::tanh, out.nodes()[base].a);
        int slope = out.operation(
            Op::subtract, out.constant(1), out.operation(Op::square, tanh));
        return operation(Op::multiply, a, slope, -1);
      }
    }
    if (op == Op::power && out.is_constant(b)) {
      if (is(b, 1)) {
        return a;
      }
      if (is(b, 2)) {
        return out.operation(Op::square, a);
      }
      if (is(b, 3)) {
        return out.operation(Op::multiply, out.operation(Op::square, a), a);
      }
      if (is(b, 4)) {
        return out.operation(Op::square, out.operation(Op::square, a));
      }
    }
    return out.operation(op, a, b, c);
  }

  Expression out;

 private:
  bool is_constant(int node) const {
    return node < 0 || out.is_constant(node);
  }
  bool is_result_of(int node, Op op) const {
    return node >= 0 && out.nodes()[node].kind == Expression::Kind::operation &&
        out.nodes()[node].op == op;
  }
  double value(int node) const {
    return out.nodes()[node].value;
  }
  bool is(int node, double wanted) const {
    return out.is_constant(node) && value(node) == wanted;
  }

  int computed(Op op, int a, int b, int c) {
    Expression one;
    int operands[3] = {-1, -1, -1};
    int given[3] = {a, b, c};
    for (int k = 0; k < operands_of(op); ++k) {
      operands[k] = one.constant(value(given[k]));
    }
    one.set_results({one.operation(op, operands[0], operands[1], operands[2])});
    return out.constant(run_once(CompiledExpression(one, 1).program(), dtype_));
  }

  mx::Dtype dtype_;
};

Expression Expression::simplified(mx::Dtype dtype) const {
  Simplifier simplifier(dtype);
  return simplified_by(simplifier);
}

Expression Expression::simplified_derivative(
    const Expression& function,
    mx::Dtype dtype) const {
  Simplifier simplifier(dtype);
  simplifier.cosh_is_of_tanh =
      function.has(Op::tanh) && !function.has(Op::cosh);
  return simplified_by(simplifier);
}

Expression Expression::at_one(int argument, mx::Dtype dtype) const {
  Simplifier simplifier(dtype);
  simplifier.argument_that_is_one = argument;
  return simplified_by(simplifier);
}

Expression Expression::only(int result, mx::Dtype dtype) const {
  Expression one = *this;
  one.set_results({results_[result]});
  return one.simplified(dtype);
}

std::optional<double> Expression::constant_result() const {
  const Node& node = nodes_[results_[0]];
  return node.kind == Kind::constant ? std::optional(node.value) : std::nullopt;
}

bool Expression::has(Op op) const {
  for (const Node& node : nodes_) {
    if (node.kind == Kind::operation && node.op == op) {
      return true;
    }
  }
  return false;
}

Expression Expression::simplified_by(Simplifier& simplifier) const {
  std::vector<int> as;
  auto at = [&](int node) { return node < 0 ? -1 : as[node]; };
  for (const Node& node : nodes_) {
    switch (node.kind) {
      case Kind::argument:
        as.push_back(
            node.a == simplifier.argument_that_is_one
                ? simplifier.out.constant(1)
                : simplifier.out.argument(node.a));
        break;
      case Kind::constant:
        as.push_back(simplifier.out.constant(node.value));
        break;
      case Kind::operation:
        as.push_back(
            simplifier.operation(node.op, at(node.a), at(node.b), at(node.c)));
        break;
      case Kind::number:
        as.push_back(
            simplifier.out.is_constant(at(node.a))
                ? at(node.a)
                : simplifier.out.number(at(node.a)));
        break;
      case Kind::stopped:
        as.push_back(
            simplifier.out.is_constant(at(node.a))
                ? at(node.a)
                : simplifier.out.stopped(at(node.a)));
        break;
    }
  }
  // Only what the results need.
  const std::vector<Node>& found = simplifier.out.nodes();
  std::vector<bool> needed(found.size(), false);
  for (int node : results_) {
    needed[as[node]] = true;
  }
  for (int i = simplifier.out.size() - 1; i >= 0; --i) {
    if (needed[i] && found[i].kind != Kind::argument) {
      for (int operand : {found[i].a, found[i].b, found[i].c}) {
        if (operand >= 0) {
          needed[operand] = true;
        }
      }
    }
  }
  Expression result;
  std::vector<int> place(found.size(), -1);
  for (size_t i = 0; i < found.size(); ++i) {
    if (needed[i]) {
      Node node = found[i];
      if (node.kind != Kind::argument) {
        for (int* operand : {&node.a, &node.b, &node.c}) {
          *operand = *operand < 0 ? -1 : place[*operand];
        }
      }
      place[i] = result.add(node);
    }
  }
  std::vector<int> results;
  for (int node : results_) {
    results.push_back(place[as[node]]);
  }
  result.set_results(std::move(results));
  return result;
}

std::vector<mx::array> Expression::replay(
    const std::vector<mx::array>& arguments) const {
  mx::Dtype dtype = arguments[0].dtype();
  std::vector<mx::array> values;
  for (const Node& node : nodes_) {
    switch (node.kind) {
      case Kind::argument:
        values.push_back(arguments[node.a]);
        break;
      case Kind::constant:
        values.push_back(mx::array(node.value, dtype));
        break;
      case Kind::operation: {
        const Operation& operation = described(node.op);
        if (node.op == Op::select) {
          values.push_back(
              mx::where(values[node.a], values[node.b], values[node.c]));
        } else if (operation.binary) {
          values.push_back(
              operation.binary(values[node.a], values[node.b], {}));
        } else {
          values.push_back(operation.unary(values[node.a], {}));
        }
        break;
      }
      case Kind::number:
        values.push_back(mx::astype(values[node.a], dtype));
        break;
      case Kind::stopped:
        values.push_back(mx::stop_gradient(values[node.a]));
        break;
    }
  }
  std::vector<mx::array> results;
  for (int node : results_) {
    results.push_back(
        mx::broadcast_to(
            mx::astype(values[node], dtype), arguments[0].shape()));
  }
  return results;
}

CompiledExpression::CompiledExpression(
    const Expression& expression,
    int arguments) {
  const auto& nodes = expression.nodes();
  // Where each value is last read; results are read after all.
  std::vector<int> last(nodes.size(), -1);
  // Marks are for the graph only: their values are those of their operands.
  std::vector<int> origin(nodes.size());
  for (int i = 0; i < expression.size(); ++i) {
    const auto& node = nodes[i];
    bool marks = node.kind == Expression::Kind::number ||
        node.kind == Expression::Kind::stopped;
    origin[i] = marks ? origin[node.a] : i;
    if (node.kind == Expression::Kind::constant) {
      constants_.push_back(node.value);
    }
    if (node.kind == Expression::Kind::operation) {
      for (int operand : {node.a, node.b, node.c}) {
        if (operand >= 0) {
          last[origin[operand]] = i;
        }
      }
    }
  }
  for (int node : expression.results()) {
    last[origin[node]] = expression.size();
  }

  int count = static_cast<int>(constants_.size());
  int first_slot = arguments + count;
  int constants = 0;
  std::vector<int> free;
  int slots = 0;
  std::vector<int> place(nodes.size(), 0);
  auto at = [&](int node) {
    return static_cast<int16_t>(node < 0 ? 0 : place[origin[node]]);
  };
  for (int i = 0; i < expression.size(); ++i) {
    const auto& node = nodes[i];
    if (node.kind == Expression::Kind::argument) {
      place[i] = node.a;
    } else if (node.kind == Expression::Kind::constant) {
      place[i] = arguments + constants++;
    } else if (node.kind == Expression::Kind::operation) {
      kernels::Instruction instruction{
          node.op, 0, at(node.a), at(node.b), at(node.c)};
      for (int operand : {node.a, node.b, node.c}) {
        int from = operand < 0 ? -1 : origin[operand];
        if (from >= 0 && last[from] == i && place[from] >= first_slot) {
          free.push_back(place[from]);
          last[from] = -1; // once, also where it is named twice
        }
      }
      if (free.empty()) {
        place[i] = first_slot + slots++;
      } else {
        place[i] = free.back();
        free.pop_back();
      }
      instruction.to = static_cast<int16_t>(place[i]);
      code_.push_back(instruction);
    }
  }
  for (int node : expression.results()) {
    results_.push_back(place[origin[node]]);
  }
  program_ = kernels::Program{
      code_.data(),
      static_cast<int32_t>(code_.size()),
      constants_.data(),
      count,
      arguments,
      slots,
      results_.data(),
      static_cast<int32_t>(results_.size())};
}

} // namespace mlx_recurrent
