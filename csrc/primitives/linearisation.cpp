#include "primitives/linearisation.h"

#include "kernels/elman.h"
#include "primitives/arithmetic.h"
#include "primitives/broadcast.h"
#include "primitives/linear_scan.h"
#include "primitives/masks.h"
#include "primitives/matmul.h"
#include "primitives/pointwise.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = RecurrenceSlot;

using kernels::Activation;
using kernels::Op;

// A number of an expression, for the formulas of elman.h.
struct Symbol {
  Expression* e;
  int node;

  friend Symbol operator-(const Symbol& x, const Symbol& y) {
    return {x.e, x.e->operation(Op::subtract, x.node, y.node)};
  }
  friend Symbol operator*(const Symbol& x, const Symbol& y) {
    return {x.e, x.e->operation(Op::multiply, x.node, y.node)};
  }
};

struct SymbolOps {
  static Symbol tanh(const Symbol& a) {
    return {a.e, a.e->operation(Op::tanh, a.node)};
  }
  static Symbol logistic(const Symbol& a) {
    return {a.e, a.e->operation(Op::sigmoid, a.node)};
  }
  static Symbol positive_part(const Symbol& a) {
    int zero = a.e->constant(0);
    int negative = a.e->operation(Op::less_equal, a.node, zero);
    return {a.e, a.e->operation(Op::select, negative, zero, a.node)};
  }
  static Symbol where_positive(const Symbol& h, const Symbol& one) {
    int zero = h.e->constant(0);
    int positive = h.e->operation(Op::greater, h.node, zero);
    return {h.e, h.e->operation(Op::select, positive, one.node, zero)};
  }
};

// An elementwise function that `make` writes down, of (its argument, one).
template <class Make>
mx::array apply(const mx::array& a, const mx::Stream& s, Make make) {
  Expression e;
  Symbol argument{&e, e.argument(0)};
  Symbol one{&e, e.constant(1)};
  e.set_result(make(argument, one).node);
  return pointwise(a, Traced::of(e, a.dtype()), s);
}

template <Activation f>
mx::array activation_of(const mx::array& a, const mx::Stream& s) {
  return apply(a, s, [](const Symbol& x, const Symbol&) {
    return elman::activate<f, SymbolOps>(x);
  });
}

// f'(a) as a function of h = f(a).
template <Activation f>
mx::array slope_at(const mx::array& h, const mx::Stream& s) {
  return apply(h, s, [](const Symbol& x, const Symbol& one) {
    return elman::slope<f, SymbolOps>(x, one);
  });
}

// 1 - a.
mx::array complement(const mx::array& a, const mx::Stream& s) {
  return apply(
      a, s, [](const Symbol& x, const Symbol& one) { return one - x; });
}

mx::array negative(const mx::array& a, const mx::Stream& s) {
  return apply(a, s, [](const Symbol& x, const Symbol&) {
    return Symbol{x.e, x.e->operation(Op::negative, x.node)};
  });
}

template <class Value, class Make>
const Value& once(std::optional<Value>& made, Make make) {
  if (!made) {
    made.emplace(make());
  }
  return *made;
}

} // namespace

Linearisation::Linearisation(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const mx::array& states,
    const mx::Stream& stream)
    : form_(form),
      inputs_(inputs),
      states_(states),
      s_(stream),
      course_(course_of(form.course, form.inputs, inputs)) {
}

mx::array Linearisation::valid(const mx::array& a) const {
  return course_.lengths ? only_places(a, Places::valid, course_, s_) : a;
}

std::optional<mx::array> Linearisation::mask(
    kernels::Drawn what,
    const mx::array& like) const {
  double probability = form_.probabilities.of[static_cast<int>(what)];
  if (probability == 0) {
    return {};
  }
  const mx::array& key = input_in(Slot::key);
  int first =
      static_cast<int>(input_in(Slot::Whh).ndim()) - 2 + form_.repeated_axes;
  int last = static_cast<int>(like.ndim()) - 2;
  auto rows = std::max<int64_t>(size_between(like, first, last), 1);
  return mlx_recurrent::mask(key, like, what, probability, rows, s_);
}

const std::optional<mx::array>& Linearisation::input_factors() {
  return once(input_factors_, [&] {
    return mask(kernels::Drawn::input_dropout, input_in(Slot::x));
  });
}

const std::optional<mx::array>& Linearisation::seen_factors() {
  return once(seen_factors_, [&] {
    return mask(kernels::Drawn::recurrent_dropout, states_);
  });
}

const std::optional<mx::array>& Linearisation::kept() {
  return once(kept_, [&] { return mask(kernels::Drawn::zoneout, states_); });
}

