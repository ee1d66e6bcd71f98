// A case is right where the result is that of the reference, the same to the
// bit for every way of sharing the work, and nothing beside it was written to.
// What is to have no part in a result is NaN: padding, units that are dropped
// or kept, a first state where an episode starts.

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>

#include "call.h"
#include "checks.h"
#include "course_operand.h"
#include "operand.h"
#include "reference.h"
#include "tolerances.h"
#include "traced.h"

namespace kernel_tests {

namespace {

constexpr Partition kAlone = {Split::none, 1, 1};
constexpr Sequence kNoSequence = {nullptr, nullptr, 0, 0};
constexpr Matrix kNoMatrix = {nullptr, 0, 0};
constexpr Vector kNoVector = {nullptr, 0};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class Check {
 public:
  Check(const KernelTable& table, const Case& c, Largest (&largest)[kEntries])
      : c_(c),
        type_(static_cast<Type>(c.type)),
        kernels_(table.types[c.type]),
        rounding_{
            format(type_).computing,
            static_cast<Layout>(c.layout) == Layout::broadcast},
        random_(static_cast<uint64_t>(c.seed)),
        partition_{
            static_cast<Split>(c.split),
            static_cast<int>(c.threads),
            static_cast<int>(c.slices)},
        function_(traced(c.program).function.program()),
        derivative_(traced(c.program).derivative.program()),
        runs_(drawn_runs(c, random_)),
        draws_(c, random_),
        largest_(largest[c.entry]) {
  }

  std::string run() {
    switch (c_.which()) {
      case Entry::matmul:
        matmul();
        break;
      case Entry::outer_sum:
        sum_of_products();
        break;
      case Entry::forward:
        forward();
        break;
      case Entry::backward:
        backward();
        break;
      case Entry::linear_scan:
        scan();
        break;
      case Entry::pointwise:
        pointwise();
        break;
      case Entry::mask:
        mask();
        break;
    }
    for (const auto& operand : operands_) {
      expect(operand->intact(), "an operand, or memory around it, was changed");
    }
    for (const auto& course : courses_) {
      expect(course->intact(), "memory around the course was changed");
    }
    expect(draws_.intact(), "memory around the key was changed");
    return fault_;
  }

 private:
  Operand& draw(std::vector<int64_t> shape, double scale) {
    operands_.push_back(
        std::make_unique<Operand>(
            type_, std::move(shape), scale, layout(), random_));
    return *operands_.back();
  }

  Operand& place(
      std::vector<int64_t> shape,
      const std::vector<double>& values) {
    operands_.push_back(
        std::make_unique<Operand>(
            type_, std::move(shape), values, layout(), random_));
    return *operands_.back();
  }

  // `runs` as a kernel takes them.
  Course course(const Runs& runs) {
    courses_.push_back(std::make_unique<CourseOperand>(c_, runs, random_));
    return courses_.back()->course();
  }

  Layout layout() const {
    return static_cast<Layout>(c_.layout);
  }

  // Whether one element can change alone.
  bool elements_are_apart() const {
    return layout() != Layout::broadcast;
  }

  // Calls use(n, t) for the places where rows have no step.
  template <class Use>
  void each_padding(Use use) const {
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t t = runs_.length(n); t < c_.L; ++t) {
        use(n, t);
      }
    }
  }

  // NaN at place t of row n.
  void poison(Operand& of, int64_t n, int64_t t, int64_t features) const {
    for (int64_t i = 0; i < features; ++i) {
      of.set((n * c_.L + t) * features + i, kNaN);
    }
  }

  // Of rows that have steps: all where an episode starts with the first, else
  // where absent(n, j).
  template <class Absent>
  void poison_hidden(Operand& hidden, Absent absent) const {
    for (int64_t n = 0; elements_are_apart() && n < c_.N; ++n) {
      for (int64_t j = 0; runs_.length(n) > 0 && j < c_.H; ++j) {
        if (runs_.starts(n, 0) || absent(n, j)) {
          hidden.set(n * c_.H + j, kNaN);
        }
      }
    }
  }

  void poison_padding(Operand& of, int64_t features) const {
    if (elements_are_apart()) {
      each_padding([&](int64_t n, int64_t t) { poison(of, n, t, features); });
    }
  }

