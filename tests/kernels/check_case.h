// One case at work: what its operands are, and how results are compared.

#pragma once

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

inline constexpr Partition kAlone = {Split::none, 1, 1};
inline constexpr Sequence kNoSequence = {nullptr, nullptr, 0, 0};
inline constexpr Matrix kNoMatrix = {nullptr, 0, 0};
inline constexpr Vector kNoVector = {nullptr, 0};
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

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

  std::string run();

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

  // Where the steps of `runs` are not skipped.
  Sequence mask(const Runs& runs) {
    courses_.push_back(std::make_unique<CourseOperand>(c_, runs, random_));
    return courses_.back()->mask();
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

  // A first state. Of rows that have steps: all where an episode starts with
  // the first, else where absent(n, j).
  template <class Absent>
  void poison_first(Operand& hidden, Absent absent) const {
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

  // `ignored`: elements that may be anything.
  void compare(
      const char* name,
      const Output& got,
      const Numbers& expected,
      const std::vector<bool>& ignored = {}) {
    expect(got.intact(), "memory around a result was changed");
    double largest = 0;
    for (Uncertain e : expected) {
      largest = std::fmax(largest, std::fabs(e.value));
    }
    double least = std::ldexp(1.0, format(compute_type()).least);
    double vanishing = kVanishing * rounding_.unit * largest +
        kVanishes * least + ulp(type_, 0);
    for (int64_t i = 0; i < got.count() && fault_.empty(); ++i) {
      if (!ignored.empty() && ignored[static_cast<size_t>(i)]) {
        continue;
      }
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

  // Of check_case.cpp.
  void matmul();
  void sum_of_products();
  // Factors of passages: some are 0, and what is of no passage is NaN.
  const Operand& draw_factors(double scale = 1);
  // Some of the paths from `from` places to `to` places, or all.
  std::vector<Path> draw_paths(
      int64_t to,
      int64_t from,
      bool with_factors,
      double scale,
      int& count,
      ScanPath (&paths)[kMostScanPaths]);
  void scan();
  void pointwise();
  void mask();

  // The layer's operands, for the kernel and for the reference.
  struct Operands {
    RecurrenceArgs args;
    Layer layer;
    Operand& x;
  };
  // What a forward pass leaves.
  struct Left {
    Output states, cells, last, last_cell, saved;
  };

  // Of check_recurrence.cpp.
  Operands layer();
  Left room(int64_t kept, int64_t kept_cells) const;
  ForwardArgs forward_args(const Operands& o, const Left& left) const;
  // The kept ones of all states, as an operand of the backward pass.
  const Operand& kept_of(const Output& all, int state);
  // Elements of what is saved that belong to no step.
  std::vector<bool> unsaved() const;
  // What is the same of a part of the states, beside whole results.
  void check_kept(const Output& all, const Output& some, int state);
  // Of (0, 1), and both ends.
  std::vector<double> drawn_leak();
  std::vector<double> factors(Drawn what, int64_t n) const;
  // Padding, features that are dropped, and inputs of units that are kept.
  void poison_x(Operand& x) const;
  // States of a row that the forward pass is asked to leave.
  int64_t kept_every(int state) const;
  int64_t kept(int state) const;
  // Which of them is that after step i of row n's run; negative: none.
  int64_t number(int64_t n, int64_t i, int state) const;
  // Whether what backward needs beside the states is kept.
  bool keeps_saved() const;
  const Cell& cell() const {
    return cell_of(c_.of_kind());
  }
  bool has_cells() const {
    return cell().states > 1;
  }
  Type compute_type() const;
  void forward();
  // The states after the last steps, from those after all steps.
  void check_last(const double* first, const Output& all, const Output& last);
  void backward();

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

} // namespace kernel_tests
