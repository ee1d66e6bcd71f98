// An elementwise function as a list of operations on numbers, free of MLX's
// graph: what a user's callable was read to be, and what the kernels run.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "mlx/array.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// The operation of the kernels that an elementwise primitive of MLX of this
// name is; null where there is none.
const kernels::Op* operation_of(const std::string& primitive);

// How many operands it has.
int operands_of(kernels::Op op);

// The nodes stand in an order in which each follows what it needs; equal nodes
// stand once.
class Expression {
 public:
  // What an operation is to the graph beside its arithmetic: a truth value as a
  // number, or a value whose derivative is zero.
  enum class Kind : int { argument, constant, operation, number, stopped };

  struct Node {
    Kind kind;
    kernels::Op op;
    int a, b, c;  // operands, or the argument's index in `a`; -1: none
    double value; // of a constant

    bool operator==(const Node& other) const;
  };

  // Each returns the index of the node.
  int argument(int index);
  int constant(double value);
  int operation(kernels::Op op, int a, int b = -1, int c = -1);
  int number(int a);
  int stopped(int a);

  bool is_constant(int node) const {
    return nodes_[node].kind == Kind::constant;
  }
  int size() const {
    return static_cast<int>(nodes_.size());
  }
  void set_results(std::vector<int> nodes) {
    results_ = std::move(nodes);
  }
  bool operator==(const Expression& other) const = default;
  size_t hash() const;

  // The names of the operations, as MLX's functions have them, in order.
  std::vector<std::string> names() const;

  // The same function with fewer or cheaper operations: constants computed,
  // powers with small whole exponents as products, quotients by powers of two
  // as products.
  Expression simplified(mx::Dtype dtype) const;
  // The same for what MLX made of the derivative of `function`.
  Expression simplified_derivative(const Expression& function, mx::Dtype dtype)
      const;
  // With the number one for an argument.
  Expression at_one(int argument, mx::Dtype dtype) const;
  // With one of the results alone.
  Expression only(int result, mx::Dtype dtype) const;

  // The same function in MLX's operations, each result of the shape of the
  // first argument.
  std::vector<mx::array> replay(const std::vector<mx::array>& arguments) const;

  // The nodes that are results, of which there may be several.
  const std::vector<int>& results() const {
    return results_;
  }
  // The number that the only result is, if it is one.
  std::optional<double> constant_result() const;
  const std::vector<Node>& nodes() const {
    return nodes_;
  }

 private:
  class Simplifier;

  int add(const Node& node);
  bool has(kernels::Op op) const;
  Expression simplified_by(Simplifier& simplifier) const;

  std::vector<Node> nodes_;
  std::vector<int> results_;
};

// An expression in the kernels' form, which holds the memory that the program
// points to. It does not move.
class CompiledExpression {
 public:
  CompiledExpression(const Expression& expression, int arguments);
  CompiledExpression(const CompiledExpression&) = delete;
  CompiledExpression& operator=(const CompiledExpression&) = delete;

  const kernels::Program& program() const {
    return program_;
  }

 private:
  std::vector<kernels::Instruction> code_;
  std::vector<double> constants_;
  std::vector<int32_t> results_;
  kernels::Program program_;
};

} // namespace mlx_recurrent
