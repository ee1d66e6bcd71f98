// Which steps each row of a sequence runs, in which order, and what passes
// between them, in the graph: what primitives along time have in common.

#pragma once

#include "primitives/slots.h"

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

  bool operator==(const CourseForm&) const = default;

  // Whether the axis that flips is one of the leading ones of (..., L, H).
  bool fits(const mx::array& like) const;
};

// Its arrays, which are slots of every primitive along time.
constexpr SlotKind lengths_kind{"lengths", Lead::rows, {}, Holds::counts};
constexpr SlotKind reset_kind{"reset", Lead::rows, {Size::L}, Holds::flags};

// kernels::Course, with arrays where that has pointers.
struct Course {
  CourseForm form;
  std::optional<mx::array> lengths;
  std::optional<mx::array> reset;

  // That of derivatives.
  Course cut() const;
};

// That of a primitive, from its inputs.
template <class Slot>
Course course_of(
    const CourseForm& form,
    const Slots<Slot>& slots,
    const Arrays& inputs) {
  return {
      form, slots.find(inputs, Slot::lengths), slots.find(inputs, Slot::reset)};
}

// The course of each set of N rows, for the kernels. `like` has the leading
// axes of the rows of all sets.
std::vector<kernels::Course> courses(
    const Course& course,
    const mx::array& like,
    int64_t sets,
    int64_t N,
    Operands& operands);

// The form where an axis was added to all inputs at `at`.
CourseForm with_axis_at(const CourseForm& form, int at);

} // namespace mlx_recurrent
