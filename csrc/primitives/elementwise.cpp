#include "primitives/elementwise.h"

#include "kernels/elman.h"
#include "primitives/pointwise.h"

namespace mlx_recurrent {

namespace {

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
  e.set_results({make(argument, one).node});
  return pointwise({a}, Traced::of(e, a.dtype()), s);
}

template <Activation f>
mx::array activation_of(const mx::array& a, const mx::Stream& s) {
  return apply(a, s, [](const Symbol& x, const Symbol&) {
    return elman::activate<f, SymbolOps>(x);
  });
}

template <Activation f>
mx::array slope_at(const mx::array& h, const mx::Stream& s) {
  return apply(h, s, [](const Symbol& x, const Symbol& one) {
    return elman::slope<f, SymbolOps>(x, one);
  });
}

} // namespace

mx::array activated(Activation f, const mx::array& a, const mx::Stream& s) {
  switch (f) {
    case Activation::tanh:
      return activation_of<Activation::tanh>(a, s);
    case Activation::relu:
      return activation_of<Activation::relu>(a, s);
    case Activation::sigmoid:
      return activation_of<Activation::sigmoid>(a, s);
    case Activation::identity:
      return a;
    case Activation::traced:
      break;
  }
  throw std::invalid_argument("[mlx_recurrent] no such activation");
}

std::optional<mx::array> activation_slope(
    Activation f,
    const mx::array& h,
    const mx::Stream& s) {
  switch (f) {
    case Activation::tanh:
      return slope_at<Activation::tanh>(h, s);
    case Activation::relu:
      return slope_at<Activation::relu>(h, s);
    case Activation::sigmoid:
      return slope_at<Activation::sigmoid>(h, s);
    case Activation::identity:
      return {};
    case Activation::traced:
      break;
  }
  throw std::invalid_argument("[mlx_recurrent] no such activation");
}

mx::array complement(const mx::array& a, const mx::Stream& s) {
  return apply(
      a, s, [](const Symbol& x, const Symbol& one) { return one - x; });
}

mx::array negative(const mx::array& a, const mx::Stream& s) {
  return apply(a, s, [](const Symbol& x, const Symbol&) {
    return Symbol{x.e, x.e->operation(Op::negative, x.node)};
  });
}

} // namespace mlx_recurrent