mx::array Linearisation::with_input_factors(const mx::array& a) {
  const auto& factors = input_factors();
  return factors ? gate(*factors, a, s_) : a;
}

mx::array Linearisation::updated(const mx::array& a) {
  const auto& factors = kept();
  return factors ? gate(*factors, a, s_) : a;
}

const mx::array& Linearisation::input() {
  return once(
      input_, [&] { return with_input_factors(valid(input_in(Slot::x))); });
}

const mx::array& Linearisation::before() {
  return once(before_, [&] {
    auto hidden = find(Slot::hidden);
    mx::array q = step_before(states_, hidden, course_, s_);
    if (auto hidden0 = find(Slot::hidden0)) {
      mx::array rows = repeated_row(*hidden0, states_, s_);
      q = add(q, only_places(rows, Places::starts, course_, s_), s_);
    }
    return q;
  });
}

const mx::array& Linearisation::seen() {
  return once(seen_, [&] {
    const auto& factors = seen_factors();
    return factors ? gate(*factors, before(), s_) : before();
  });
}

// a = z + Whh (m_h q), of all steps that run.
const mx::array& Linearisation::pre_activations() {
  return once(pre_activations_, [&] {
    mx::array z = form_.projected()
        ? input()
        : matmul(input(), input_in(Slot::Wxh), find(Slot::bias), s_);
    mx::array a = add(z, matmul(seen(), input_in(Slot::Whh), {}, s_), s_);
    if (!form_.function || !course_.lengths) {
      return a;
    }
    // In the padding a number for which hardly any function or slope is
    // singular, as many are for zero.
    mx::array usual = filled(a, 0.3, s_);
    mx::array elsewhere = add(usual, negative(valid(usual), s_), s_);
    return add(valid(a), elsewhere, s_);
  });
}

const mx::array& Linearisation::activations() {
  return once(activations_, [&] {
    if (!form_.inputs.has(Slot::leak)) {
      return states_; // but for units that were kept, whose slope is 0
    }
    const mx::array& a = pre_activations();
    switch (form_.activation) {
      case Activation::tanh:
        return activation_of<Activation::tanh>(a, s_);
      case Activation::relu:
        return activation_of<Activation::relu>(a, s_);
      case Activation::sigmoid:
        return activation_of<Activation::sigmoid>(a, s_);
      case Activation::identity:
        return a;
      case Activation::traced:
        return pointwise(a, form_.function, s_);
    }
    throw std::invalid_argument("[mlx_recurrent] no such activation");
  });
}

const mx::array& Linearisation::change() {
  return once(
      change_, [&] { return add(activations(), negative(before(), s_), s_); });
}

std::optional<mx::array> Linearisation::activation_slope() {
  switch (form_.activation) {
    case Activation::tanh:
      return slope_at<Activation::tanh>(activations(), s_);
    case Activation::relu:
      return slope_at<Activation::relu>(activations(), s_);
    case Activation::sigmoid:
      return slope_at<Activation::sigmoid>(activations(), s_);
    case Activation::identity:
      return {};
    case Activation::traced:
      return pointwise_slope(pre_activations(), form_.function, s_);
  }
  throw std::invalid_argument("[mlx_recurrent] no such activation");
}

const std::optional<mx::array>& Linearisation::rate() {
  return once(rate_, [&]() -> std::optional<mx::array> {
    auto leak = find(Slot::leak);
    if (!leak) {
      return kept();
    }
    return updated(repeated_row(*leak, states_, s_));
  });
}

const std::optional<mx::array>& Linearisation::passed() {
  return once(passed_, [&]() -> std::optional<mx::array> {
    const auto& k = rate();
    return k ? std::optional(complement(*k, s_)) : std::nullopt;
  });
}

const std::optional<mx::array>& Linearisation::slope() {
  return once(slope_, [&]() -> std::optional<mx::array> {
    std::optional<mx::array> g = activation_slope();
    if (auto leak = find(Slot::leak)) {
      mx::array rows = repeated_row(*leak, states_, s_);
      g = g ? multiply(rows, *g, s_) : rows;
    }
    return g ? std::optional(updated(*g)) : kept();
  });
}

mx::array Linearisation::scan(
    const mx::array& source,
    bool transposed,
    const std::optional<mx::array>& hidden,
    const std::optional<mx::array>& hidden0) {
  ScanOperands in{
      input_in(Slot::Whh),
      seen_factors(),
      {},
      {{{0, 0}, slope()}},
      {source},
      {hidden},
      {hidden0}};
  if (const auto& factors = passed()) {
    in.A.push_back({{0, 0}, factors});
  }
  return linear_scan(in, 1, course_, transposed, s_)[0];
}

} // namespace mlx_recurrent
