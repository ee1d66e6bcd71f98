#include "primitives/reading.h"

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "mlx_faults/references.h"

namespace mlx_recurrent {

using kernels::Op;

namespace {

struct Obstacle : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What `mx.compile` made of elementwise operations is one primitive, whose
// parts are private to it. An explicit instantiation may name them.
template <class Tag, typename Tag::Member member>
struct Expose {
  friend typename Tag::Member exposed(Tag) {
    return member;
  }
};
struct Inputs {
  typedef const std::vector<mx::array> mx::Compiled::* Member;
  friend Member exposed(Inputs);
};
struct Outputs {
  typedef const std::vector<mx::array> mx::Compiled::* Member;
  friend Member exposed(Outputs);
};
struct Constants {
  typedef const std::unordered_set<uintptr_t> mx::Compiled::* Member;
  friend Member exposed(Constants);
};
template struct Expose<Inputs, &mx::Compiled::inputs_>;
template struct Expose<Outputs, &mx::Compiled::outputs_>;
template struct Expose<Constants, &mx::Compiled::constant_ids_>;

template <class T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

// The number that an evaluated array of one element holds.
std::optional<double> value_of(const mx::array& a) {
  if (a.size() != 1 || !a.is_available()) {
    return std::nullopt;
  }
  auto as = [&]<class T>(T) { return static_cast<double>(*a.data<T>()); };
  switch (a.dtype().val()) {
    case mx::Dtype::Val::bool_:
      return as(bool{});
    case mx::Dtype::Val::uint8:
      return as(uint8_t{});
    case mx::Dtype::Val::uint16:
      return as(uint16_t{});
    case mx::Dtype::Val::uint32:
      return as(uint32_t{});
    case mx::Dtype::Val::int8:
      return as(int8_t{});
    case mx::Dtype::Val::int16:
      return as(int16_t{});
    case mx::Dtype::Val::int32:
      return as(int32_t{});
    case mx::Dtype::Val::float16:
      return static_cast<double>(static_cast<float>(*a.data<mx::float16_t>()));
    case mx::Dtype::Val::bfloat16:
      return static_cast<double>(static_cast<float>(*a.data<mx::bfloat16_t>()));
    case mx::Dtype::Val::float32:
      return as(float{});
    case mx::Dtype::Val::float64:
      return as(double{});
    default:
      // 64 bits may be more than a double holds.
      return std::nullopt;
  }
}

// A number as one of a floating type.
double rounded(double value, mx::Dtype dtype) {
  if (dtype == mx::float32) {
    return static_cast<float>(value);
  }
  if (dtype == mx::float16) {
    return static_cast<float>(mx::float16_t(static_cast<float>(value)));
  }
  if (dtype == mx::bfloat16) {
    return static_cast<float>(mx::bfloat16_t(static_cast<float>(value)));
  }
  return value;
}

bool is_half(mx::Dtype dtype) {
  return dtype == mx::float16 || dtype == mx::bfloat16;
}

class Reader {
 public:
  Reader(
      Reading& reading,
      const std::vector<mx::array>& arguments,
      int most_nodes)
      : reading_(reading),
        shape_(arguments[0].shape()),
        vector_(shape_),
        dtype_(arguments[0].dtype()),
        most_nodes_(most_nodes) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i].shape() != shape_) {
        vector_ = {shape_.back()};
      }
      int node = add(e().argument(static_cast<int>(i)), false);
      seen_.insert({arguments[i].id(), Seen{node, nullptr, 0}});
    }
  }

  void run(const std::vector<mx::array>& results) {
    std::vector<int> nodes;
    for (const mx::array& result : results) {
      nodes.push_back(node(result));
      if (auto seen = seen_.find(result.id()); seen != seen_.end()) {
        ++seen->second.uses; // by this list
      }
    }
    e().set_results(std::move(nodes));
    for (const auto& [id, seen] : seen_) {
      if (seen.array) {
        reading_.arrays.push_back(id);
        // Whoever else refers to it can change it, or differentiate by it.
        bool shared = references(*seen.array) > seen.uses;
        reading_.kept = reading_.kept || (shared && !uniform_[seen.node]);
        reading_.own = reading_.own && !shared;
      }
    }
  }

 private:
  struct Seen {
    int node;
    const mx::array* array; // null for an argument
    long uses;              // by operations of the graph, or as its result
  };

  Expression& e() {
    return reading_.expression;
  }

  // Notes whether a node is one number in all places.
  int add(int node, bool uniform) {
    if (e().size() > most_nodes_) {
      throw Obstacle("has too many operations");
    }
    if (node == static_cast<int>(uniform_.size())) {
      uniform_.push_back(uniform);
    }
    return node;
  }

  int constant(double value) {
    return add(e().constant(value), true);
  }

  bool all_uniform(const std::vector<int>& nodes) const {
    return std::all_of(
        nodes.begin(), nodes.end(), [&](int node) { return uniform_[node]; });
  }

  // A graph is no deeper than it may have operations, casts and broadcasts
  // beside them.
  class Depth {
   public:
    explicit Depth(Reader& reader) : depth_(reader.depth_) {
      if (++depth_ > 3 * reader.most_nodes_) {
        --depth_;
        throw Obstacle("has too many operations");
      }
    }
    ~Depth() {
      --depth_;
    }

   private:
    int& depth_;
  };

  int node(const mx::array& a) {
    if (auto found = seen_.find(a.id()); found != seen_.end()) {
      ++found->second.uses;
      return found->second.node;
    }
    Depth depth(*this);
    int made = a.has_primitive() ? of_primitive(a) : leaf(a);
    seen_.insert({a.id(), Seen{made, &a, 1}});
    return made;
  }

  int leaf(const mx::array& a) {
    auto value = value_of(a);
    if (!value) {
      throw Obstacle(
          "uses an array of shape " + text(a.shape()) +
          " that is not made from its argument");
    }
    return constant(*value);
  }

  int of_primitive(const mx::array& a) {
    if (const auto* compiled =
            dynamic_cast<const mx::Compiled*>(&a.primitive())) {
      return of_compiled(a, *compiled);
    }
    std::string name = a.primitive().name();
    if (!readable(name)) {
      throw Obstacle(
          "has the operation " + name + ", which is not elementwise");
    }
    std::vector<int> operands;
    for (const mx::array& input : a.inputs()) {
      operands.push_back(node(input));
    }
    int made = operation(a, operands, a.inputs());
    // One number in all places may have any shape.
    if (!uniform_[made] && a.shape() != shape_ && a.shape() != vector_) {
      throw Obstacle(
          "makes an array of shape " + text(a.shape()) + " from one of " +
          text(shape_));
    }
    return made;
  }

  // Inside it shapes are those of its first call, and every operation is
  // elementwise.
  int of_compiled(const mx::array& a, const mx::Compiled& compiled) {
    const auto& inputs = compiled.*exposed(Inputs{});
    const auto& outputs = compiled.*exposed(Outputs{});
    const auto& constants = compiled.*exposed(Constants{});
    std::unordered_map<std::uintptr_t, int> inner;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const mx::array& given = a.inputs()[i];
      if (constants.count(inputs[i].id())) {
        auto value = value_of(given);
        if (!value) {
          throw Obstacle("holds a constant that is not a number");
        }
        inner[inputs[i].id()] = constant(*value);
      } else {
        inner[inputs[i].id()] = node(given);
      }
    }
    if (a.shape() != shape_ && a.shape() != vector_) {
      throw Obstacle("makes an array of shape " + text(a.shape()));
    }
    auto all = a.outputs();
    for (size_t i = 0; i < all.size(); ++i) {
      if (all[i].id() == a.id()) {
        return of_tape(outputs[i], inner);
      }
    }
    throw Obstacle("has an operation that cannot be read");
  }

  int of_tape(
      const mx::array& a,
      std::unordered_map<std::uintptr_t, int>& inner) {
    if (auto found = inner.find(a.id()); found != inner.end()) {
      return found->second;
    }
    Depth depth(*this);
    int made;
    if (a.has_primitive()) {
      std::vector<int> operands;
      for (const mx::array& input : a.inputs()) {
        operands.push_back(of_tape(input, inner));
      }
      made = operation(a, operands, a.inputs());
    } else if (auto value = value_of(a)) {
      made = constant(*value);
    } else {
      throw Obstacle("holds a constant that is not a number");
    }
    inner[a.id()] = made;
    return made;
  }

  int operation(
      const mx::array& a,
      const std::vector<int>& operands,
      const std::vector<mx::array>& inputs) {
    std::string name = a.primitive().name();
    int first = operands[0];
    if (keeps_values(name)) {
      return first;
    }
    if (name == "AsType") {
      return cast(first, inputs[0].dtype(), a.dtype());
    }
    if (name == "StopGradient") {
      return add(e().stopped(first), uniform_[first]);
    }
    bool truth = a.dtype() == mx::bool_;
    const Op* op = truth ? bitwise(name) : nullptr;
    op = op ? op : operation_of(name);
    if (!op || static_cast<int>(operands.size()) != operands_of(*op)) {
      throw Obstacle(
          "has the operation " + name + ", which is not elementwise");
    }
    bool compares = *op >= Op::greater && *op <= Op::not_equal;
    bool decides = *op == Op::logical_and || *op == Op::logical_or ||
        *op == Op::logical_not || *op == Op::select;
    for (size_t i = 0; i < inputs.size(); ++i) {
      bool may_be_truth = compares || decides;
      if (inputs[i].dtype() == mx::bool_ ? !may_be_truth
                                         : !computes(inputs[i].dtype())) {
        throw Obstacle(
            "has the operation " + name + " on " + dtype_name(inputs[i]));
      }
    }
    if (!truth && !computes(a.dtype())) {
      throw Obstacle("has the operation " + name + " in " + dtype_name(a));
    }
    auto at = [&](size_t i) { return i < operands.size() ? operands[i] : -1; };
    return add(e().operation(*op, first, at(1), at(2)), all_uniform(operands));
  }

  static bool readable(const std::string& name) {
    return keeps_values(name) || name == "AsType" || name == "StopGradient" ||
        bitwise(name) || operation_of(name);
  }

  static bool keeps_values(const std::string& name) {
    return name == "Broadcast" || name == "Full" || name == "Copy" ||
        name == "Contiguous";
  }

  // The bits of truth values.
  static const Op* bitwise(const std::string& name) {
    static constexpr std::pair<const char*, Op> known[] = {
        {"BitwiseAnd", Op::logical_and},
        {"BitwiseOr", Op::logical_or},
        {"BitwiseXor", Op::not_equal},
        {"BitwiseInvert", Op::logical_not}};
    for (const auto& [called, op] : known) {
      if (name == called) {
        return &op;
      }
    }
    return nullptr;
  }

  int cast(int operand, mx::Dtype from, mx::Dtype to) {
    if (e().is_constant(operand) && mx::issubdtype(to, mx::floating)) {
      return constant(rounded(e().nodes()[operand].value, to));
    }
    if (from == to) {
      return operand;
    }
    if (from == mx::bool_ && computes(to)) {
      return add(e().number(operand), uniform_[operand]);
    }
    if (to == mx::bool_ && computes(from)) {
      return add(
          e().operation(Op::not_equal, operand, constant(0)),
          uniform_[operand]);
    }
    if (!computes(from) || !computes(to)) {
      throw Obstacle("casts to " + text(to));
    }
    return operand;
  }

  // Whether the kernels compute numbers of this type as MLX does, or with more
  // bits.
  bool computes(mx::Dtype dtype) const {
    return dtype == dtype_ || (is_half(dtype_) && dtype == mx::float32);
  }

  static std::string dtype_name(const mx::array& a) {
    return text(a.dtype());
  }

  Reading& reading_;
  mx::Shape shape_;
  mx::Shape vector_; // that some arguments have
  mx::Dtype dtype_;
  int most_nodes_;
  int depth_ = 0;
  std::vector<bool> uniform_; // by node
  std::unordered_map<std::uintptr_t, Seen> seen_;
};

} // namespace