  // The largest number that enters.
  double size() const {
    switch (static_cast<Contents>(c_.contents)) {
      case Contents::ordinary:
        return 1;
      case Contents::large:
        return type_ == Type::float16 ? 6 : 40; // its sums have a bound
      case Contents::small:
        // Its square, many times over, is less than the smallest number.
        return std::ldexp(1.0, format(type_).least / 2 - 16);
      case Contents::zero:
        return 0;
    }
    return 0;
  }

  // The size of weights that keep states from growing over time, and from
  // dying. Equal weights add up, and so may a few over many steps.
  double gain(int64_t terms) const {
    double count = static_cast<double>(terms > 0 ? terms : 1);
    return layout() == Layout::broadcast || c_.L > 100 ? 1 / count
                                                       : 0.6 / std::sqrt(count);
  }

  void expect(bool right, const char* message) {
    if (!right && fault_.empty()) {
      fault_ = message;
    }
  }

  template <class Args>
  void run_kernel(
      const Kernel<Args>& kernel,
      const Args& args,
      const Partition& partition,
      int members) {
    // MLX's memory is aligned to 16 bytes.
    size_t offset = static_cast<size_t>(16 * random_.whole(0, 3));
    expect(
        call(kernel, args, partition, members, offset),
        "memory around the scratch memory was changed");
  }

  void compare(const char* name, const Output& got, const Numbers& expected) {
    expect(got.intact(), "memory around a result was changed");
    double largest = 0;
    for (Uncertain e : expected) {
      largest = std::fmax(largest, std::fabs(e.value));
    }
    double least = std::ldexp(1.0, format(compute_type()).least);
    double vanishing = kVanishing * rounding_.unit * largest +
        kVanishes * least + ulp(type_, 0);
    for (int64_t i = 0; i < got.count() && fault_.empty(); ++i) {
      Uncertain e = expected[static_cast<size_t>(i)];
      double error = std::fabs(got[i] - e.value);
      // Rounding to the type: half a place, of the larger of both numbers.
      double rounding = format(type_).bytes == 2
          ? 0.5 * ulp(type_, std::fabs(e.value) + error)
          : 0;
      double allowed = rounding_.allowed(e) + rounding + vanishing;
      if (error <= allowed) {
        double used = (error - rounding) / (allowed - rounding);
        if (used > largest_.error) {
          largest_ = {used, c_};
        }
        continue;
      }
      char text[200];
      std::snprintf(
          text,
          sizeof text,
          "%s[%lld] is %.9g, not %.9g: error %.3g, allowed %.3g",
          name,
          static_cast<long long>(i),
          got[i],
          e.value,
          error,
          allowed);
      fault_ = text;
    }
  }

  void same(const char* message, const Output& a, const Output& b) {
    expect(a.same_bits(0, b, 0, a.count()), message);
  }

  // The places (N, L) of which results are to stay the same.
  typedef std::vector<bool> Places;

  void same_places(
      const char* message,
      const Places& places,
      int64_t features,
      const Output& a,
      const Output& b) {
    for (size_t k = 0; k < places.size(); ++k) {
      int64_t i = static_cast<int64_t>(k) * features;
      expect(!places[k] || a.same_bits(i, b, i, features), message);
    }
  }

  // Calls use(course, places) with other lengths of all rows but one, which is
  // to have the same results.
  template <class Use>
  void with_other_lengths(Use use) {
    if (c_.lengths == 0 || c_.N < 2) {
      return;
    }
    int64_t row = random_.whole(0, c_.N - 1);
    Runs other = runs_;
    other.lengths = drawn_runs(c_, random_).lengths;
    other.lengths[static_cast<size_t>(row)] = runs_.length(row);
    Places places(static_cast<size_t>(c_.N * c_.L), false);
    for (int64_t t = 0; t < c_.L; ++t) {
      places[static_cast<size_t>(row * c_.L + t)] = true;
    }
    use(course(other), places);
  }

