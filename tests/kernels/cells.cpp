#include "cells.h"

#include "element.h"
#include "traced.h"

namespace kernel_tests {

// A program rounds what it computes on the way, which is about as large as its
// input or its result.
Uncertain traced_value(int64_t program, Uncertain a, Rounding rounding) {
  const Traced& f = traced(program);
  double h = f.value(a.value);
  double size = std::fmax(std::fabs(a.value), std::fabs(h));
  return {
      h,
      a.spread * rounding.measure(f.slope(a.value)) +
          rounding.measure(kProgramUlps * rounding.unit * size)};
}

// Where an error of the input may reach a kink, the slope is either side's.
Uncertain traced_slope(int64_t program, Uncertain a, Rounding rounding) {
  const Traced& f = traced(program);
  double slope = f.slope(a.value);
  double spread = a.spread * rounding.measure(f.curvature) +
      rounding.measure(kProgramUlps * rounding.unit);
  for (double kink : f.kinks) {
    if (std::fabs(a.value - kink) <= rounding.allowed(a)) {
      spread += rounding.measure(f.jump);
    }
  }
  return {slope, spread};
}

namespace {

Uncertain activate(Nonlinearity f, Uncertain a, Rounding rounding) {
  double h = a.value;
  double slope = 1;
  double ulps = 0;
  switch (f.activation) {
    case Activation::tanh:
      h = std::tanh(a.value);
      slope = 1 - h * h;
      ulps = kTanhUlps;
      break;
    case Activation::sigmoid:
      h = 1 / (1 + std::exp(-a.value));
      slope = h * (1 - h);
      ulps = kLogisticUlps;
      break;
    case Activation::relu:
      h = a.value <= 0 ? 0 : a.value;
      break;
    case Activation::identity:
      break;
    case Activation::traced:
      return traced_value(f.program, a, rounding);
  }
  return {
      h,
      a.spread * rounding.measure(slope) +
          rounding.measure(2 * ulps * rounding.unit * h)};
}

// The derivative of the activation, from its value.
Uncertain slope(Activation activation, Uncertain h, Rounding rounding) {
  switch (activation) {
    case Activation::tanh:
      return rounding.add(
          1, rounding.multiply(Uncertain(-h.value, h.spread), h));
    case Activation::sigmoid:
      return rounding.multiply(
          h, rounding.add(1, Uncertain(-h.value, h.spread)));
    case Activation::relu:
      return h.value > 0 ? 1 : 0;
    case Activation::identity:
    case Activation::traced: // not from its value
      break;
  }
  return 1;
}

// The same from its argument.
Uncertain slope_at(Nonlinearity f, Uncertain a, Rounding rounding) {
  if (f.activation == Activation::traced) {
    return traced_slope(f.program, a, rounding);
  }
  Uncertain result = slope(f.activation, activate(f, a, rounding), rounding);
  if (f.activation == Activation::relu &&
      std::fabs(a.value) <= rounding.allowed(a)) {
    result.spread += rounding.measure(1);
  }
  return result;
}

// The logistic function and tanh.
Uncertain sigmoid(Uncertain a, Rounding rounding) {
  return activate({Activation::sigmoid, 0}, a, rounding);
}
Uncertain tanh(Uncertain a, Rounding rounding) {
  return activate({Activation::tanh, 0}, a, rounding);
}
Uncertain sigmoid_slope(Uncertain h, Rounding rounding) {
  return slope(Activation::sigmoid, h, rounding);
}
Uncertain tanh_slope(Uncertain h, Rounding rounding) {
  return slope(Activation::tanh, h, rounding);
}

// 1 - a.
Uncertain rest_of(Uncertain a, Rounding rounding) {
  return rounding.add(1, Uncertain(-a.value, a.spread));
}

Uncertain product(Uncertain a, Uncertain b, Uncertain c, Rounding rounding) {
  return rounding.multiply(rounding.multiply(a, b), c);
}

// A state as it is kept, which others are computed from: rounded to the type
// of the call. Where a kernel left it, its own is taken.
Uncertain stored(
    const Unit& unit,
    int state,
    Uncertain value,
    Rounding rounding) {
  if (format(unit.type).bytes > 2) {
    return value;
  }
  if (unit.after[state]) {
    return *unit.after[state];
  }
  // Near a tie an error on the way decides, and there a kernel's may be the
  // neighbour: two places, since several such units may add up.
  double right = rounded(unit.type, value.value);
  double place = ulp(unit.type, std::fabs(value.value));
  bool tie =
      std::fabs(value.value - right) + rounding.allowed(value) >= 0.5 * place;
  return {right, tie ? rounding.spread_of(2 * place) : 0};
}

Uncertain elman_preactivation(const Unit& unit, Rounding rounding) {
  return rounding.add(unit.z[0], unit.u[0]);
}

UnitResult elman_step(const Unit& unit, Rounding rounding) {
  Uncertain a = elman_preactivation(unit, rounding);
  return {{activate(unit.f, a, rounding)}, {a}};
}

UnitCotangents elman_pull(
    const Unit& unit,
    const Uncertain (&d)[kMostStates],
    Rounding rounding) {
  bool known = unit.f.activation != Activation::traced && unit.after[0];
  Uncertain df = known
      ? slope(unit.f.activation, *unit.after[0], rounding)
      : slope_at(unit.f, elman_preactivation(unit, rounding), rounding);
  Uncertain delta = rounding.multiply(d[0], df);
  return {{delta}, {delta}, {}};
}

struct GruGates {
  Uncertain r, z, n, u;

