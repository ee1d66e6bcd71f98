// One call of one kernel, as a line of text: `entry=forward type=float32 N=3`.

#pragma once

#include <cstdint>
#include <string>

#include "cells.h"

namespace kernel_tests {

enum class Entry : int {
  matmul,
  outer_sum,
  forward,
  backward,
  linear_scan,
  pointwise,
  mask
};
constexpr int kEntries = 7;

// Of the backward pass, which outputs are wanted: a sum of these.
enum Wanted : int64_t {
  want_dx = 1,
  want_dWxh = 2,
  want_dbias = 4,
  want_dWhh = 8,
  want_dhidden = 16,
  want_dhidden0 = 32,
  want_dleak = 64,
  want_all = 127, // of an Elman cell
  want_dbhn = 128,
  want_dcell = 256,
  want_dcell0 = 512,
  want_every = 1023
};

// How many steps rows have.
enum class Lengths : int64_t {
  all,    // L: nothing says otherwise
  any,    // some none, some L
  equal,  // fewer than L
  none,   // 0
  beyond, // also said to be less than 0, or more than L
};
constexpr int kLengths = 5;

// Where episodes start.
enum class Resets : int64_t { nowhere, some, everywhere, first };
constexpr int kResets = 4;

// How large the numbers are that enter.
enum class Contents : int64_t {
  ordinary, // about one
  large,    // units saturate
  small,    // products and errors vanish
  zero,
};
constexpr int kContents = 4;

// Everything is a whole number, so that one table names, prints and reads it.
struct Case {
  int64_t entry = 0;
  int64_t type = 0;
  int64_t N = 3, L = 5, D = 6, H = 8; // matrix products: D is K, H is M
  int64_t kind = 0;                   // of the cell
  int64_t as_program = 0;             // whether that is told as one
  int64_t activation = 0;
  int64_t program = 0; // of a traced activation
  int64_t projected = 0;
  int64_t bias = 1, hidden = 1;
  int64_t hidden0 = 0, leak = 0;
  int64_t bhn = 0, cell = 0, cell0 = 0; // of gated cells
  int64_t lengths = 0, reset = 0, reverse = 0, truncate_every = 0;
  int64_t mask = 0;
  // Probabilities, in thousandths, and how many sets of rows draw the same.
  int64_t zoneout = 0, recurrent_dropout = 0, input_dropout = 0, sets = 1;
  int64_t zoneout_cell = 0;
  int64_t drawn = 0; // mask: which of them
  // linear_scan: whether there are paths from state to state, and other
  // factors.
  int64_t alpha = 0, beta = 1, gamma = 1, transposed = 0;
  int64_t states = 1, slabs = 1; // linear_scan
  int64_t checkpoint_every = 0, latest_checkpoint = 0;
  int64_t cells_every = 0; // where all first states are kept
  int64_t state = 1;       // forward: is wanted; backward: has a cotangent
  int64_t dstates = 1;     // backward: the states have one
  // The same of a second state, of which forward may also leave none.
  int64_t last_cell = 1, dcells = 1, cells = 1;
  int64_t saved = 1;           // what backward needs beside the states is kept
  int64_t wanted = want_every; // backward
  int64_t contents = 0;
  int64_t layout = 0;
  int64_t split = 0;
  int64_t threads = 1, slices = 1; // of the partition
  int64_t members = 1;             // of the team that runs it; at most threads
  int64_t seed = 0;

  CellKind of_kind() const {
    return static_cast<CellKind>(kind);
  }
  Entry which() const {
    return static_cast<Entry>(entry);
  }
  // What it says twice or in vain is settled: a term that its entry lacks is
  // absent, a projected input has H features.
  void settle();
  std::string text() const;
  // Reads text(); false with a message where that is not understood.
  static bool parse(const std::string& text, Case& result);

 private:
  void settle_cell();
};

} // namespace kernel_tests
