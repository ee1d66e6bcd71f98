#include "reference.h"

namespace kernel_tests {

namespace {

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
      : units(factors(g, Drawn::recurrent_dropout, n, g.H)),
        features(factors(g, Drawn::input_dropout, n, g.D)) {
  }

 private:
  static std::vector<double> factors(
      const Layer& g,
      Drawn what,
      int64_t n,
      int64_t count) {
    return g.chances.factors(what, n, count, computing(g.type));
  }
};

// Step i of one row's run, from the states before it.
class Step {
 public:
  Step(
      const Layer& g,
      const States& states,
      int64_t n,
      int64_t i,
      const Dropped& dropped,
      Rounding rounding)
      : g_(g),
        n_(n),
        t_(g.runs.place(n, i)),
        skipped_(g.runs.skips(n, i)),
        rounding_(rounding) {
    for (int s = 0; s < g.cell().states; ++s) {
      before_[s] = g.runs.starts(n, i) ? g.starts[s]
          : i > 0      ? states[s].data() + g.runs.index(n, i - 1) * g.H
          : g.first[s] ? g.first[s] + n * g.H
                       : nullptr;
      after_[s] = states[s].data() + index() * g.H;
    }
    for (size_t j = 0; before_[0] && j < dropped.units.size(); ++j) {
      seen_.push_back(gate(dropped.units[j], before_[0][j], rounding));
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
  // A state before the step; zero where there is none.
  double before(int s, int64_t j) const {
    return before_[s] ? before_[s][j] : 0;
  }
  // What Whh sees of the first: empty where there is none.
  const Numbers& seen() const {
    return seen_;
  }
  // What Wxh sees of x_t.
  const Numbers& felt() const {
    return felt_;
  }
  // The part of the cell's state that becomes the state.
  double rate(int s, int64_t j) const {
    return keeps(s, j) ? 0 : s == 0 && g_.leak ? g_.leak[j] : 1;
  }
  bool keeps(int s, int64_t j) const {
    return skipped_ || g_.chances.keeps(n_, t_, j, s);
  }
  bool skipped() const {
    return skipped_;
  }

  Unit unit(int64_t j) const {
    Unit unit = {};
    unit.f = g_.f;
    unit.type = g_.type;
    unit.bhn = g_.bhn ? g_.bhn[j] : 0;
    for (int k = 0; k < g_.cell().slabs; ++k) {
      unit.z[k] = projected(k * g_.H + j);
      unit.u[k] = recurrent(k * g_.H + j);
    }
    for (int s = 0; s < g_.cell().states; ++s) {
      unit.q[s] = before(s, j);
      unit.after[s] = rate(s, j) == 1 && !g_.leak ? after_[s] + j : nullptr;
    }
    return unit;
  }

  // What the cell gives, and with that the states after the step.
  UnitResult result(int64_t j) const {
    return g_.cell().step(unit(j), rounding_);
  }
  Uncertain state(int s, int64_t j, const UnitResult& result) const {
    double k = rate(s, j);
    Uncertain q = before(s, j);
    if (k == 0) {
      return q;
    }
    if (k == 1) {
      return result.y[s];
    }
    Uncertain h = rounding_.multiply(k, result.y[s]);
    return before_[s]
        ? rounding_.add(h, rounding_.multiply(rounding_.add(1, -k), q))
        : h;
  }

 private:
  // A row of Wxh times what it sees, and its bias.
  Uncertain projected(int64_t row) const {
    Uncertain z = 0;
    if (!g_.projected) {
      for (int64_t d = 0; d < g_.D; ++d) {
        rounding_.accumulate(
            z, g_.Wxh[row * g_.D + d], felt_[static_cast<size_t>(d)]);
      }
    } else {
      z = g_.x[index() * g_.D + row];
    }
    return g_.bias ? rounding_.add(z, g_.bias[row]) : z;
  }

  // A row of Whh times what it sees.
  Uncertain recurrent(int64_t row) const {
    Uncertain sum = 0;
    for (size_t k = 0; k < seen_.size(); ++k) {
      rounding_.accumulate(
          sum, g_.Whh[row * g_.H + static_cast<int64_t>(k)], seen_[k]);
    }
    return sum;
  }

  const Layer& g_;
  int64_t n_, t_;
  bool skipped_;
  Rounding rounding_;
  const double* before_[kMostStates] = {}; // null: nothing
  const double* after_[kMostStates] = {};
  Numbers seen_, felt_;
};

} // namespace

Results next_states(const Layer& g, const States& states, Rounding rounding) {
  const Cell& cell = g.cell();
  Results found;
  for (int s = 0; s < cell.states; ++s) {
    found.states[s] = zeros(g.N * g.L * g.H);
  }
  found.saved = zeros(g.N * g.L * cell.saved * g.H);
  for (int64_t n = 0; n < g.N; ++n) {
    Dropped dropped(g, n);
    for (int64_t i = 0; i < g.runs.length(n); ++i) {
      Step step(g, states, n, i, dropped, rounding);
      for (int64_t j = 0; j < g.H; ++j) {
        UnitResult unit = step.result(j);
        for (int s = 0; s < cell.states; ++s) {
          found.states[s][static_cast<size_t>(step.index() * g.H + j)] =
              step.state(s, j, unit);
        }
        for (int k = 0; k < cell.saved; ++k) {
          int64_t at = (step.index() * cell.saved + k) * g.H + j;
          found.saved[static_cast<size_t>(at)] = unit.saved[k];
        }
      }
    }
  }
  return found;
}

namespace {

// Back-propagation: the sums, and what later steps ask of the states.
class Adjoint {
 public:
  Adjoint(
      const Layer& g,
      const States& states,
      const Cotangents& cotangents,
      Rounding rounding)
      : g_(g),
        cell_(g.cell()),
        states_(states),
        cotangents_(cotangents),
        rounding_(rounding) {
    int64_t rows = cell_.slabs * g.H;
    d_.dx = zeros(g.N * g.L * g.D);
    d_.dWxh = zeros(rows * g.D);
    d_.dbias = zeros(rows);
    d_.dWhh = zeros(rows * g.H);
    d_.dbhn = zeros(g.H);
    d_.dleak = zeros(g.H);
    for (int s = 0; s < cell_.states; ++s) {
      d_.dfirst[s] = zeros(g.N * g.H);
      d_.dstarts[s] = zeros(g.H);
    }
  }

