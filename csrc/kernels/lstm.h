// The mathematics of the LSTM cell, once: of the slabs i, f, g, o,
//   c = f c' + i g,  h = o tanh(c),  with i, f, o = sigma(.), g = tanh(.)
// (Hochreiter and Schmidhuber 1997; the forget gate of Gers et al. 2000).
// `Value` is a vector in the kernels and an array in the graph; `Ops` says how
// either computes the functions that a formula needs.

#pragma once

namespace mlx_recurrent {

struct Lstm {
  static constexpr int state_only = 0;
  static constexpr int shared = 4;
  static constexpr int input_only = 0;
  static constexpr int states = 2; // h, c
  static constexpr int saved = 4;  // the gates

  // The states y after a step, from the slabs a and the states q before.
  template <class Ops, class Value>
  __attribute__((always_inline)) static inline void step(
      const Value* a,
      const Value* q,
      const Value&,
      Value* y,
      Value* saved) {
    saved[0] = Ops::logistic(a[0]);
    saved[1] = Ops::logistic(a[1]);
    saved[2] = Ops::tanh(a[2]);
    saved[3] = Ops::logistic(a[3]);
    y[1] = Ops::stored(saved[1] * q[1] + saved[0] * saved[2]);
    y[0] = saved[3] * Ops::tanh(y[1]);
  }

  // The cotangents of the slabs, and of the states before but for what goes
  // through those, from that of the states after. `one` is a Value of ones.
  template <class Ops, class Value>
  __attribute__((always_inline)) static inline void pullback(
      const Value* saved,
      const Value* q,
      const Value& one,
      const Value* lambda,
      Value* da,
      Value* dq) {
    const Value &i = saved[0], &f = saved[1], &g = saved[2], &o = saved[3];
    Value t = Ops::tanh(Ops::stored(f * q[1] + i * g));
    Value dc = lambda[1] + lambda[0] * o * (one - t * t);
    da[0] = dc * g * (i * (one - i));
    da[1] = dc * q[1] * (f * (one - f));
    da[2] = dc * i * (one - g * g);
    da[3] = lambda[0] * t * (o * (one - o));
    dq[1] = dc * f;
  }

  // Whether a state passes something on beside its slabs.
  static constexpr bool passes(int state) {
    return state == 1;
  }
};

} // namespace mlx_recurrent
