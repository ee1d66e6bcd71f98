// Reading files in a forked child.
//
// Fault: MLX reads arrays from files in threads that it starts with the first
// one it reads. A forked child does not have them: what is still to be read
// there is never there, and whoever waits for it waits for ever.
// MLX: 0.32.0 to 0.32.4.
// Shown by: test_forked_child_cannot_read_files,
//   test_pool_worker_that_loads_weights

#pragma once

#include "mlx/array.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// Whether an operation reads a file.
bool reads_file(const mx::Primitive& primitive);

// Raises std::runtime_error, which says what to do, if MLX cannot read files
// here.
void expect_file_readers();

} // namespace mlx_recurrent
