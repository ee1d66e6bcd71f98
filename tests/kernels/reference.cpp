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
Uncertain slope_at(
    Activation activation,
    int64_t program,
    Uncertain a,
    Rounding rounding) {
  if (activation == Activation::traced) {
    return traced_slope(program, a, rounding);
  }
  Uncertain result =
      slope(activation, activate(activation, program, a, rounding), rounding);
  if (activation == Activation::relu &&
      std::fabs(a.value) <= rounding.allowed(a)) {
    result.spread += rounding.measure(1);
  }
  return result;
}

// factor * v, absent where the factor is 0.
Uncertain gate(double factor, Uncertain v, Rounding rounding) {
  return factor == 0 ? 0 : factor == 1 ? v : rounding.multiply(factor, v);
}

Numbers zeros(int64_t count) {
  return Numbers(static_cast<size_t>(count));
}

// What dropout multiplies the units and the features of one row with.
struct Dropped {
  std::vector<double> units, features;

  Dropped(const Layer& g, int64_t n)
      : units(g.chances.factors(Drawn::recurrent_dropout, n, g.H, g.computing)),
        features(g.chances.factors(Drawn::input_dropout, n, g.D, g.computing)) {
  }
};

// Step i of one row's run, from the states before it.
class Step {
 public:
  Step(
      const Layer& g,
      const std::vector<double>& states,
      int64_t n,
      int64_t i,
      const Dropped& dropped,
      Rounding rounding)
      : g_(g), n_(n), t_(g.runs.place(n, i)), rounding_(rounding) {
    before_ = g.runs.starts(n, i) ? g.hidden0
        : i > 0                   ? states.data() + g.runs.index(n, i - 1) * g.H
        : g.hidden                ? g.hidden + n * g.H
                                  : nullptr;
    for (size_t j = 0; before_ && j < dropped.units.size(); ++j) {
      seen_.push_back(gate(dropped.units[j], before_[j], rounding));
    }
    for (size_t d = 0; d < dropped.features.size(); ++d) {
      double x = g.x[index() * g.D + static_cast<int64_t>(d)];
      felt_.push_back(gate(dropped.features[d], x, rounding));
    }
  }

  // The row's step among those of all rows.
  int64_t index() const {
    return n_ * g_.L + t_;
  }
  // q_t; zero where there is none.
  double before(int64_t j) const {
    return before_ ? before_[j] : 0;
  }
  // What Whh sees of it: empty where there is none.
  const Numbers& seen() const {
    return seen_;
  }
  // What Wxh sees of x_t.
  const Numbers& felt() const {
    return felt_;
  }
  // k_t.
  double rate(int64_t j) const {
    return keeps(j) ? 0 : g_.leak ? g_.leak[j] : 1;
  }
  bool keeps(int64_t j) const {
    return g_.chances.keeps(n_, t_, j);
  }
  // a_t.
  Uncertain preactivation(int64_t j) const {
    Uncertain z = 0;
    if (!g_.projected) {
      for (int64_t d = 0; d < g_.D; ++d) {
        rounding_.accumulate(
            z, g_.Wxh[j * g_.D + d], felt_[static_cast<size_t>(d)]);
      }
    } else {
      z = g_.x[index() * g_.D + j];
    }
    if (g_.bias) {
      z = rounding_.add(z, g_.bias[j]);
    }
    if (before_) {
      Uncertain recurrent = 0;
      for (int64_t k = 0; k < g_.H; ++k) {
        rounding_.accumulate(
            recurrent, g_.Whh[j * g_.H + k], seen_[static_cast<size_t>(k)]);
      }
      z = rounding_.add(z, recurrent);
    }
    return z;
  }

  // f(a_t).
  Uncertain activated(int64_t j) const {
    return activate(g_.activation, g_.program, preactivation(j), rounding_);
  }

  // h_t.
  Uncertain state(int64_t j) const {
    double k = rate(j);
    Uncertain q = before(j);
    if (k == 0) {
      return q;
    }
    if (k == 1) {
      return activated(j);
    }
    Uncertain h = rounding_.multiply(k, activated(j));
    return before_
        ? rounding_.add(h, rounding_.multiply(rounding_.add(1, -k), q))
        : h;
  }

 private:
  const Layer& g_;
  int64_t n_, t_;
  Rounding rounding_;
  const double* before_; // null: nothing
  Numbers seen_, felt_;
};

} // namespace

