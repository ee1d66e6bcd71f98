#include "primitives/course.h"

namespace mlx_recurrent {

Course Course::cut() const {
  Course other = *this;
  other.form.cuts = form.truncate_every > 0;
  return other;
}

bool CourseForm::fits(const mx::array& like) const {
  return flips < 0 ||
      (flips < static_cast<int>(like.ndim()) - 2 && like.shape(flips) == 2);
}

std::vector<kernels::Course> courses(
    const Course& course,
    const mx::array& like,
    int64_t sets,
    int64_t N,
    Operands& operands) {
  const CourseForm& form = course.form;
  kernels::Sequence absent{nullptr, nullptr, 0, 0};
  kernels::Sequence lengths = absent;
  kernels::Sequence reset = absent;
  if (course.lengths) {
    const mx::array& a = *course.lengths;
    int axes = static_cast<int>(a.ndim());
    lengths = {a.data<char>(), operands.offsets(a, axes), 0, 0};
  }
  if (course.reset) {
    reset = operands.flags(*course.reset);
  }
  // Rows of all sets that stand between two places along the axis that flips.
  int64_t block = form.flips < 0
      ? 0
      : size_between(like, form.flips + 1, static_cast<int>(like.ndim()) - 2);
  std::vector<kernels::Course> all;
  for (int64_t i = 0; i < sets; ++i) {
    bool flipped = block > 0 && i * N / block % 2 == 1;
    all.push_back(
        {form.reverse != flipped,
         of_set(lengths, i, N),
         of_set(reset, i, N),
         form.truncate_every});
  }
  return all;
}

CourseForm with_axis_at(const CourseForm& form, int at) {
  CourseForm shifted = form;
  shifted.flips += form.flips >= at;
  return shifted;
}

} // namespace mlx_recurrent
