// One row's run: where its steps are in time, and what passes between them.
// For the kernels and for the graph's own copies along time.

#pragma once

#include "kernels.h"

namespace mlx_recurrent::kernels {

// Always inlined, so that instruction sets share no code.
#define ROW_RUN_MEMBER __attribute__((always_inline)) inline

struct RowRun {
  const Course& course;
  int64_t row;
  int64_t length; // steps

  // Where step i of the run is in time.
  ROW_RUN_MEMBER int64_t place(int64_t i) const {
    return course.reverse ? length - 1 - i : i;
  }

  // Whether an episode starts with step i of the run.
  ROW_RUN_MEMBER bool starts(int64_t i) const {
    if (!course.reset.data || (course.reverse && i == 0)) {
      return false;
    }
    int64_t t = place(i) + course.reverse;
    const Sequence& reset = course.reset;
    return static_cast<const bool*>(
        reset.data)[reset.row_offsets[row] + t * reset.step_stride];
  }

  // Whether a derivative is cut before step i of the run.
  ROW_RUN_MEMBER bool truncates(int64_t i) const {
    return course.truncate_every > 0 && i > 0 && i % course.truncate_every == 0;
  }
};

// How many of L steps a row has.
ROW_RUN_MEMBER int64_t length_of(const Course& course, int64_t row, int64_t L) {
  if (!course.lengths.data) {
    return L;
  }
  int64_t length = static_cast<const int32_t*>(
      course.lengths.data)[course.lengths.row_offsets[row]];
  return length < 0 ? 0 : length < L ? length : L;
}

#undef ROW_RUN_MEMBER

} // namespace mlx_recurrent::kernels
