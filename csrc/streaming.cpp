#include "streaming.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "mlx/types/half_types.h"

namespace mlx_recurrent {

namespace {

using mlx::core::bfloat16_t;

// A row alone runs so many steps at a time: the projection then has rows enough
// to be worth its loads of the weights, and all that a piece needs is small.
constexpr int64_t kPieceRows = 32;

// In real time the caller's thread does it all: another one would have to wake
// up, and a forked process has none.
constexpr kernels::Partition kAlone = {kernels::Split::none, 1, 1};
constexpr kernels::Member kOnly = {0, 1, nullptr, nullptr};

int64_t stored_bytes(kernels::Type type) {
  return type == kernels::Type::float64 ? 8
      : type == kernels::Type::float32  ? 4
                                        : 2;
}

std::unique_ptr<char[]> memory(size_t bytes) {
  return std::unique_ptr<char[]>(new char[bytes]);
}

} // namespace

Stream::Stream(
    kernels::Type type,
    const kernels::RecurrenceArgs& layer,
    const StreamVectors& vectors,
    std::shared_ptr<const void> owner)
    : type_(type),
      kernel_(kernels::table()->types[static_cast<int>(type)].forward),
      args_{layer},
      owner_(std::move(owner)) {
  int64_t N = layer.N, D = layer.D, H = layer.H;
  most_steps_ = std::max<int64_t>(1, kPieceRows / std::max<int64_t>(1, N));
  int64_t element = stored_bytes(type);
  for (int s = 0; s < states(); ++s) {
    states_[s].leak = copied(vectors.leaks[s]);
    states_[s].start = copied(vectors.starts[s]);
    args_.layer.leak[s] = {states_[s].leak.get(), 1};
    args_.layer.hidden0[s] = {states_[s].start.get(), 1};
  }
  for (int64_t n = 0; n < N; ++n) {
    x_rows_.push_back(0);
    state_rows_.push_back(n * H);
    reset_rows_.push_back(0);
  }
  if (type == kernels::Type::bfloat16) {
    x_ = memory(N * most_steps_ * D * element);
  }
  out_ = memory(N * most_steps_ * H * element);
  for (int s = 0; s < states(); ++s) {
    states_[s].before = memory(state_bytes());
    states_[s].after = memory(state_bytes());
    set_state(s, nullptr);
  }
  args_.layer.L = most_steps_;
  const bool somewhere = false;
  args_.layer.course.reset.data = &somewhere; // the scratch has room for resets
  scratch_ = memory(kernel_.scratch(args_, kAlone));
  args_.layer.course.reset = {};
  // A step, whose result nobody sees, packs the weights.
  if (N > 0) {
    auto zeros = memory(D * element);
    std::memset(zeros.get(), 0, D * element);
    run_piece(zeros.get(), 0, 1);
    args_.prepared = true;
  }
  for (int s = 0; s < states(); ++s) {
    set_state(s, nullptr);
  }
}

void Stream::run(const void* x, int64_t L, const bool* reset, void* out) {
  int64_t N = args_.layer.N, D = args_.layer.D, H = args_.layer.H;
  const char* from = static_cast<const char*>(x);
  char* to = static_cast<char*>(out);
  for (int64_t t = 0; N > 0 && t < L; t += most_steps_) {
    int64_t steps = std::min(most_steps_, L - t);
    if (reset) {
      for (int64_t n = 0; n < N; ++n) {
        reset_rows_[n] = n * L + t;
      }
      args_.layer.course.reset = {reset, reset_rows_.data(), 1, 0};
    }
    if (x_) {
      for (int64_t n = 0; n < N; ++n) {
        store(
            x_.get() + n * steps * D * stored_bytes(type_),
            from + bytes((n * L + t) * D),
            steps * D);
      }
      run_piece(x_.get(), steps * D, steps);
    } else {
      run_piece(from + bytes(t * D), L * D, steps);
    }
    for (int64_t n = 0; n < N; ++n) {
      load(
          to + bytes((n * L + t) * H),
          out_.get() + n * steps * H * stored_bytes(type_),
          steps * H);
    }
  }
  args_.layer.course.reset = {};
}

// x: rows `row_stride` elements apart, of steps one after another.
void Stream::run_piece(const char* x, int64_t row_stride, int64_t steps) {
  kernels::RecurrenceArgs& layer = args_.layer;
  for (int64_t n = 0; n < layer.N; ++n) {
    x_rows_[n] = n * row_stride;
  }
  layer.L = steps;
  layer.x = {x, x_rows_.data(), layer.D, 1};
  args_.states[0] = out_.get();
  for (int s = 0; s < states(); ++s) {
    const char* data = states_[s].there ? states_[s].before.get() : nullptr;
    layer.hidden[s] = {data, state_rows_.data(), 0, 1};
    args_.state[s] = states_[s].after.get();
  }
  kernel_.run(args_, kAlone, kOnly, scratch_.get());
  for (int s = 0; s < states(); ++s) {
    std::swap(states_[s].before, states_[s].after);
    states_[s].there = true;
  }
}

void Stream::set_state(int which, const void* state) {
  State& to = states_[which];
  to.there = state;
  if (state) {
    int64_t elements = args_.layer.N * args_.layer.H;
    store(to.before.get(), static_cast<const char*>(state), elements);
  } else {
    std::memset(to.before.get(), 0, state_bytes());
  }
}

void Stream::copy_state(int which, void* to) const {
  load(
      static_cast<char*>(to),
      states_[which].before.get(),
      args_.layer.N * args_.layer.H);
}

void Stream::keep_state() {
  for (int s = 0; s < states(); ++s) {
    State& state = states_[s];
    if (!state.kept) {
      state.kept = memory(state_bytes());
    }
    std::memcpy(state.kept.get(), state.before.get(), state_bytes());
    state.kept_there = state.there;
  }
}

void Stream::restore_state() {
  for (int s = 0; s < states(); ++s) {
    State& state = states_[s];
    if (state.kept) {
      std::memcpy(state.before.get(), state.kept.get(), state_bytes());
      state.there = state.kept_there;
    }
  }
}

int64_t Stream::state_bytes() const {
  return args_.layer.N * args_.layer.H * stored_bytes(type_);
}

// As the kernels have it; null stays null.
std::unique_ptr<char[]> Stream::copied(const void* vector) const {
  if (!vector) {
    return nullptr;
  }
  int64_t H = args_.layer.H;
  std::unique_ptr<char[]> copy = memory(H * stored_bytes(type_));
  store(copy.get(), static_cast<const char*>(vector), H);
  return copy;
}

// Of the user's elements.
int64_t Stream::bytes(int64_t elements) const {
  return elements *
      (type_ == kernels::Type::bfloat16 ? sizeof(float) : stored_bytes(type_));
}

// From the user's elements to the kernels', and back.
void Stream::store(char* to, const char* from, int64_t elements) const {
  if (type_ != kernels::Type::bfloat16) {
    std::memcpy(to, from, bytes(elements));
    return;
  }
  auto* stored = reinterpret_cast<bfloat16_t*>(to);
  auto* given = reinterpret_cast<const float*>(from);
  for (int64_t i = 0; i < elements; ++i) {
    stored[i] = given[i];
  }
}

void Stream::load(char* to, const char* from, int64_t elements) const {
  if (type_ != kernels::Type::bfloat16) {
    std::memcpy(to, from, bytes(elements));
    return;
  }
  auto* stored = reinterpret_cast<const bfloat16_t*>(from);
  auto* wanted = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < elements; ++i) {
    wanted[i] = static_cast<float>(stored[i]);
  }
}

} // namespace mlx_recurrent
