// Streams that cannot be used here. A thread of MLX's runs each stream, started
// by the first evaluation on it, and a forked child has no thread but the one
// that forked: what is put on such a stream there is never run, and whoever
// waits for it waits for ever. And each of Python's threads has streams of its
// own, which no other one may use.

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

// The same for all that has to be computed still before these arrays are there,
// and also if it is on a stream of another of Python's threads.
void expect_threads(const std::vector<mx::array>& arrays);

// The same for the operands of a call: of what has to be computed for them the
// last two operations are seen, or in a forked child the last 200. A loop that
// evaluates late would walk through all that it made at each of its steps.
void expect_threads_of_operands(const std::vector<mx::array>& operands);

} // namespace mlx_recurrent
