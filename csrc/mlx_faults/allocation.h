// The memory of an array.
//
// Fault: MLX counts an array's bytes in 64 bits and gives one that has more of
// them only the rest of the division; where there is no memory left it gives
// none and says nothing.
// MLX: 0.32.0 to 0.32.4.
// Shown by: test_more_bytes_than_64_bits_count,
//   test_every_allocation_fails

#pragma once

#include "mlx/array.h"

namespace mlx_recurrent {

// Gives `out` memory of MLX's allocator; raises std::bad_alloc where there is
// none.
void take_memory(mlx::core::array& out);

} // namespace mlx_recurrent
