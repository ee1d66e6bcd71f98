// Which steps each row runs, in which order, and between which of them nothing
// passes: what a kernel's course says, as values.

#pragma once

#include <cstdint>
#include <vector>

namespace kernel_tests {

struct Runs {
  int64_t N, L;
  std::vector<int64_t> lengths; // of each row: 0 to L
  std::vector<char> reset;      // (N, L)
  std::vector<char> skip;       // (N, L)
  bool reverse = false;
  int64_t truncate_every = 0;

  // Every row runs all steps, as one episode.
  Runs(int64_t N, int64_t L)
      : N(N),
        L(L),
        lengths(static_cast<size_t>(N), L),
        reset(static_cast<size_t>(N * L), 0),
        skip(static_cast<size_t>(N * L), 0) {
  }

  int64_t length(int64_t n) const {
    return lengths[static_cast<size_t>(n)];
  }
  // Where step i of a row's run is in time.
  int64_t place(int64_t n, int64_t i) const {
    return reverse ? length(n) - 1 - i : i;
  }
  // The same, counted over all rows.
  int64_t index(int64_t n, int64_t i) const {
    return n * L + place(n, i);
  }
  // Whether an episode starts with step i of the run. `reset` is on the later
  // side in time of the border between two episodes.
  bool starts(int64_t n, int64_t i) const {
    if (reverse) {
      return i > 0 && reset[static_cast<size_t>(index(n, i - 1))] != 0;
    }
    return reset[static_cast<size_t>(index(n, i))] != 0;
  }
  // Whether the states stay at step i of the run.
  bool skips(int64_t n, int64_t i) const {
    return skip[static_cast<size_t>(index(n, i))] != 0;
  }
  // Whether a derivative takes the state before step i for a constant. Where an
  // episode starts it is of no earlier block, and not cut.
  bool truncates(int64_t i) const {
    return truncate_every > 0 && i > 0 && i % truncate_every == 0;
  }
};

} // namespace kernel_tests
