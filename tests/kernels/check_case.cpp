// A case is right where the result is that of the reference, the same to the
// bit for every way of sharing the work, and nothing beside it was written to.

#include <cmath>
#include <cstdio>
#include <memory>

#include "call.h"
#include "checks.h"
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
    }
    for (const auto& operand : operands_) {
      expect(operand->intact(), "an operand, or memory around it, was changed");
    }
    return fault_;
  }

 private:
  const Operand& draw(std::vector<int64_t> shape, double scale) {
    operands_.push_back(
        std::make_unique<Operand>(
            type_, std::move(shape), scale, layout(), random_));
    return *operands_.back();
  }

  const Operand& place(
      std::vector<int64_t> shape,
      const std::vector<double>& values) {
    operands_.push_back(
        std::make_unique<Operand>(
            type_, std::move(shape), values, layout(), random_));
    return *operands_.back();
  }

  Layout layout() const {
    return static_cast<Layout>(c_.layout);
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

  void matmul() {
    const Operand& x = draw({c_.N, c_.L, c_.D}, 1);
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
    const Operand& a = draw({c_.N, c_.L, c_.H}, 1);
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

  void scan() {
    std::vector<int64_t> shape = {c_.N, c_.L, c_.H};
    const Operand& s = draw(shape, 1);
    const Operand& V = draw({c_.H, c_.H}, gain(c_.H));
    const Operand& beta = draw(shape, 1);
    const Operand& gamma = draw(shape, 1);
    const Operand& hidden = draw({c_.N, 1, c_.H}, 1);
    LinearScanArgs args = {
        c_.N,
        c_.L,
        c_.H,
        c_.reverse != 0,
        s.sequence(),
        V.matrix(),
        c_.beta ? beta.sequence() : kNoSequence,
        c_.gamma ? gamma.sequence() : kNoSequence,
        c_.hidden ? hidden.sequence() : kNoSequence,
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
                c_.reverse != 0,
                s.values().data(),
                V.values().data(),
                c_.beta ? beta.values().data() : nullptr,
                c_.gamma ? gamma.values().data() : nullptr,
                c_.hidden ? hidden.values().data() : nullptr},
            rounding_));
    args.out = alone.data();
    run_kernel(kernels_.linear_scan, args, kAlone, 1);
    same("out depends on how it is shared", out, alone);
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

  // The layer's operands, for the kernel and for the reference.
  struct Operands {
    RecurrenceArgs args;
    Layer layer;
  };

  Operands layer() {
    const Operand& x = draw({c_.N, c_.L, c_.D}, 1);
    const Operand& Wxh = draw({c_.H, c_.D}, gain(c_.D));
    const Operand& bias = draw({c_.H}, 0.5);
    const Operand& Whh = draw({c_.H, c_.H}, gain(c_.H));
    const Operand& hidden = draw({c_.N, 1, c_.H}, 1);
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
            0,
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
            c_.hidden ? hidden.values().data() : nullptr}};
  }

  // Step t is kept as state number t / every.
  bool kept(int64_t t) const {
    return c_.keep_every == 0 || (t + 1) % c_.keep_every == 0 || t + 1 == c_.L;
  }
  int64_t number(int64_t t) const {
    return c_.keep_every == 0 ? t : t / c_.keep_every;
  }

  // Whether the pre-activations are kept, and what they are made of.
  bool keeps_preactivations() const {
    return c_.activation == static_cast<int64_t>(Activation::traced) &&
        c_.keep_every == 0 && c_.preactivations;
  }
  Type compute_type() const {
    return type_ == Type::float64 ? Type::float64 : Type::float32;
  }

  void forward() {
    Operands o = layer();
    Output all(type_, c_.N * c_.L * c_.H);
    Output all_a(compute_type(), c_.N * c_.L * c_.H);
    void* all_kept = keeps_preactivations() ? all_a.data() : nullptr;
    run_kernel(
        kernels_.forward,
        ForwardArgs{o.args, all.data(), nullptr, all_kept},
        kAlone,
        1);
    expect(all_a.intact(), "memory around the pre-activations was changed");
    compare("states", all, next_states(o.layer, all.values(), rounding_));

    o.args.keep_every = c_.keep_every;
    int64_t count = kept_states(c_.L, c_.keep_every);
    Output some(type_, c_.N * count * c_.H);
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
    for (int64_t i = 0; c_.state && i < c_.N * c_.H; ++i) {
      int64_t n = i / c_.H;
      double right = c_.L > 0 ? all[(n * c_.L + c_.L - 1) * c_.H + i % c_.H]
          : c_.hidden         ? o.layer.hidden[i]
                              : 0;
      expect(
          last[i] == right || (std::isnan(last[i]) && std::isnan(right)),
          "the state is not that after the last step");
    }
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t t = 0; t < c_.L; ++t) {
        int64_t from = (n * c_.L + t) * c_.H;
        int64_t to = (n * count + number(t)) * c_.H;
        expect(
            !kept(t) || some.same_bits(to, all, from, c_.H),
            "states depend on which are kept, or on how they are shared");
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
    int64_t count = kept_states(c_.L, c_.keep_every);
    const Operand& cotangents = draw({c_.N, c_.L, c_.H}, 1);
    const Operand& of_state = draw({c_.N, 1, c_.H}, 1);

    // What the forward pass would have left.
    std::vector<double> left(static_cast<size_t>(c_.N * count * c_.H));
    for (int64_t n = 0; n < c_.N; ++n) {
      for (int64_t t = 0; t < c_.L; ++t) {
        for (int64_t i = 0; kept(t) && i < c_.H; ++i) {
          int64_t of_kept = (n * count + number(t)) * c_.H + i;
          left[static_cast<size_t>(of_kept)] =
              states[(n * c_.L + t) * c_.H + i];
        }
      }
    }
    const Operand& kept_operand = place({c_.N, count, c_.H}, left);
    o.args.keep_every = c_.keep_every;

    int64_t possible = want_all;
    possible &= c_.projected ? ~want_dWxh : ~0;
    possible &= c_.bias ? ~0 : ~want_dbias;
    possible &= c_.hidden ? ~0 : ~want_dhidden;
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
         c_.N * c_.H}};

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
    run_kernel(
        kernels_.backward,
        alone,
        Partition{
            partition_.slices > 1 ? Split::batch : Split::none,
            1,
            partition_.slices},
        1);
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
  Largest& largest_;
  std::vector<std::unique_ptr<Operand>> operands_;
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
