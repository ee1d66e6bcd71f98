// One layer in real time, outside the graph: its weights, packed once, and its
// state. A step costs what it computes; nothing is allocated for it.

#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cell.h"

namespace mlx_recurrent {

// Vectors that are not given as weights, one element for each unit; null: the
// layer has none.
struct StreamVectors {
  // Of each state.
  const void* leaks[kernels::kMostStates];
  const void* starts[kernels::kMostStates];
};

// Elements of x, these vectors and the states are those of the type; floats
// where it is bfloat16, which NumPy does not have.
class Stream {
 public:
  // Copies the weights of `layer` and the vectors; N rows run together. `owner`
  // keeps what else it points to.
  Stream(
      kernels::Type type,
      const kernels::RecurrenceArgs& layer,
      const StreamVectors& vectors,
      std::shared_ptr<const void> owner);

  // Runs L steps of x (N, L, D) into `out` (N, L, H), which may be the memory
  // of x where D == H. Where `reset` (N, L) holds, a row's episode starts: from
  // the `starts`, or without a state. Null: nowhere. The bits do not depend on
  // how steps are shared out to calls.
  void run(const void* x, int64_t L, const bool* reset, void* out);

  // The states (N, H), as many as the cell has. Null: zero and, of the first,
  // no product with Whh in the next step.
  int states() const {
    return kernels::shape_of(args_.layer).states;
  }
  void set_state(int which, const void* state);
  void copy_state(int which, void* to) const;

  // Keeps the state as it is now; goes back to it.
  void keep_state();
  void restore_state();

  // N, D and H.
  const kernels::RecurrenceArgs& layer() const {
    return args_.layer;
  }

  // Held by the one who uses what is above.
  std::mutex mutex;

 private:
  int64_t bytes(int64_t elements) const;
  void store(char* to, const char* from, int64_t elements) const;
  void load(char* to, const char* from, int64_t elements) const;
  void run_piece(const char* x, int64_t row_stride, int64_t steps);
  int64_t state_bytes() const;
  std::unique_ptr<char[]> copied(const void* vector) const;

  kernels::Type type_;
  kernels::Kernel<kernels::ForwardArgs> kernel_;
  kernels::ForwardArgs args_;
  std::shared_ptr<const void> owner_;
  int64_t most_steps_; // of a piece: one run of the kernel
  std::vector<int64_t> x_rows_, state_rows_, reset_rows_; // where they begin
  std::unique_ptr<char[]> scratch_;
  std::unique_ptr<char[]> x_;   // of a piece, where x is converted
  std::unique_ptr<char[]> out_; // of a piece
  struct State {
    std::unique_ptr<char[]> before, after; // a piece
    std::unique_ptr<char[]> kept;          // to go back to
    std::unique_ptr<char[]> leak, start;
    bool there = false, kept_there = false;
  };
  State states_[kernels::kMostStates];
};

} // namespace mlx_recurrent
