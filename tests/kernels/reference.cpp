#include "reference.h"

#include "tolerances.h"
#include "traced.h"

namespace kernel_tests {

namespace {

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

Uncertain activate(
    Activation activation,
    int64_t program,
    Uncertain a,
    Rounding rounding) {
  double h = a.value;
  double slope = 1;
  double ulps = 0;
  switch (activation) {
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
      return traced_value(program, a, rounding);
  }
  return {
      h,
      a.spread * rounding.measure(slope) +
          rounding.measure(2 * ulps * rounding.unit * h)};
}

// The derivative of the activation, from its value.
Uncertain slope(Activation activation, double h, Rounding rounding) {
  switch (activation) {
    case Activation::tanh:
      return rounding.add(1, rounding.multiply(-h, h));
    case Activation::sigmoid:
      return rounding.multiply(h, rounding.add(1, -h));
    case Activation::relu:
      return h > 0 ? 1 : 0;
    case Activation::identity:
    case Activation::traced: // not from its value
      break;
  }
  return 1;
}

Numbers zeros(int64_t count) {
  return Numbers(static_cast<size_t>(count));
}

// a_t of row n and unit i, from the state before it.
Uncertain preactivation(
    const Layer& g,
    const std::vector<double>& states,
    int64_t n,
    int64_t t,
    int64_t i,
    Rounding rounding) {
  const double* x = g.x + (n * g.L + t) * g.D;
  const double* before = t > 0 ? states.data() + (n * g.L + t - 1) * g.H
      : g.hidden               ? g.hidden + n * g.H
                               : nullptr;
  Uncertain z = 0;
  if (!g.projected) {
    for (int64_t d = 0; d < g.D; ++d) {
      rounding.accumulate(z, g.Wxh[i * g.D + d], x[d]);
    }
  } else {
    z = x[i];
  }
  if (g.bias) {
    z = rounding.add(z, g.bias[i]);
  }
  if (before) {
    Uncertain recurrent = 0;
    for (int64_t j = 0; j < g.H; ++j) {
      rounding.accumulate(recurrent, g.Whh[i * g.H + j], before[j]);
    }
    z = rounding.add(z, recurrent);
  }
  return z;
}

} // namespace

Numbers next_states(
    const Layer& g,
    const std::vector<double>& states,
    Rounding rounding) {
  Numbers result = zeros(g.N * g.L * g.H);
  for (int64_t n = 0; n < g.N; ++n) {
    for (int64_t t = 0; t < g.L; ++t) {
      for (int64_t i = 0; i < g.H; ++i) {
        result[static_cast<size_t>((n * g.L + t) * g.H + i)] = activate(
            g.activation,
            g.program,
            preactivation(g, states, n, t, i, rounding),
            rounding);
      }
    }
  }
  return result;
}

Gradients gradients(
    const Layer& g,
    const std::vector<double>& states,
    const double* dstates,
    const double* dstate,
    Rounding rounding) {
  Gradients d = {
      zeros(g.N * g.L * g.D),
      zeros(g.H * g.D),
      zeros(g.H),
      zeros(g.H * g.H),
      zeros(g.N * g.H)};
  auto slope_at = [&](int64_t n, int64_t t, int64_t i, double h) {
    return g.activation == Activation::traced
        ? traced_slope(
              g.program, preactivation(g, states, n, t, i, rounding), rounding)
        : slope(g.activation, h, rounding);
  };
  for (int64_t n = 0; n < g.N; ++n) {
    Numbers dh = zeros(g.H); // what later steps ask of the state of step t
    if (dstate) {
      dh.assign(dstate + n * g.H, dstate + (n + 1) * g.H);
    }
    for (int64_t t = g.L - 1; t >= 0; --t) {
      const double* x = g.x + (n * g.L + t) * g.D;
      const double* h = states.data() + (n * g.L + t) * g.H;
      const double* before = t > 0 ? h - g.H
          : g.hidden               ? g.hidden + n * g.H
                                   : nullptr;
      Numbers delta = zeros(g.H); // the cotangent of the pre-activations
      for (int64_t i = 0; i < g.H; ++i) {
        Uncertain total = dh[static_cast<size_t>(i)];
        if (dstates) {
          total = rounding.add(dstates[(n * g.L + t) * g.H + i], total);
        }
        delta[static_cast<size_t>(i)] =
            rounding.multiply(total, slope_at(n, t, i, h[i]));
      }
      dh = zeros(g.H);
      for (int64_t i = 0; i < g.H; ++i) {
        Uncertain e = delta[static_cast<size_t>(i)];
        for (int64_t j = 0; j < g.H; ++j) {
          rounding.accumulate(
              dh[static_cast<size_t>(j)], e, g.Whh[i * g.H + j]);
          if (before) {
            rounding.accumulate(
                d.dWhh[static_cast<size_t>(i * g.H + j)], e, before[j]);
          }
        }
        d.dbias[static_cast<size_t>(i)] =
            rounding.add(d.dbias[static_cast<size_t>(i)], e);
        Uncertain* dx = d.dx.data() + (n * g.L + t) * g.D;
        if (g.projected) {
          dx[i] = e;
          continue;
        }
        for (int64_t k = 0; k < g.D; ++k) {
          rounding.accumulate(dx[k], e, g.Wxh[i * g.D + k]);
          rounding.accumulate(
              d.dWxh[static_cast<size_t>(i * g.D + k)], e, x[k]);
        }
      }
    }
    for (int64_t j = 0; j < g.H; ++j) {
      d.dhidden[static_cast<size_t>(n * g.H + j)] = dh[static_cast<size_t>(j)];
    }
  }
  return d;
}

Numbers traced_values(
    int64_t program,
    const std::vector<double>& inputs,
    Rounding rounding) {
  Numbers result;
  for (double a : inputs) {
    result.push_back(traced_value(program, a, rounding));
  }
  return result;
}

Numbers traced_products(
    int64_t program,
    const std::vector<double>& inputs,
    const std::vector<double>& cotangents,
    Rounding rounding) {
  Numbers result;
  for (size_t i = 0; i < inputs.size(); ++i) {
    result.push_back(rounding.multiply(
        cotangents[i], traced_slope(program, inputs[i], rounding)));
  }
  return result;
}

Numbers linear_scan(const LinearScan& g, Rounding rounding) {
  Numbers result = zeros(g.N * g.L * g.H);
  for (int64_t n = 0; n < g.N; ++n) {
    Numbers carried = zeros(g.H);
    if (g.hidden) {
      carried.assign(g.hidden + n * g.H, g.hidden + (n + 1) * g.H);
    }
    for (int64_t i = 0; i < g.L; ++i) {
      int64_t row = (n * g.L + (g.reverse ? g.L - 1 - i : i)) * g.H;
      for (int64_t k = 0; k < g.H; ++k) {
        Uncertain sum = 0;
        for (int64_t j = 0; j < g.H; ++j) {
          rounding.accumulate(
              sum, g.V[k * g.H + j], carried[static_cast<size_t>(j)]);
        }
        if (g.beta) {
          sum = rounding.multiply(g.beta[row + k], sum);
        }
        result[static_cast<size_t>(row + k)] = rounding.add(g.s[row + k], sum);
      }
      for (int64_t k = 0; k < g.H; ++k) {
        Uncertain y = result[static_cast<size_t>(row + k)];
        carried[static_cast<size_t>(k)] =
            g.gamma ? rounding.multiply(g.gamma[row + k], y) : y;
      }
    }
  }
  return result;
}

Numbers product(
    int64_t rows,
    int64_t K,
    int64_t M,
    const double* x,
    const double* w,
    const double* bias,
    Rounding rounding) {
  Numbers result = zeros(rows * M);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t m = 0; m < M; ++m) {
      Uncertain& sum = result[static_cast<size_t>(r * M + m)];
      for (int64_t k = 0; k < K; ++k) {
        rounding.accumulate(sum, x[r * K + k], w[m * K + k]);
      }
      if (bias) {
        sum = rounding.add(sum, bias[m]);
      }
    }
  }
  return result;
}

Numbers outer_sum(
    int64_t rows,
    int64_t M,
    int64_t K,
    const double* a,
    const double* b,
    Rounding rounding) {
  Numbers result = zeros(M * K);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t k = 0; k < K; ++k) {
        rounding.accumulate(
            result[static_cast<size_t>(m * K + k)], a[r * M + m], b[r * K + k]);
      }
    }
  }
  return result;
}

} // namespace kernel_tests