  Gradients run() {
    for (int64_t n = 0; n < g_.N; ++n) {
      Dropped dropped(g_, n);
      for (int s = 0; s < cell_.states; ++s) {
        asked_[s] = zeros(g_.H);
        if (const double* last = cotangents_.last[s]) {
          asked_[s].assign(last + n * g_.H, last + (n + 1) * g_.H);
        }
      }
      for (int64_t i = g_.runs.length(n) - 1; i >= 0; --i) {
        back(n, i, dropped);
      }
      for (int s = 0; s < cell_.states; ++s) {
        for (int64_t j = 0; j < g_.H; ++j) {
          d_.dfirst[s][static_cast<size_t>(n * g_.H + j)] =
              asked_[s][static_cast<size_t>(j)];
        }
      }
    }
    return d_;
  }

 private:
  void add(Numbers& sums, int64_t i, Uncertain term) const {
    Uncertain& sum = sums[static_cast<size_t>(i)];
    sum = rounding_.add(sum, term);
  }

  // Over one step of a row.
  void back(int64_t n, int64_t i, const Dropped& dropped) {
    Step step(g_, states_, n, i, dropped, rounding_);
    Numbers dq[kMostStates];
    for (int s = 0; s < cell_.states; ++s) {
      dq[s] = zeros(g_.H);
    }
    Numbers seen = zeros(g_.H); // Whh^T times the cotangents of its rows
    for (int64_t j = 0; j < g_.H; ++j) {
      UnitCotangents unit = back_unit(step, j, dq);
      if (step.skipped()) {
        continue; // its input may be NaN
      }
      if (cell_.has_bhn) {
        add(d_.dbhn, j, unit.u[cell_.slabs - 1]);
      }
      for (int k = 0; k < cell_.slabs; ++k) {
        back_row_of_Whh(step, k * g_.H + j, unit.u[k], seen);
        back_row_of_Wxh(step, k * g_.H + j, unit.z[k]);
      }
    }
    for (int64_t d = 0; !g_.projected && d < g_.D; ++d) {
      Uncertain& dx = d_.dx[static_cast<size_t>(step.index() * g_.D + d)];
      dx = gate(dropped.features[static_cast<size_t>(d)], dx, rounding_);
    }
    for (size_t j = 0; j < seen.size(); ++j) {
      dq[0][j] =
          rounding_.add(dq[0][j], gate(dropped.units[j], seen[j], rounding_));
    }
    for (int s = 0; s < cell_.states; ++s) {
      asked_[s] = zeros(g_.H);
      if (g_.runs.starts(n, i)) {
        for (int64_t j = 0; g_.starts[s] && j < g_.H; ++j) {
          add(d_.dstarts[s], j, dq[s][static_cast<size_t>(j)]);
        }
      } else if (!g_.runs.truncates(i)) {
        asked_[s] = dq[s];
      }
    }
  }

