// Memory for the kernels to read and write, with guards around it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "element.h"
#include "kernels/kernels.h"

namespace kernel_tests {

using namespace mlx_recurrent::kernels;

// The same numbers on every machine: the distributions of <random> are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {
  }
  // A whole number of [first, last].
  int64_t whole(int64_t first, int64_t last) {
    return first +
        static_cast<int64_t>(
               engine_() % static_cast<uint64_t>(last - first + 1));
  }
  // A number of [-1, 1).
  double real() {
    return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1;
  }

 private:
  std::mt19937_64 engine_;
};

// Exactly `size` bytes of NaN of every type, `offset` bytes past a cache line.
// Around them are guards, which the address sanitizer forbids to touch.
class Guarded {
 public:
  explicit Guarded(size_t size, size_t offset = 0);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  char* data() const {
    return data_;
  }
  size_t size() const {
    return size_;
  }
  // Whether nothing was written around it.
  bool intact() const;

 private:
  void forbid(bool forbidden) const;

  size_t size_;
  char* block_;
  char* data_;
};

enum class Layout : int {
  contiguous,
  transposed, // the axes in any order
  gaps,       // also with elements between, and rows in any order
  reversed,   // also with negative strides
  broadcast,  // also with strides of zero
};
constexpr int kLayouts = 5;

// An operand somewhere in memory; what lies between its elements is NaN.
class Operand {
 public:
  // Drawn from [-scale, scale); every axis is of `shape`.
  Operand(
      Type type,
      std::vector<int64_t> shape,
      double scale,
      Layout layout,
      Random& random);
  // With these values, in row-major order.
  Operand(
      Type type,
      std::vector<int64_t> shape,
      const std::vector<double>& values,
      Layout layout,
      Random& random);

  // Logical values in row-major order.
  const std::vector<double>& values() const {
    return values_;
  }
  double operator[](int64_t i) const {
    return values_[static_cast<size_t>(i)];
  }
  void set(int64_t i, double value); // also where it lies

  Sequence sequence() const; // of 3 axes
  Matrix matrix() const;     // of 2
  Vector vector() const;     // of 1
  // Whether neither it nor what is around it was written to.
  bool intact() const;

 private:
  void arrange(Layout layout, Random& random);
  char* at(int64_t i) const;

  Type type_;
  std::vector<int64_t> shape_, strides_, row_offsets_;
  std::vector<double> values_;
  std::unique_ptr<Guarded> memory_;
  char* origin_; // of the element whose indices are all zero
};

// A result, row-major; NaN until it is written.
class Output {
 public:
  Output(Type type, int64_t count);
  void* data() const {
    return memory_.data();
  }
  int64_t count() const {
    return count_;
  }
  double operator[](int64_t i) const;
  std::vector<double> values() const;
  bool intact() const {
    return memory_.intact();
  }
  // Bits of `count` elements from `i` on equal those of `other` from `j` on.
  bool same_bits(int64_t i, const Output& other, int64_t j, int64_t count)
      const;

 private:
  Type type_;
  int64_t count_;
  Guarded memory_;
};

} // namespace kernel_tests