  GruGates(const Unit& unit, Rounding rounding)
      : r(sigmoid(rounding.add(unit.z[0], unit.u[0]), rounding)),
        z(sigmoid(rounding.add(unit.z[1], unit.u[1]), rounding)),
        u(rounding.add(unit.u[2], unit.bhn)) {
    n = tanh(rounding.add(unit.z[2], rounding.multiply(r, u)), rounding);
  }
};

UnitResult gru_step(const Unit& unit, Rounding rounding) {
  GruGates g(unit, rounding);
  Uncertain h = rounding.add(
      rounding.multiply(rest_of(g.z, rounding), g.n),
      rounding.multiply(g.z, unit.q[0]));
  return {{h}, {g.r, g.z, g.n, g.u}};
}

UnitCotangents gru_pull(
    const Unit& unit,
    const Uncertain (&d)[kMostStates],
    Rounding rounding) {
  GruGates g(unit, rounding);
  Uncertain dn = product(
      d[0], rest_of(g.z, rounding), tanh_slope(g.n, rounding), rounding);
  Uncertain du = rounding.multiply(dn, g.r);
  Uncertain dr = product(dn, g.u, sigmoid_slope(g.r, rounding), rounding);
  Uncertain change = rounding.add(unit.q[0], Uncertain(-g.n.value, g.n.spread));
  Uncertain dz = product(d[0], change, sigmoid_slope(g.z, rounding), rounding);
  return {{dr, dz, dn}, {dr, dz, du}, {rounding.multiply(d[0], g.z)}};
}

struct LstmGates {
  Uncertain i, f, g, o;
  Uncertain c; // as it is computed
  Uncertain t; // tanh of c as it is kept

  LstmGates(const Unit& unit, Rounding rounding) {
    Uncertain a[4];
    for (int k = 0; k < 4; ++k) {
      a[k] = rounding.add(unit.z[k], unit.u[k]);
    }
    i = sigmoid(a[0], rounding);
    f = sigmoid(a[1], rounding);
    g = tanh(a[2], rounding);
    o = sigmoid(a[3], rounding);
    c = rounding.add(rounding.multiply(f, unit.q[1]), rounding.multiply(i, g));
    t = tanh(stored(unit, 1, c, rounding), rounding);
  }
};

UnitResult lstm_step(const Unit& unit, Rounding rounding) {
  LstmGates g(unit, rounding);
  return {{rounding.multiply(g.o, g.t), g.c}, {g.i, g.f, g.g, g.o}};
}

UnitCotangents lstm_pull(
    const Unit& unit,
    const Uncertain (&d)[kMostStates],
    Rounding rounding) {
  LstmGates g(unit, rounding);
  Uncertain dc = rounding.add(
      d[1], product(d[0], g.o, tanh_slope(g.t, rounding), rounding));
  UnitCotangents found;
  found.z[0] = product(dc, g.g, sigmoid_slope(g.i, rounding), rounding);
  found.z[1] = product(dc, unit.q[1], sigmoid_slope(g.f, rounding), rounding);
  found.z[2] = product(dc, g.i, tanh_slope(g.g, rounding), rounding);
  found.z[3] = product(d[0], g.t, sigmoid_slope(g.o, rounding), rounding);
  for (int k = 0; k < 4; ++k) {
    found.u[k] = found.z[k];
  }
  found.q[1] = rounding.multiply(dc, g.f);
  return found;
}

} // namespace

const Cell& cell_of(CellKind kind) {
  static const Cell elman = {1, 1, 1, false, elman_step, elman_pull};
  static const Cell gru = {3, 1, 4, true, gru_step, gru_pull};
  static const Cell lstm = {4, 2, 4, false, lstm_step, lstm_pull};
  switch (kind) {
    case CellKind::program: // which is told what to do
    case CellKind::elman:
      return elman;
    case CellKind::gru:
      return gru;
    case CellKind::lstm:
      return lstm;
  }
  return elman;
}

} // namespace kernel_tests
