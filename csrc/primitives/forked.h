// Streams that this process cannot use because it was forked. A thread of MLX's
// runs each stream, started by the first evaluation on it, and a forked child
// has no thread but the one that forked: what is put on such a stream there is
// never run, and whoever waits for it waits for ever.

#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// Watches for forks from now on.
void watch_forks();

// Raises std::runtime_error, which says what to do, if the stream's thread was
// left behind.
void expect_thread(const mx::Stream& stream);

// The same for what has to be computed still before these arrays are there.
void expect_threads(const std::vector<mx::array>& arrays);

} // namespace mlx_recurrent