  // Back over what the cell makes of unit j; dq but for what goes through Whh.
  UnitCotangents back_unit(
      const Step& step,
      int64_t j,
      Numbers (&dq)[kMostStates]) {
    size_t at = static_cast<size_t>(j);
    Uncertain dy[kMostStates];
    bool changes = false; // whether anything of what the cell gives is taken
    for (int s = 0; s < cell_.states; ++s) {
      Uncertain total = asked_[s][at];
      if (const double* all = cotangents_.states[s]) {
        total = rounding_.add(all[step.index() * g_.H + j], total);
      }
      double k = step.rate(s, j);
      dy[s] = gate(k, total, rounding_);
      changes = changes || k != 0;
      if (k == 0) {
        dq[s][at] = total;
      } else if (k != 1) {
        dq[s][at] = rounding_.multiply(rounding_.add(1, -k), total);
      }
      if (s == 0 && g_.leak && !step.keeps(0, j)) {
        Uncertain change = step.result(j).y[0];
        change = rounding_.add(change, -step.before(0, j));
        add(d_.dleak, j, rounding_.multiply(total, change));
      }
    }
    if (!changes) {
      return {}; // also where its input is NaN
    }
    UnitCotangents unit = cell_.pull(step.unit(j), dy, rounding_);
    for (int s = 0; s < cell_.states; ++s) {
      dq[s][at] = rounding_.add(dq[s][at], unit.q[s]);
    }
    return unit;
  }

  void back_row_of_Whh(
      const Step& step,
      int64_t row,
      Uncertain e,
      Numbers& seen) {
    for (int64_t k = 0; k < g_.H; ++k) {
      rounding_.accumulate(
          seen[static_cast<size_t>(k)], e, g_.Whh[row * g_.H + k]);
    }
    for (size_t k = 0; k < step.seen().size(); ++k) {
      rounding_.accumulate(
          d_.dWhh[static_cast<size_t>(row * g_.H) + k], e, step.seen()[k]);
    }
  }

  void back_row_of_Wxh(const Step& step, int64_t row, Uncertain e) {
    add(d_.dbias, row, e);
    Uncertain* dx = d_.dx.data() + step.index() * g_.D;
    if (g_.projected) {
      dx[row] = e;
      return;
    }
    for (int64_t d = 0; d < g_.D; ++d) {
      rounding_.accumulate(dx[d], e, g_.Wxh[row * g_.D + d]);
      rounding_.accumulate(
          d_.dWxh[static_cast<size_t>(row * g_.D + d)],
          e,
          step.felt()[static_cast<size_t>(d)]);
    }
  }

  const Layer& g_;
  const Cell& cell_;
  const States& states_;
  const Cotangents& cotangents_;
  Rounding rounding_;
  Gradients d_;
  Numbers asked_[kMostStates]; // of the states after a step, by later ones
};

} // namespace

Gradients gradients(
    const Layer& g,
    const States& states,
    const Cotangents& cotangents,
    Rounding rounding) {
  return Adjoint(g, states, cotangents, rounding).run();
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

typedef std::vector<Numbers> ScanStates;

// What a scan adds to s for a passage with states u on its other side; `at` is
// where the passage's factors are. Without u there is none.
ScanStates passed(
    const LinearScan& g,
    const ScanStates& u,
    int64_t at,
    Rounding rounding) {
  ScanStates result(g.s.size(), zeros(g.H));
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
  ScanStates result(g.s.size(), zeros(g.N * g.L * g.H));
  // A row of each state's, zero where a state has none; nothing where no state
  // has one.
  auto rows = [&](const std::vector<const double*>& of, int64_t index) {
    ScanStates found;
    bool any = false;
    for (const double* values : of) {
      any = any || values;
      found.push_back(
          values ? Numbers(values + index * g.H, values + (index + 1) * g.H)
                 : zeros(g.H));
    }
    return any ? found : ScanStates();
  };
  for (int64_t n = 0; n < g.N; ++n) {
    int64_t length = runs.length(n);
    auto y = [&](int64_t i) {
      ScanStates found;
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
      ScanStates terms(g.s.size(), zeros(g.H));
      if (later < length) {
        bool starts = runs.starts(n, later);
        bool cut = starts || runs.truncates(later);
        ScanStates u = g.transposed ? (cut ? ScanStates() : y(later))
            : starts                ? rows(g.hidden0, 0)
            : cut                   ? ScanStates()
            : later > 0             ? y(later - 1)
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
