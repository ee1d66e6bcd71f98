#include "mlx_faults/allocation.h"

#include <cstdint>
#include <new>

#include "mlx/allocator.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

namespace {

void expect_countable(const mx::array& a) {
  auto bytes = static_cast<int64_t>(a.itemsize());
  for (int size : a.shape()) {
    if (size == 0) {
      return;
    }
  }
  for (int size : a.shape()) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      throw std::bad_alloc();
    }
  }
}

} // namespace

void take_memory(mx::array& out) {
  expect_countable(out);
  out.set_data(mx::allocator::malloc(out.nbytes()));
  if (out.nbytes() > 0 && !out.buffer().raw_ptr()) {
    throw std::bad_alloc();
  }
}

} // namespace mlx_recurrent
