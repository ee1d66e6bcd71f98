// Memory for the kernels: results, and scratch that is used again.

#pragma once

#include "mlx/allocator.h"
#include "mlx/array.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// Gives `out` its memory; raises std::bad_alloc where there is none.
void allocate(mx::array& out);

// The same for a result that may overwrite `input`, element for element: its
// memory, where nobody else needs it.
void allocate_over(mx::array& out, const mx::array& input);

// Leaves `out` without memory: nobody will read it. `is_empty` tells.
void leave_empty(mx::array& out);
bool is_empty(const mx::array& a);

// Frees the scratch memory that no call uses now.
void release_scratch();

// One call's scratch memory. It comes from MLX's allocator, so MLX counts it,
// and goes to a small shelf afterwards: new memory costs a page fault for each
// page that is touched, more than the computation of a short call.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data();

 private:
  mx::allocator::Buffer buffer_{nullptr};
  size_t bytes_ = 0;
};

} // namespace mlx_recurrent