  // Makes one part of a row's run NaN in `of`, between steps where nothing
  // passes, and calls use(places) with all other places.
  template <class Use>
  void with_poisoned_part(
      Operand& of,
      int64_t features,
      bool truncation_divides,
      Use use) {
    if (c_.N == 0 || !elements_are_apart()) {
      return;
    }
    int64_t n = random_.whole(0, c_.N - 1);
    int64_t length = runs_.length(n);
    if (length == 0) {
      return;
    }
    auto divides = [&](int64_t i) {
      return runs_.starts(n, i) || (truncation_divides && runs_.truncates(i));
    };
    int64_t first = random_.whole(0, length - 1);
    int64_t last = first + 1;
    while (first > 0 && !divides(first)) {
      --first;
    }
    while (last < length && !divides(last)) {
      ++last;
    }
    Places places(static_cast<size_t>(c_.N * c_.L), true);
    for (int64_t i = first; i < last; ++i) {
      poison(of, n, runs_.place(n, i), features);
      places[static_cast<size_t>(runs_.index(n, i))] = false;
    }
    use(places);
  }

  void matmul() {
    const Operand& x = draw({c_.N, c_.L, c_.D}, size());
    const Operand& w = draw({c_.H, c_.D}, 1);
    const Operand& bias = draw({c_.H}, 1);
    MatmulArgs args = {
        c_.N,
        c_.L,
        c_.D,
        c_.H,
        x.sequence(),
        w.matrix(),
        c_.bias ? bias.vector() : kNoVector,
        nullptr};
    Output out(type_, c_.N * c_.L * c_.H), alone(type_, out.count());
    args.out = out.data();
    run_kernel(kernels_.matmul, args, partition_, members());
    compare(
        "out",
        out,
        product(
            c_.N * c_.L,
            c_.D,
            c_.H,
            x.values().data(),
            w.values().data(),
            c_.bias ? bias.values().data() : nullptr,
            rounding_));
    args.out = alone.data();
    run_kernel(kernels_.matmul, args, kAlone, 1);
    same("out depends on how it is shared", out, alone);
  }

  void sum_of_products() {
    const Operand& a = draw({c_.N, c_.L, c_.H}, size());
    const Operand& b = draw({c_.N, c_.L, c_.D}, 1);
    OuterSumArgs args = {
        c_.N, c_.L, c_.H, c_.D, a.sequence(), b.sequence(), nullptr};
    Output out(type_, c_.H * c_.D), alone(type_, out.count());
    args.out = out.data();
    run_kernel(kernels_.outer_sum, args, partition_, members());
    compare(
        "out",
        out,
        outer_sum(
            c_.N * c_.L,
            c_.H,
            c_.D,
            a.values().data(),
            b.values().data(),
            rounding_));
    args.out = alone.data();
    run_kernel(kernels_.outer_sum, args, kAlone, 1);
    same("out depends on how it is shared", out, alone);
  }

