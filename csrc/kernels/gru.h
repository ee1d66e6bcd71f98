// The mathematics of the GRU cell with the reset behind the product, once: of
// the slabs u = Whn h' + bhn, r, z and n,
//   h = (1 - z) n + z h',  with r, z = sigma(.), n = tanh(n + r u)
// (Cho et al. 2014, as in cuDNN). `Value` and `Ops` are as in lstm.h.

#pragma once

namespace mlx_recurrent {

struct Gru {
  static constexpr int state_only = 1;
  static constexpr int shared = 2;
  static constexpr int input_only = 1;
  static constexpr int states = 1;
  static constexpr int saved = 4; // r, z, n, u

  template <class Ops, class Value>
  __attribute__((always_inline)) static inline void step(
      const Value* a,
      const Value* q,
      const Value& one,
      Value* y,
      Value* saved) {
    saved[0] = Ops::logistic(a[1]);
    saved[1] = Ops::logistic(a[2]);
    saved[2] = Ops::tanh(a[3] + saved[0] * a[0]);
    saved[3] = a[0];
    y[0] = (one - saved[1]) * saved[2] + saved[1] * q[0];
  }

  template <class Ops, class Value>
  __attribute__((always_inline)) static inline void pullback(
      const Value* saved,
      const Value* q,
      const Value& one,
      const Value* lambda,
      Value* da,
      Value* dq) {
    const Value &r = saved[0], &z = saved[1], &n = saved[2], &u = saved[3];
    Value dn = lambda[0] * (one - z) * (one - n * n);
    da[0] = dn * r;
    da[1] = dn * u * (r * (one - r));
    da[2] = lambda[0] * (q[0] - n) * (z * (one - z));
    da[3] = dn;
    dq[0] = lambda[0] * z;
  }

  static constexpr bool passes(int) {
    return true;
  }
};

} // namespace mlx_recurrent