Numbers next_states(
    const Layer& g,
    const std::vector<double>& states,
    Rounding rounding) {
  Numbers result = zeros(g.N * g.L * g.H);
  for (int64_t n = 0; n < g.N; ++n) {
    Dropped dropped(g, n);
    for (int64_t i = 0; i < g.runs.length(n); ++i) {
      Step step(g, states, n, i, dropped, rounding);
      for (int64_t j = 0; j < g.H; ++j) {
        result[static_cast<size_t>(step.index() * g.H + j)] = step.state(j);
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
      zeros(g.N * g.H),
      zeros(g.H),
      zeros(g.H)};
  auto add = [&](Numbers& sums, int64_t i, Uncertain term) {
    Uncertain& sum = sums[static_cast<size_t>(i)];
    sum = rounding.add(sum, term);
  };
  for (int64_t n = 0; n < g.N; ++n) {
    Dropped dropped(g, n);
    Numbers dh = zeros(g.H); // what later steps ask of the state of step i
    if (dstate) {
      dh.assign(dstate + n * g.H, dstate + (n + 1) * g.H);
    }
    for (int64_t i = g.runs.length(n) - 1; i >= 0; --i) {
      Step step(g, states, n, i, dropped, rounding);
      Numbers delta = zeros(g.H); // the cotangent of the pre-activations
      Numbers dq = zeros(g.H);    // that of the state before
      for (int64_t j = 0; j < g.H; ++j) {
        int64_t at = step.index() * g.H + j;
        Uncertain total = dh[static_cast<size_t>(j)];
        if (dstates) {
          total = rounding.add(dstates[at], total);
        }
        double k = step.rate(j);
        if (k != 0) {
          // A unit that is not kept has the state f(a) itself.
          bool known = g.activation != Activation::traced && !g.leak;
          Uncertain df = known
              ? slope(g.activation, states[static_cast<size_t>(at)], rounding)
              : slope_at(
                    g.activation, g.program, step.preactivation(j), rounding);
          delta[static_cast<size_t>(j)] =
              rounding.multiply(total, gate(k, df, rounding));
        }
        if (k == 0) {
          dq[static_cast<size_t>(j)] = total;
        } else if (k != 1) {
          dq[static_cast<size_t>(j)] =
              rounding.multiply(rounding.add(1, -k), total);
        }
        if (g.leak && !step.keeps(j)) {
          Uncertain change = step.activated(j);
          change = rounding.add(change, -step.before(j));
          add(d.dleak, j, rounding.multiply(total, change));
        }
      }
      Numbers product = zeros(g.H); // Whh^T delta
      for (int64_t j = 0; j < g.H; ++j) {
        Uncertain e = delta[static_cast<size_t>(j)];
        for (int64_t k = 0; k < g.H; ++k) {
          rounding.accumulate(
              product[static_cast<size_t>(k)], e, g.Whh[j * g.H + k]);
        }
        for (size_t k = 0; k < step.seen().size(); ++k) {
          rounding.accumulate(
              d.dWhh[static_cast<size_t>(j * g.H) + k], e, step.seen()[k]);
        }
        add(d.dbias, j, e);
        Uncertain* dx = d.dx.data() + step.index() * g.D;
        if (g.projected) {
          dx[j] = e;
          continue;
        }
        for (int64_t k = 0; k < g.D; ++k) {
          rounding.accumulate(dx[k], e, g.Wxh[j * g.D + k]);
          rounding.accumulate(
              d.dWxh[static_cast<size_t>(j * g.D + k)],
              e,
              step.felt()[static_cast<size_t>(k)]);
        }
      }
      for (int64_t k = 0; !g.projected && k < g.D; ++k) {
        Uncertain& dx = d.dx[static_cast<size_t>(step.index() * g.D + k)];
        dx = gate(dropped.features[static_cast<size_t>(k)], dx, rounding);
      }
      for (int64_t j = 0; j < g.H; ++j) {
        size_t at = static_cast<size_t>(j);
        dq[at] = rounding.add(
            dq[at], gate(dropped.units[at], product[at], rounding));
      }
      dh = zeros(g.H);
      if (g.runs.starts(n, i)) {
        for (int64_t j = 0; g.hidden0 && j < g.H; ++j) {
          add(d.dhidden0, j, dq[static_cast<size_t>(j)]);
        }
      } else if (!g.runs.truncates(i)) {
        dh = dq;
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

namespace {

typedef std::vector<Numbers> States;

// What a scan adds to s for a passage with states u on its other side; `at` is
// where the passage's factors are. Without u there is none.
States passed(
    const LinearScan& g,
    const States& u,
    int64_t at,
    Rounding rounding) {
  States result(g.s.size(), zeros(g.H));
  if (u.empty()) {
    return result;
  }
  auto gated = [&](const double* factors, const Numbers& of, int64_t j) {
    return gate(
        factors ? factors[at * g.H + j] : 1,
        of[static_cast<size_t>(j)],
        rounding);
  };
  auto add = [&](int to, int64_t j, Uncertain term) {
    Uncertain& sum = result[static_cast<size_t>(to)][static_cast<size_t>(j)];
    sum = rounding.add(sum, term);
  };
  for (const Path& path : g.A) {
    int to = g.transposed ? path.from : path.to;
    int from = g.transposed ? path.to : path.from;
    for (int64_t j = 0; j < g.H; ++j) {
      add(to, j, gated(path.factor, u[static_cast<size_t>(from)], j));
    }
  }
  // What V is multiplied with, and the results.
  Numbers seen = zeros(g.H), slabs = zeros(g.slabs * g.H);
  for (int64_t j = 0; !g.transposed && j < g.H; ++j) {
    seen[static_cast<size_t>(j)] = gated(g.gamma, u[0], j);
  }
  for (const Path& path : g.B) {
    for (int64_t j = 0; g.transposed && j < g.H; ++j) {
      Uncertain& sum = slabs[static_cast<size_t>(path.from * g.H + j)];
      sum = rounding.add(
          sum, gated(path.factor, u[static_cast<size_t>(path.to)], j));
    }
  }
  for (int64_t k = 0; k < g.slabs * g.H; ++k) {
    for (int64_t j = 0; j < g.H; ++j) {
      size_t row = static_cast<size_t>(k), column = static_cast<size_t>(j);
      double weight = g.V[k * g.H + j];
      if (g.transposed) {
        rounding.accumulate(seen[column], weight, slabs[row]);
      } else {
        rounding.accumulate(slabs[row], weight, seen[column]);
      }
    }
  }
  for (int64_t j = 0; g.transposed && j < g.H; ++j) {
    add(0, j, gated(g.gamma, seen, j));
  }
  for (const Path& path : g.B) {
    auto first = slabs.begin() + path.from * g.H;
    const Numbers slab(first, first + g.H);
    for (int64_t j = 0; !g.transposed && j < g.H; ++j) {
      add(path.to, j, gated(path.factor, slab, j));
    }
  }
  return result;
}

} // namespace

std::vector<Numbers> linear_scan(const LinearScan& g, Rounding rounding) {
  const Runs& runs = g.runs;
  States result(g.s.size(), zeros(g.N * g.L * g.H));
  // A row of each state's, zero where a state has none; nothing where no state
  // has one.
  auto rows = [&](const std::vector<const double*>& of, int64_t index) {
    States found;
    bool any = false;
    for (const double* values : of) {
      any = any || values;
      found.push_back(
          values ? Numbers(values + index * g.H, values + (index + 1) * g.H)
                 : zeros(g.H));
    }
    return any ? found : States();
  };
  for (int64_t n = 0; n < g.N; ++n) {
    int64_t length = runs.length(n);
    auto y = [&](int64_t i) {
      States found;
      for (const Numbers& of : result) {
        auto first = of.begin() + runs.index(n, i) * g.H;
        found.push_back(Numbers(first, first + g.H));
      }
      return found;
    };
    for (int64_t number = 0; number < length; ++number) {
      int64_t i = g.transposed ? length - 1 - number : number;
      // The passage is that before step `later`.
      int64_t later = g.transposed ? i + 1 : i;
      States terms(g.s.size(), zeros(g.H));
      if (later < length) {
        bool starts = runs.starts(n, later);
        bool cut = starts || runs.truncates(later);
        States u = g.transposed ? (cut ? States() : y(later))
            : starts            ? rows(g.hidden0, 0)
            : cut               ? States()
            : later > 0         ? y(later - 1)
                                : rows(g.hidden, n);
        terms = passed(g, u, runs.index(n, later), rounding);
      }
      int64_t at = runs.index(n, i) * g.H;
      for (size_t k = 0; k < result.size(); ++k) {
        for (int64_t j = 0; j < g.H; ++j) {
          Uncertain term = terms[k][static_cast<size_t>(j)];
          result[k][static_cast<size_t>(at + j)] =
              g.s[k] ? rounding.add(g.s[k][at + j], term) : term;
        }
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
