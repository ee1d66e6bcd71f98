// The course of a call somewhere in memory, and its random choices.

#pragma once

#include <memory>

#include "case.h"
#include "operand.h"
#include "runs.h"
#include "threefry.h"

namespace kernel_tests {

// Numbers by row and place, with the rows in any order and gaps, or neither.
template <class Number>
class Table {
 public:
  Table(int64_t rows, int64_t places, bool gaps, Random& random)
      : offsets_(static_cast<size_t>(rows)),
        stride_(gaps ? random.whole(1, 3) : 1) {
    int64_t row = places * stride_ + (gaps ? random.whole(0, 4) : 0);
    memory_ = std::make_unique<Guarded>(
        static_cast<size_t>(rows * row) * sizeof(Number), sizeof(Number));
    for (int64_t n = 0; n < rows; ++n) {
      offsets_[static_cast<size_t>(n)] = n * row;
    }
    for (size_t n = offsets_.size(); gaps && n-- > 1;) {
      size_t other =
          static_cast<size_t>(random.whole(0, static_cast<int64_t>(n)));
      std::swap(offsets_[n], offsets_[other]);
    }
  }

  Number& at(int64_t row, int64_t place) {
    return data()[offsets_[static_cast<size_t>(row)] + place * stride_];
  }
  Number* data() const {
    return reinterpret_cast<Number*>(memory_->data());
  }
  int64_t stride() const {
    return stride_;
  }
  Sequence sequence() const {
    return {data(), offsets_.data(), stride_, 0};
  }
  bool intact() const {
    return memory_->intact();
  }

 private:
  std::vector<int64_t> offsets_;
  int64_t stride_;
  std::unique_ptr<Guarded> memory_;
};

// The runs of a case, at random.
Runs drawn_runs(const Case& c, Random& random);

// `runs` as a kernel takes them.
class CourseOperand {
 public:
  CourseOperand(const Case& c, const Runs& runs, Random& random);

  Course course() const;
  // Where steps are not skipped.
  Sequence mask() const;
  bool intact() const {
    return lengths_.intact() && reset_.intact() && mask_.intact();
  }

 private:
  const Case& c_;
  Table<int32_t> lengths_;
  Table<bool> reset_;
  Table<bool> mask_;
};

// The random choices of a case.
class DrawsOperand {
 public:
  DrawsOperand(const Case& c, Random& random);

  const Chances& chances() const {
    return chances_;
  }
  Draws draws() const;
  bool intact() const {
    return key_.intact();
  }

 private:
  Chances chances_;
  Table<uint32_t> key_;
};

} // namespace kernel_tests
