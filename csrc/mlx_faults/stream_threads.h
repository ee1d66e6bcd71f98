// Streams that cannot be used here. A thread of MLX's runs each stream, started
// by the first evaluation on it, and a forked child has no thread but the one
// that forked: what is put on such a stream there is never run, and whoever
// waits for it waits for ever. And each of Python's threads has streams of its
// own, which no other one may use.
//
// Fault: MLX waits for ever for a stream whose thread was left behind, and of
// another thread's stream it says no more than that it is not there.
// MLX: 0.32.0 to 0.32.4.
// Shown by: test_forked_child_is_told_what_to_do,
//   test_parameters_that_another_thread_has_not_evaluated

#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/stream.h"
#include "mlx/utils.h"

namespace mlx_recurrent {

namespace mx = mlx::core;

// Watches for forks from now on.
void watch_forks();

// Raises std::runtime_error, which says what to do, if the stream's thread was
// left behind.
void expect_thread(const mx::Stream& stream);
// The stream that is meant, after that.
mx::Stream stream_of(const mx::StreamOrDevice& stream);

// The same for all that has to be computed still before these arrays are there,
// and also if it is on a stream of another of Python's threads. For arrays that
// are evaluated next: like an evaluation it must not meet another one of them.
void expect_threads(const std::vector<mx::array>& arrays);

// The same for arrays that nobody evaluates yet: only in a forked child, and
// for the nearest 200 operations. A loop that evaluates late would walk through
// all that it made at each step.
void expect_after_fork(const std::vector<mx::array>& arrays);

// The same for the operands of a call on a stream, and also if one of them is
// on a stream of another of Python's threads, itself or below the few small
// operations that a call puts before it.
void expect_operands(
    const std::vector<mx::array>& operands,
    const mx::Stream& s);

// A stream whose thread was left behind, if there is one.
std::optional<mx::Stream> lost_stream();

// How many forks lie between this process and the one that loaded the package.
int forks();

} // namespace mlx_recurrent
