// The reference against itself: derivatives against differences of values, the
// linear scan against both, random numbers against published ones.

#include <cmath>
#include <cstdio>

#include "checks.h"
#include "operand.h"
#include "reference.h"

namespace kernel_tests {

namespace {

typedef std::vector<double> Values;

constexpr Rounding kExact = {0, false};
constexpr int kModels = 600;
constexpr double kStep = 1e-5; // of a difference
constexpr double kDifference = 1e-7;
constexpr double kSame = 1e-12; // of two ways to add up the same terms

Values values_of(const Numbers& numbers) {
  Values values;
  for (const Uncertain& number : numbers) {
    values.push_back(number.value);
  }
  return values;
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// A small layer with some of the optional terms.
struct Model {
  static constexpr int64_t N = 3, L = 7, H = 4;
  int64_t D;
  CellKind kind;
  Activation activation;
  bool projected, has_bias, has_bhn, has_leak;
  bool has_first[kMostStates], has_start[kMostStates];
  Values x, Wxh, bias, Whh, bhn, hidden, cell, hidden0, cell0, leak;
  Runs runs{N, L};
  Chances chances;

  explicit Model(Random& random) {
    auto chance = [&] { return random.whole(0, 1) == 1; };
    auto draw = [&](int64_t count) {
      Values values(static_cast<size_t>(count));
      for (double& value : values) {
        value = random.real();
      }
      return values;
    };
    kind = static_cast<CellKind>(random.whole(0, 2));
    bool elman = kind == CellKind::elman;
    activation = static_cast<Activation>(random.whole(0, 4));
    projected = chance() && elman;
    has_bias = chance() && !projected;
    has_bhn = chance() && kind == CellKind::gru;
    has_leak = chance() && elman;
    for (int s = 0; s < kMostStates; ++s) {
      has_first[s] = chance() && s < cell_of(kind).states;
      has_start[s] = chance() && s < cell_of(kind).states;
    }
    D = projected ? H : 3;
    int64_t rows = cell_of(kind).slabs * H;
    x = draw(N * L * D);
    Wxh = draw(rows * D);
    bias = draw(rows);
    Whh = draw(rows * H);
    bhn = draw(H);
    hidden = draw(N * H);
    cell = draw(N * H);
    hidden0 = draw(H);
    cell0 = draw(H);
    leak = draw(H);
    for (double& rate : leak) {
      double any[] = {0, 1, std::fabs(rate), std::fabs(rate)};
      rate = any[random.whole(0, 3)];
    }
    runs.reverse = chance();
    runs.truncate_every = chance() ? random.whole(1, 4) : 0;
    for (int64_t& length : runs.lengths) {
      length = chance() ? L : random.whole(0, L);
    }
    double skipped = chance() ? 0.3 : 0;
    for (char& skip : runs.skip) {
      skip = std::fabs(random.real()) < skipped;
    }
    double often = chance() ? 0.4 : 0;
    for (char& reset : runs.reset) {
      reset = std::fabs(random.real()) < often;
    }
    chances.key[0] = static_cast<uint32_t>(random.whole(0, 0xffffffff));
    chances.key[1] = static_cast<uint32_t>(random.whole(0, 0xffffffff));
    chances.rows = random.whole(1, N);
    chances.zoneout = chance() ? 0.3 : 0;
    chances.zoneout_cell = chance() ? 0.3 : 0;
    chances.recurrent_dropout = chance() ? 0.3 : 0;
    chances.input_dropout = chance() && !projected ? 0.3 : 0;
  }

  int states() const {
    return cell_of(kind).states;
  }

  Layer layer() const {
    return Layer{
        N,
        L,
        D,
        H,
        kind,
        {activation, 0},
        projected,
        x.data(),
        Wxh.data(),
        has_bias ? bias.data() : nullptr,
        Whh.data(),
        has_bhn ? bhn.data() : nullptr,
        {has_first[0] ? hidden.data() : nullptr,
         has_first[1] ? cell.data() : nullptr},
        {has_start[0] ? hidden0.data() : nullptr,
         has_start[1] ? cell0.data() : nullptr},
        has_leak ? leak.data() : nullptr,
        runs,
        chances,
        Type::float64};
  }

  // All states; where blocks begin, those before are taken from `fixed`, if
  // there is such.
  void run(States& all, const States* fixed = nullptr) const {
    Layer g = layer();
    for (int s = 0; s < states(); ++s) {
      all[s].assign(static_cast<size_t>(N * L * H), 0);
    }
    for (int64_t i = 0; i < L; ++i) {
      bool cut = fixed && runs.truncates(i);
      Results next = next_states(g, cut ? *fixed : all, kExact);
      for (int s = 0; s < states(); ++s) {
        for (int64_t n = 0; n < N; ++n) {
          for (int64_t j = 0; i < runs.length(n) && j < H; ++j) {
            size_t at = static_cast<size_t>(runs.index(n, i) * H + j);
            all[s][at] = next.states[s][at].value;
          }
        }
      }
    }
  }

  // Each row's state after its last step.
  Values last(int s, const States& all) const {
    Values result(static_cast<size_t>(N * H));
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t j = 0; j < H; ++j) {
        size_t to = static_cast<size_t>(n * H + j);
        int64_t length = runs.length(n);
        if (length > 0) {
          int64_t from = runs.index(n, length - 1) * H + j;
          result[to] = all[s][static_cast<size_t>(from)];
        } else if (has_first[s]) {
          result[to] = s == 0 ? hidden[to] : cell[to];
        }
      }
    }
    return result;
  }
};

Values drawn(size_t count, Random& random) {
  Values values(count);
  for (double& value : values) {
    value = random.real();
  }
  return values;
}

bool differ(double a, double b, double allowed) {
  return !(std::fabs(a - b) <= allowed * (1 + std::fabs(b)));
}

// The derivative of `function` of the model along `direction` of one of its
// arrays, from two values.
template <class Function>
double difference(
    Model& m,
    Values Model::* of,
    const Values& direction,
    Function function) {
  const Values before = m.*of;
  double found[2];
  for (int side : {0, 1}) {
    for (size_t i = 0; i < before.size(); ++i) {
      (m.*of)[i] = before[i] + (side == 0 ? kStep : -kStep) * direction[i];
    }
    found[side] = function();
  }
  m.*of = before;
  return (found[0] - found[1]) / (2 * kStep);
}

// The same of the linear scan with the factors of the model's derivative, for
// these gradients, states and cotangents.
std::string check_scan(
    Model& m,
    const States& states,
    const Gradients& d,
    const Values& dstates,
    const Values& dstate,
    Random& random) {
  const Layer layer = m.layer();
  // With blocks of one step a cotangent of ones leaves k f'(a) alone.
  Layer single = layer;
  single.runs.truncate_every = 1;
  const Values ones(states[0].size(), 1);
  const Values beta =
      values_of(gradients(single, states, {{ones.data()}, {}}, kExact).dx);
  Values alpha, gamma;
  for (int64_t n = 0; n < m.N; ++n) {
    auto seen =
        m.chances.factors(Drawn::recurrent_dropout, n, m.H, Type::float64);
    for (int64_t t = 0; t < m.L; ++t) {
      for (int64_t j = 0; j < m.H; ++j) {
        size_t at = static_cast<size_t>(j);
        double rate = m.has_leak ? m.leak[at] : 1;
        bool skips = m.runs.skip[static_cast<size_t>(n * m.L + t)] != 0;
        alpha.push_back(skips || m.chances.keeps(n, t, j) ? 1 : 1 - rate);
        gamma.push_back(seen[at]);
      }
    }
  }
  auto scanned = [&](bool transposed,
                     const Values& s,
                     const double* hidden,
                     const double* of_hidden0) {
    return values_of(linear_scan(
        LinearScan{
            m.N,
            m.L,
            m.H,
            1,
            transposed,
            {s.data()},
            m.Whh.data(),
            {{0, 0, alpha.data()}},
            {{0, 0, beta.data()}},
            gamma.data(),
            {hidden},
            {of_hidden0},
            m.runs},
        kExact)[0]);
  };

  Values s = dstates;
  for (int64_t n = 0; n < m.N; ++n) {
    for (int64_t j = 0; m.runs.length(n) > 0 && j < m.H; ++j) {
      int64_t at = m.runs.index(n, m.runs.length(n) - 1) * m.H + j;
      s[static_cast<size_t>(at)] += dstate[static_cast<size_t>(n * m.H + j)];
    }
  }
  const Values lambda = scanned(true, s, nullptr, nullptr);
  for (size_t i = 0; i < lambda.size(); ++i) {
    double expected = m.runs.length(static_cast<int64_t>(i) / m.L / m.H) == 0
        ? 0
        : beta[i] * lambda[i];
    if (differ(d.dx[i].value, expected, kSame)) {
      return "the transposed scan";
    }
  }

  const Values dhidden = drawn(m.hidden.size(), random);
  const Values dhidden0 = drawn(m.hidden0.size(), random);
  auto cotangent = [&] {
    States now;
    m.run(now, &states);
    return inner(dstates, now[0]);
  };
  Values direction = drawn(m.x.size(), random);
  for (size_t i = 0; i < s.size(); ++i) {
    s[i] = beta[i] * direction[i];
  }
  double expected = difference(m, &Model::x, direction, cotangent);
  if (m.has_first[0]) {
    expected += difference(m, &Model::hidden, dhidden, cotangent);
  }
  if (m.has_start[0]) {
    expected += difference(m, &Model::hidden0, dhidden0, cotangent);
  }
  Values tangent = scanned(
      false,
      s,
      m.has_first[0] ? dhidden.data() : nullptr,
      m.has_start[0] ? dhidden0.data() : nullptr);
  if (differ(inner(dstates, tangent), expected, kDifference)) {
    return "the scan";
  }
  return "";
}

// What is wrong of one model; empty where nothing is.
std::string check_model(Random& random) {
  Model m(random);
  States states;
  m.run(states);
  Values of_states[kMostStates], of_last[kMostStates];
  for (int s = 0; s < m.states(); ++s) {
    of_states[s] = drawn(states[0].size(), random);
    of_last[s] = drawn(m.hidden.size(), random);
  }
  // A derivative takes the states before a block for constants.
  auto total = [&] {
    States now;
    m.run(now, &states);
    double sum = 0;
    for (int s = 0; s < m.states(); ++s) {
      sum += inner(of_states[s], now[s]) + inner(of_last[s], m.last(s, now));
    }
    return sum;
  };

  const Layer layer = m.layer();
  Gradients d = gradients(
      layer,
      states,
      Cotangents{
          {of_states[0].data(), of_states[1].data()},
          {of_last[0].data(), of_last[1].data()}},
      kExact);
  struct Part {
    const char* name;
    bool there;
    Values Model::* of;
    const Numbers& gradient;
  };
  const Part parts[] = {
      {"x", true, &Model::x, d.dx},
      {"Wxh", !m.projected, &Model::Wxh, d.dWxh},
      {"bias", m.has_bias, &Model::bias, d.dbias},
      {"Whh", true, &Model::Whh, d.dWhh},
      {"bhn", m.has_bhn, &Model::bhn, d.dbhn},
      {"hidden", m.has_first[0], &Model::hidden, d.dfirst[0]},
      {"cell", m.has_first[1], &Model::cell, d.dfirst[1]},
      {"hidden0", m.has_start[0], &Model::hidden0, d.dstarts[0]},
      {"cell0", m.has_start[1], &Model::cell0, d.dstarts[1]},
      {"leak", m.has_leak, &Model::leak, d.dleak}};
  for (const Part& part : parts) {
    Values direction = drawn((m.*part.of).size(), random);
    if (part.there &&
        differ(
            inner(values_of(part.gradient), direction),
            difference(m, part.of, direction, total),
            kDifference)) {
      return std::string("the gradient of ") + part.name;
    }
  }
  return m.projected
      ? check_scan(m, states, d, of_states[0], of_last[0], random)
      : "";
}

// As Random123, the authors' own code, publishes them.
struct Known {
  uint32_t counter[4], key[4], of_13_rounds[4], of_20_rounds[4];
};
constexpr Known kKnown[] = {
    {{0, 0, 0, 0},
     {0, 0, 0, 0},
     {0x531c7e4f, 0x39491ee5, 0x2c855a92, 0x3d6abf9a},
     {0x9c6ca96a, 0xe17eae66, 0xfc10ecd4, 0x5256a7d8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xc4189358, 0x1c9cc83a, 0xd5881c67, 0x6a0a89e0},
     {0x2a881696, 0x57012287, 0xf6c7446e, 0xa16a6732}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0, 0x082efa98, 0xec4e6c89},
     {0x4aa71d8f, 0x734738c2, 0x431fc6a8, 0xae6debf1},
     {0x59cd1dbb, 0xb8879579, 0x86b5d00c, 0xac8b6d84}}};

bool gives(const Known& known, int rounds, const uint32_t (&expected)[4]) {
  auto words = [](const uint32_t (&w)[4]) {
    return Words{w[0], w[1], w[2], w[3]};
  };
  return threefry(words(known.counter), words(known.key), rounds) ==
      words(expected);
}

} // namespace

std::vector<std::string> check_reference() {
  std::vector<std::string> faults;
  for (const Known& known : kKnown) {
    if (!gives(known, 13, known.of_13_rounds) ||
        !gives(known, 20, known.of_20_rounds)) {
      faults.push_back("Threefry gives other numbers than are published");
    }
  }
  Random random(5);
  for (int i = 0; i < kModels; ++i) {
    std::string fault = check_model(random);
    if (!fault.empty()) {
      faults.push_back(
          "the reference is wrong of " + fault + ", model " +
          std::to_string(i));
    }
  }
  return faults;
}

} // namespace kernel_tests
