#include "operand.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define FORBIDS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FORBIDS 1
#endif
#endif
#if defined(FORBIDS)
#include <sanitizer/asan_interface.h>
#endif

namespace kernel_tests {

namespace {

constexpr size_t kGuard = 256; // more than any vector

// NaN of every type, and not the NaN that memory is filled with.
char guard_byte(size_t i) {
  return static_cast<char>(i % 2 == 0 ? 0xfe : 0xff);
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t total = 1;
  for (int64_t n : shape) {
    total *= n;
  }
  return total;
}

} // namespace

Guarded::Guarded(size_t size, size_t offset) : size_(size) {
  size_t whole = (kGuard + offset + size + kGuard + 63) / 64 * 64;
  block_ = static_cast<char*>(std::aligned_alloc(64, whole));
  if (!block_) {
    std::abort();
  }
  data_ = block_ + kGuard + offset;
  for (char* p = block_; p < data_; ++p) {
    *p = guard_byte(static_cast<size_t>(p - block_));
  }
  std::memset(data_, 0xff, size);
  for (size_t i = 0; i < kGuard; ++i) {
    data_[size + i] = guard_byte(i);
  }
  forbid(true);
}

Guarded::~Guarded() {
  forbid(false);
  std::free(block_);
}

void Guarded::forbid(bool forbidden) const {
#if defined(FORBIDS)
  auto mark =
      forbidden ? __asan_poison_memory_region : __asan_unpoison_memory_region;
  mark(block_, static_cast<size_t>(data_ - block_));
  mark(data_ + size_, kGuard);
#else
  (void)forbidden;
#endif
}

bool Guarded::intact() const {
  forbid(false);
  bool intact = true;
  for (const char* p = block_; p < data_; ++p) {
    intact &= *p == guard_byte(static_cast<size_t>(p - block_));
  }
  for (size_t i = 0; i < kGuard; ++i) {
    intact &= data_[size_ + i] == guard_byte(i);
  }
  forbid(true);
  return intact;
}

Operand::Operand(
    Type type,
    std::vector<int64_t> shape,
    double scale,
    Layout layout,
    Random& random)
    : type_(type), shape_(std::move(shape)) {
  values_.resize(static_cast<size_t>(product(shape_)));
  arrange(layout, random);
  for (size_t i = 0; i < values_.size(); ++i) {
    put(type_, at(static_cast<int64_t>(i)), scale * random.real());
  }
  // Where a stride is zero, the last of several values stays.
  for (size_t i = 0; i < values_.size(); ++i) {
    values_[i] = get(type_, at(static_cast<int64_t>(i)));
  }
}

Operand::Operand(
    Type type,
    std::vector<int64_t> shape,
    const std::vector<double>& values,
    Layout layout,
    Random& random)
    : type_(type), shape_(std::move(shape)), values_(values) {
  arrange(layout == Layout::broadcast ? Layout::reversed : layout, random);
  for (size_t i = 0; i < values_.size(); ++i) {
    put(type_, at(static_cast<int64_t>(i)), values_[i]);
  }
}

void Operand::arrange(Layout layout, Random& random) {
  size_t axes = shape_.size();
  std::vector<size_t> order(axes);
  for (size_t a = 0; a < axes; ++a) {
    order[a] = a;
  }
  if (layout != Layout::contiguous) {
    for (size_t a = axes; a-- > 1;) {
      size_t other =
          static_cast<size_t>(random.whole(0, static_cast<int64_t>(a)));
      std::swap(order[a], order[other]);
    }
  }
  bool gaps = layout >= Layout::gaps;
  strides_.assign(axes, 0);
  int64_t stride = gaps ? random.whole(1, 3) : 1;
  for (size_t k = axes; k-- > 0;) {
    int64_t n = shape_[order[k]];
    strides_[order[k]] = stride;
    stride = stride * (n > 0 ? n : 1) + (gaps ? random.whole(0, 5) : 0);
  }
  for (int64_t& s : strides_) {
    int64_t chance = random.whole(0, 2);
    if (layout >= Layout::reversed && chance == 0) {
      s = -s;
    } else if (layout == Layout::broadcast && chance == 1) {
      s = 0;
    }
  }
  int64_t lowest = 0, highest = 0;
  for (size_t a = 0; a < axes; ++a) {
    int64_t last = strides_[a] * (shape_[a] > 0 ? shape_[a] - 1 : 0);
    (last < 0 ? lowest : highest) += last;
  }
  int64_t bytes = format(type_).bytes;
  size_t extent =
      values_.empty() ? 0 : static_cast<size_t>((highest - lowest + 1) * bytes);
  // Elements are aligned to their size, and to no more.
  memory_ = std::make_unique<Guarded>(
      extent, static_cast<size_t>(random.whole(0, 7) * bytes));
  origin_ = memory_->data() - (values_.empty() ? 0 : lowest * bytes);
  // The offsets of rows follow no rule: there may be several axes of them.
  row_offsets_.resize(static_cast<size_t>(shape_[0]));
  for (size_t n = 0; n < row_offsets_.size(); ++n) {
    row_offsets_[n] = static_cast<int64_t>(n) * strides_[0];
  }
  if (gaps && axes == 3) {
    for (size_t n = row_offsets_.size(); n-- > 1;) {
      size_t other =
          static_cast<size_t>(random.whole(0, static_cast<int64_t>(n)));
      std::swap(row_offsets_[n], row_offsets_[other]);
    }
  }
}

char* Operand::at(int64_t i) const {
  int64_t offset = 0;
  for (size_t a = shape_.size(); a-- > 1;) {
    offset += i % shape_[a] * strides_[a];
    i /= shape_[a];
  }
  offset += row_offsets_[static_cast<size_t>(i)];
  return origin_ + offset * format(type_).bytes;
}

void Operand::set(int64_t i, double value) {
  put(type_, at(i), value);
  values_[static_cast<size_t>(i)] = get(type_, at(i));
}

Sequence Operand::sequence() const {
  return {origin_, row_offsets_.data(), strides_[1], strides_[2]};
}

Matrix Operand::matrix() const {
  return {origin_, strides_[0], strides_[1]};
}

Vector Operand::vector() const {
  return {origin_, strides_[0]};
}

bool Operand::intact() const {
  bool intact = memory_->intact();
  for (size_t i = 0; i < values_.size(); ++i) {
    double now = get(type_, at(static_cast<int64_t>(i)));
    intact &= now == values_[i] || (now != now && values_[i] != values_[i]);
  }
  return intact;
}

Output::Output(Type type, int64_t count)
    : type_(type),
      count_(count),
      memory_(static_cast<size_t>(count * format(type).bytes), 16) {
}

double Output::operator[](int64_t i) const {
  return get(type_, memory_.data() + i * format(type_).bytes);
}

std::vector<double> Output::values() const {
  std::vector<double> all(static_cast<size_t>(count_));
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = (*this)[static_cast<int64_t>(i)];
  }
  return all;
}

bool Output::same_bits(int64_t i, const Output& other, int64_t j, int64_t count)
    const {
  int64_t bytes = format(type_).bytes;
  return count == 0 ||
      std::memcmp(
          memory_.data() + i * bytes,
          other.memory_.data() + j * bytes,
          static_cast<size_t>(count * bytes)) == 0;
}

} // namespace kernel_tests