Reading read(
    const std::vector<mx::array>& results,
    const std::vector<mx::array>& arguments,
    int most_nodes) {
  Reading reading;
  const mx::array& argument = arguments[0];
  for (const mx::array& result : results) {
    if (result.dtype() != argument.dtype()) {
      reading.obstacle =
          "returns " + text(result.dtype()) + " for " + text(argument.dtype());
      return reading;
    }
    if (result.shape() != argument.shape()) {
      reading.obstacle = "returns shape " + text(result.shape()) + " for " +
          text(argument.shape());
      return reading;
    }
  }
  try {
    Reader(reading, arguments, most_nodes).run(results);
  } catch (const Obstacle& obstacle) {
    reading.obstacle = obstacle.what();
  }
  return reading;
}

Reading read_call(const mx::array& result, const mx::array& argument) {
  if (argument.status() != mx::array::Status::unscheduled) {
    // What it does may depend on the values.
    Reading reading;
    reading.obstacle = "evaluates its argument";
    return reading;
  }
  std::vector<mx::array> results;
  results.push_back(result);
  Reading reading = read(results, {argument}, 256);
  if (reading.obstacle.empty() && reading.kept) {
    reading.obstacle = "keeps an array of each step";
  }
  return reading;
}

std::vector<mx::array> arrays_of(
    const std::vector<mx::array>& results,
    const std::vector<mx::array>& arguments) {
  std::unordered_set<std::uintptr_t> seen;
  for (const mx::array& a : arguments) {
    seen.insert(a.id());
  }
  std::vector<mx::array> found;
  std::vector<mx::array> next = results;
  while (!next.empty()) {
    mx::array a = next.back();
    next.pop_back();
    if (!seen.insert(a.id()).second) {
      continue;
    }
    found.push_back(a);
    if (!a.has_primitive()) {
      continue;
    }
    const auto* compiled = dynamic_cast<const mx::Compiled*>(&a.primitive());
    for (size_t i = 0; i < a.inputs().size(); ++i) {
      // The constants of a compiled function are there before its calls.
      if (!compiled ||
          !(compiled->*exposed(Constants{}))
               .count((compiled->*exposed(Inputs{}))[i].id())) {
        next.push_back(a.inputs()[i]);
      }
    }
  }
  return found;
}

std::string difference(const Reading& first, const Reading& second) {
  if (!second.obstacle.empty()) {
    return second.obstacle;
  }
  if (!(first.expression == second.expression)) {
    return "makes different operations of two steps";
  }
  std::unordered_set<std::uintptr_t> seen(
      first.arrays.begin(), first.arrays.end());
  for (std::uintptr_t id : second.arrays) {
    if (seen.count(id)) {
      return "uses an array that was there before the call";
    }
  }
  return "";
}

} // namespace mlx_recurrent