  // Factors of passages: some are 0, and what is of no passage is NaN.
  const Operand& draw_factors() {
    Operand& factors = draw({c_.N, c_.L, c_.H}, 1);
    if (!elements_are_apart()) {
      return factors;
    }
    for (int64_t i = 0; i < c_.N * c_.L * c_.H; ++i) {
      if (random_.whole(0, 3) == 0) {
        factors.set(i, 0);
      }
    }
    poison_padding(factors, c_.H);
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t i = 0; i < runs_.length(n); ++i) {
        bool passes = runs_.starts(n, i) ? c_.hidden0 && !c_.transposed
            : i == 0                     ? c_.hidden != 0
                                         : !runs_.truncates(i);
        if (!passes) {
          poison(factors, n, runs_.place(n, i), c_.H);
        }
      }
    }
    return factors;
  }

  void scan() {
    Operand& s = draw({c_.N, c_.L, c_.H}, size());
    poison_padding(s, c_.H);
    const Operand& V = draw({c_.H, c_.H}, gain(c_.H));
    const Operand& alpha = draw_factors();
    const Operand& beta = draw_factors();
    const Operand& gamma = draw_factors();
    Operand& hidden = draw({c_.N, 1, c_.H}, size());
    const Operand& hidden0 = draw({c_.H}, size());
    poison_hidden(hidden, [&](int64_t n, int64_t j) {
      int64_t at = runs_.index(n, 0) * c_.H + j;
      return c_.gamma && gamma[at] == 0 && (!c_.alpha || alpha[at] == 0);
    });
    LinearScanArgs args = {
        c_.N,
        c_.L,
        c_.H,
        c_.transposed != 0,
        course(runs_),
        s.sequence(),
        V.matrix(),
        c_.alpha ? alpha.sequence() : kNoSequence,
        c_.beta ? beta.sequence() : kNoSequence,
        c_.gamma ? gamma.sequence() : kNoSequence,
        c_.hidden ? hidden.sequence() : kNoSequence,
        c_.hidden0 ? hidden0.vector() : kNoVector,
        nullptr};
    Output out(type_, c_.N * c_.L * c_.H), alone(type_, out.count());
    args.out = out.data();
    run_kernel(kernels_.linear_scan, args, partition_, members());
    compare(
        "out",
        out,
        linear_scan(
            LinearScan{
                c_.N,
                c_.L,
                c_.H,
                c_.transposed != 0,
                s.values().data(),
                V.values().data(),
                c_.alpha ? alpha.values().data() : nullptr,
                c_.beta ? beta.values().data() : nullptr,
                c_.gamma ? gamma.values().data() : nullptr,
                c_.hidden ? hidden.values().data() : nullptr,
                c_.hidden0 ? hidden0.values().data() : nullptr,
                runs_},
            rounding_));
    args.out = alone.data();
    run_kernel(kernels_.linear_scan, args, kAlone, 1);
    same("out depends on how it is shared", out, alone);

    const Course own = args.course;
    with_other_lengths([&](const Course& other, const Places& places) {
      args.course = other;
      run_kernel(kernels_.linear_scan, args, kAlone, 1);
      same_places("a row depends on others", places, c_.H, alone, out);
    });
    args.course = own;
    with_poisoned_part(s, c_.H, true, [&](const Places& places) {
      run_kernel(kernels_.linear_scan, args, kAlone, 1);
      same_places("an episode depends on others", places, c_.H, alone, out);
    });
  }

  void pointwise() {
    int64_t count = c_.N * c_.L * c_.H;
    const Operand& a = draw({count}, 3);
    const Operand& cotangent = draw({count}, 1);
    const void* inputs[2] = {a.vector().data, cotangent.vector().data};
    for (const Program* program : {&function_, &derivative_}) {
      Output out(type_, count), alone(type_, count);
      PointwiseArgs args = {count, program, {inputs[0], inputs[1]}, out.data()};
      run_kernel(kernels_.pointwise, args, partition_, members());
      compare(
          "out",
          out,
          program == &function_
              ? traced_values(c_.program, a.values(), rounding_)
              : traced_products(
                    c_.program, a.values(), cotangent.values(), rounding_));
      args.out = alone.data();
      run_kernel(kernels_.pointwise, args, kAlone, 1);
      same("out depends on how it is shared", out, alone);
    }
  }

  void mask() {
    Drawn what = static_cast<Drawn>(c_.drawn);
    const Chances& chances = draws_.chances();
    Output out(type_, c_.N * c_.L * c_.H);
    run_kernel(
        kernels_.mask,
        MaskArgs{c_.N, c_.L, c_.H, what, draws_.draws(), out.data()},
        partition_,
        members());
    expect(out.intact(), "memory around the mask was changed");
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t t = 0; t < c_.L; ++t) {
        auto right = what == Drawn::zoneout
            ? chances.updates(n, t, c_.H)
            : chances.factors(what, n, c_.H, compute_type());
        for (int64_t j = 0; j < c_.H; ++j) {
          expect(
              out[(n * c_.L + t) * c_.H + j] ==
                  rounded(type_, right[static_cast<size_t>(j)]),
              "the mask is not that of its key");
        }
      }
    }
  }

  // The layer's operands, for the kernel and for the reference.
  struct Operands {
    RecurrenceArgs args;
    Layer layer;
    Operand& x;
  };

  Operands layer() {
    const Chances& chances = draws_.chances();
    Operand& x = draw({c_.N, c_.L, c_.D}, size());
    const Operand& Wxh = draw({c_.H, c_.D}, gain(c_.D));
    const Operand& bias = draw({c_.H}, 0.5);
    // What is left of the units grows by as much as is dropped.
    const Operand& Whh =
        draw({c_.H, c_.H}, gain(c_.H) * (1 - chances.recurrent_dropout));
    Operand& hidden = draw({c_.N, 1, c_.H}, size());
    const Operand& hidden0 = draw({c_.H}, size());
    const Operand& leak = place({c_.H}, drawn_leak());
    poison_x(x);
    poison_hidden(hidden, [&](int64_t n, int64_t j) {
      return !c_.leak && !c_.zoneout &&
          factors(Drawn::recurrent_dropout, n)[static_cast<size_t>(j)] == 0;
    });
    Activation activation = static_cast<Activation>(c_.activation);
    bool is_traced = activation == Activation::traced;
    return Operands{
        RecurrenceArgs{
            c_.N,
            c_.L,
            c_.D,
            c_.H,
            activation,
            c_.projected != 0,
            x.sequence(),
            c_.projected ? kNoMatrix : Wxh.matrix(),
            c_.bias ? bias.vector() : kNoVector,
            Whh.matrix(),
            c_.hidden ? hidden.sequence() : kNoSequence,
            c_.hidden0 ? hidden0.vector() : kNoVector,
            c_.leak ? leak.vector() : kNoVector,
            course(runs_),
            draws_.draws(),
            0,
            false,
            is_traced ? &function_ : nullptr,
            is_traced ? &derivative_ : nullptr},
        Layer{
            c_.N,
            c_.L,
            c_.D,
            c_.H,
            activation,
            c_.program,
            c_.projected != 0,
            x.values().data(),
            Wxh.values().data(),
            c_.bias ? bias.values().data() : nullptr,
            Whh.values().data(),
            c_.hidden ? hidden.values().data() : nullptr,
            c_.hidden0 ? hidden0.values().data() : nullptr,
            c_.leak ? leak.values().data() : nullptr,
            runs_,
            chances,
            compute_type()},
        x};
  }

  // Of (0, 1), and both ends.
  std::vector<double> drawn_leak() {
    std::vector<double> rates(static_cast<size_t>(c_.H));
    for (double& rate : rates) {
      double inside = rounded(type_, std::fabs(random_.real()));
      double any[] = {0, 1, inside, inside, inside, inside};
      rate = any[random_.whole(0, 5)];
    }
    return rates;
  }

  std::vector<double> factors(Drawn what, int64_t n) const {
    return draws_.chances().factors(
        what, n, what == Drawn::input_dropout ? c_.D : c_.H, compute_type());
  }

  // Padding, features that are dropped, and inputs of units that are kept.
  void poison_x(Operand& x) const {
    poison_padding(x, c_.D);
    for (int64_t n = 0; elements_are_apart() && n < c_.N; ++n) {
      auto felt = factors(Drawn::input_dropout, n);
      for (int64_t t = 0; t < c_.L; ++t) {
        for (int64_t d = 0; d < c_.D; ++d) {
          if (felt[static_cast<size_t>(d)] == 0 ||
              (c_.projected && draws_.chances().keeps(n, t, d))) {
            x.set((n * c_.L + t) * c_.D + d, kNaN);
          }
        }
      }
    }
  }

  // States of a row that the forward pass is asked to leave.
  int64_t kept() const {
    return kept_states(c_.L, c_.checkpoint_every, c_.latest_checkpoint != 0);
  }
  // Which of them is that after step i of row n's run; negative: none.
  int64_t number(int64_t n, int64_t i) const {
    int64_t length = runs_.length(n), every = c_.checkpoint_every;
    if (every == 0) {
      return runs_.place(n, i);
    }
    if (c_.latest_checkpoint) {
      return i + 1 == (length - 1) / every * every ? 0 : -1;
    }
    return (i + 1) % every == 0 || i + 1 == length ? i / every : -1;
  }

  // Whether the pre-activations are kept.
  bool keeps_preactivations() const {
    bool needed =
        c_.leak || c_.activation == static_cast<int64_t>(Activation::traced);
    return needed && c_.checkpoint_every == 0 && c_.preactivations;
  }
  Type compute_type() const {
    return type_ == Type::float64 ? Type::float64 : Type::float32;
  }

  void forward() {
    Operands o = layer();
    Output all(type_, c_.N * c_.L * c_.H);
    Output all_a(compute_type(), c_.N * c_.L * c_.H);
    ForwardArgs whole = {
        o.args,
        all.data(),
        nullptr,
        keeps_preactivations() ? all_a.data() : nullptr};
    run_kernel(kernels_.forward, whole, kAlone, 1);
    expect(all_a.intact(), "memory around the pre-activations was changed");
    compare("states", all, next_states(o.layer, all.values(), rounding_));

    o.args.checkpoint_every = c_.checkpoint_every;
    o.args.latest_checkpoint = c_.latest_checkpoint != 0;
    Output some(type_, c_.N * kept() * c_.H);
    Output last(type_, c_.N * c_.H);
    Output some_a(compute_type(), c_.N * c_.L * c_.H);
    run_kernel(
        kernels_.forward,
        ForwardArgs{
            o.args,
            some.data(),
            c_.state ? last.data() : nullptr,
            keeps_preactivations() ? some_a.data() : nullptr},
        partition_,
        members());
    expect(some_a.intact(), "memory around the pre-activations was changed");
    expect(
        !keeps_preactivations() || some_a.same_bits(0, all_a, 0, all_a.count()),
        "pre-activations depend on how they are shared");
    expect(some.intact(), "memory around the states was changed");
    expect(last.intact(), "memory around the state was changed");
    check_last(o.layer, all, last);
    if (c_.checkpoint_every == 0) {
      same("states depend on how they are shared", all, some);
    }
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t i = 0; i < runs_.length(n); ++i) {
        int64_t from = runs_.index(n, i) * c_.H;
        int64_t to = (n * kept() + number(n, i)) * c_.H;
        expect(
            number(n, i) < 0 || some.same_bits(to, all, from, c_.H),
            "states depend on which are kept, or on how they are shared");
      }
    }

    Output other(type_, all.count());
    whole.states = other.data();
    with_other_lengths([&](const Course& course, const Places& places) {
      whole.layer.course = course;
      run_kernel(kernels_.forward, whole, kAlone, 1);
      same_places("a row depends on others", places, c_.H, all, other);
    });
    whole.layer.course = o.args.course;
    with_poisoned_part(o.x, c_.D, false, [&](const Places& places) {
      run_kernel(kernels_.forward, whole, kAlone, 1);
      same_places("an episode depends on others", places, c_.H, all, other);
    });
  }

  // The states after the last steps, from those after all steps.
  void check_last(const Layer& layer, const Output& all, const Output& last) {
    for (int64_t n = 0; c_.state && n < c_.N; ++n) {
      int64_t length = runs_.length(n);
      for (int64_t j = 0; j < c_.H; ++j) {
        double got = last[n * c_.H + j];
        double right = length > 0 ? all[runs_.index(n, length - 1) * c_.H + j]
            : layer.hidden        ? layer.hidden[n * c_.H + j]
                                  : 0;
        expect(
            got == right || (std::isnan(got) && std::isnan(right)),
            "the state is not that after the last step");
      }
    }
  }

  void backward() {
    Operands o = layer();
    Output states(type_, c_.N * c_.L * c_.H);
    Output kept_a(compute_type(), c_.N * c_.L * c_.H);
    run_kernel(
        kernels_.forward,
        ForwardArgs{
            o.args,
            states.data(),
            nullptr,
            keeps_preactivations() ? kept_a.data() : nullptr},
        kAlone,
        1);
    Operand& cotangents = draw({c_.N, c_.L, c_.H}, size());
    poison_padding(cotangents, c_.H);
    const Operand& of_state = draw({c_.N, 1, c_.H}, size());

    // What the forward pass would have left.
    std::vector<double> left(static_cast<size_t>(c_.N * kept() * c_.H), kNaN);
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t i = 0; i < runs_.length(n); ++i) {
        for (int64_t j = 0; number(n, i) >= 0 && j < c_.H; ++j) {
          left[static_cast<size_t>((n * kept() + number(n, i)) * c_.H + j)] =
              states[runs_.index(n, i) * c_.H + j];
        }
      }
    }
    const Operand& kept_operand = place({c_.N, kept(), c_.H}, left);
    o.args.checkpoint_every = c_.checkpoint_every;
    o.args.latest_checkpoint = c_.latest_checkpoint != 0;

    int64_t possible = want_all;
    possible &= c_.projected ? ~want_dWxh : ~0;
    possible &= c_.bias ? ~0 : ~want_dbias;
    possible &= c_.hidden ? ~0 : ~want_dhidden;
    possible &= c_.hidden0 ? ~0 : ~want_dhidden0;
    possible &= c_.leak ? ~0 : ~want_dleak;
    int64_t wanted = c_.wanted & possible;
    struct Result {
      Wanted bit;
      const char* name;
      void* BackwardArgs::* place;
      Numbers Gradients::* expected;
      int64_t count;
    };
    const Result results[] = {
        {want_dx, "dx", &BackwardArgs::dx, &Gradients::dx, c_.N * c_.L * c_.D},
        {want_dWxh, "dWxh", &BackwardArgs::dWxh, &Gradients::dWxh, c_.H * c_.D},
        {want_dbias, "dbias", &BackwardArgs::dbias, &Gradients::dbias, c_.H},
        {want_dWhh, "dWhh", &BackwardArgs::dWhh, &Gradients::dWhh, c_.H * c_.H},
        {want_dhidden,
         "dhidden",
         &BackwardArgs::dhidden,
         &Gradients::dhidden,
         c_.N * c_.H},
        {want_dhidden0,
         "dhidden0",
         &BackwardArgs::dhidden0,
         &Gradients::dhidden0,
         c_.H},
        {want_dleak, "dleak", &BackwardArgs::dleak, &Gradients::dleak, c_.H}};

    BackwardArgs args = {};
    args.layer = o.args;
    args.states = kept_operand.sequence();
    args.dstates = c_.dstates ? cotangents.sequence() : kNoSequence;
    args.dstate = c_.state ? of_state.sequence() : kNoSequence;
    std::vector<int64_t> rows(static_cast<size_t>(c_.N));
    for (int64_t n = 0; n < c_.N; ++n) {
      rows[static_cast<size_t>(n)] = n * c_.L * c_.H;
    }
    args.preactivations = keeps_preactivations()
        ? Sequence{kept_a.data(), rows.data(), c_.H, 1}
        : kNoSequence;
    BackwardArgs alone = args;
    std::vector<std::unique_ptr<Output>> outputs, outputs_alone;
    for (const Result& r : results) {
      outputs.push_back(std::make_unique<Output>(type_, r.count));
      outputs_alone.push_back(std::make_unique<Output>(type_, r.count));
      if (wanted & r.bit) {
        args.*r.place = outputs.back()->data();
      }
      if (possible & r.bit) {
        alone.*r.place = outputs_alone.back()->data();
      }
    }
    run_kernel(kernels_.backward, args, partition_, members());
    // One thread that forms the same sums, and all of them.
    const Partition one_thread = {
        partition_.slices > 1 ? Split::batch : Split::none,
        1,
        partition_.slices};
    run_kernel(kernels_.backward, alone, one_thread, 1);
    Gradients expected = gradients(
        o.layer,
        states.values(),
        c_.dstates ? cotangents.values().data() : nullptr,
        c_.state ? of_state.values().data() : nullptr,
        rounding_);
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Result& r = results[i];
      if (wanted & r.bit) {
        compare(r.name, *outputs[i], expected.*r.expected);
        same(
            "a gradient depends on which are wanted, or on how it is shared",
            *outputs[i],
            *outputs_alone[i]);
      }
    }

    const Output& dx = *outputs_alone[0];
    Output other(type_, dx.count());
    alone.dx = other.data();
    with_other_lengths([&](const Course& course, const Places& places) {
      alone.layer.course = course;
      run_kernel(kernels_.backward, alone, one_thread, 1);
      same_places("dx of a row depends on others", places, c_.D, dx, other);
    });
    alone.layer.course = o.args.course;
    if (c_.dstates) {
      with_poisoned_part(cotangents, c_.H, true, [&](const Places& places) {
        run_kernel(kernels_.backward, alone, one_thread, 1);
        same_places(
            "dx of an episode depends on others", places, c_.D, dx, other);
      });
    }
  }

  int members() const {
    return static_cast<int>(c_.members);
  }

  const Case& c_;
  Type type_;
  const TypedKernels& kernels_;
  Rounding rounding_;
  Random random_;
  Partition partition_;
  Program function_, derivative_; // of a traced activation
  Runs runs_;
  DrawsOperand draws_;
  Largest& largest_;
  std::vector<std::unique_ptr<Operand>> operands_;
  std::vector<std::unique_ptr<CourseOperand>> courses_;
  std::string fault_;
};

} // namespace

std::string check_case(
    const KernelTable& table,
    const Case& c,
    Largest (&largest)[kEntries]) {
  return Check(table, c, largest).run();
}

} // namespace kernel_tests
