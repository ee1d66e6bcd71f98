// Which steps each row of a sequence runs, in which order, and what passes
// between them, in the graph: what primitives along time have in common.

#pragma once

#include "primitives/operand.h"
#include "primitives/primitive.h"

namespace mlx_recurrent {

// A course without its arrays.
struct CourseForm {
  bool reverse = false;
  // A leading axis of size 2 along which index 1 runs in the other direction;
  // negative: none.
  int flips = -1;
  int truncate_every = 0; // 0: derivatives are not cut
  // Of a primitive that copies along time: it is a derivative itself, and cut.
  bool cuts = false;
  bool has_lengths = false;
  bool has_reset = false;

  bool operator==(const CourseForm&) const = default;

  // Its arrays are the last of a primitive's inputs: lengths, then reset.
  int inputs() const {
    return has_lengths + has_reset;
  }
  // Whether every row runs all steps, and all passes between them.
  bool is_plain() const {
    return inputs() == 0;
  }
};

struct Course {
  CourseForm form;
  std::optional<mx::array> lengths; // int32 (...)
  std::optional<mx::array> reset;   // bool (..., L)

  Course() = default;
  // From the last of a primitive's inputs.
  Course(const CourseForm& form, const Arrays& inputs);

  void append_to(Arrays& inputs) const;

  // That of derivatives.
  Course cut() const;
};

// Whether the last of `inputs` fit a sequence (..., L, features) with the
// leading axes and steps of `like`.
bool fits(const CourseForm& form, const Arrays& inputs, const mx::array& like);

// The course of each set of N rows, for the kernels. `like` has the leading
// axes of the rows of all sets.
std::vector<kernels::Course> courses(
    const CourseForm& form,
    const Arrays& inputs,
    const mx::array& like,
    int64_t sets,
    int64_t N,
    Operands& operands);

// The form where an axis was added to all inputs at `at`.
CourseForm with_axis_at(const CourseForm& form, int at);

} // namespace mlx_recurrent
