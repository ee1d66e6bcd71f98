#include "primitives/course.h"

namespace mlx_recurrent {

Course::Course(const CourseForm& form, const Arrays& inputs) : form(form) {
  size_t at = inputs.size() - form.inputs();
  if (form.has_lengths) {
    lengths = inputs[at++];
  }
  if (form.has_reset) {
    reset = inputs[at];
  }
}

void Course::append_to(Arrays& inputs) const {
  for (const auto* part : {&lengths, &reset}) {
    if (*part) {
      inputs.push_back(**part);
    }
  }
}

Course Course::cut() const {
  Course other = *this;
  other.form.cuts = form.truncate_every > 0;
  return other;
}

bool fits(const CourseForm& form, const Arrays& inputs, const mx::array& like) {
  Course course(form, inputs);
  return like.ndim() >= 2 &&
      (!course.lengths ||
       (course.lengths->dtype() == mx::int32 &&
        course.lengths->shape() == with_tail(like, 2, {}))) &&
      (!course.reset ||
       (course.reset->dtype() == mx::bool_ &&
        course.reset->shape() == with_tail(like, 1, {}))) &&
      (form.flips < 0 ||
       (form.flips < static_cast<int>(like.ndim()) - 2 &&
        like.shape(form.flips) == 2));
}

std::vector<kernels::Course> courses(
    const CourseForm& form,
    const Arrays& inputs,
    const mx::array& like,
    int64_t sets,
    int64_t N,
    Operands& operands) {
  Course course(form, inputs);
  kernels::Sequence absent{nullptr, nullptr, 0, 0};
  kernels::Sequence lengths = absent;
  kernels::Sequence reset = absent;
  if (course.lengths) {
    const mx::array& a = *course.lengths;
    int axes = static_cast<int>(a.ndim());
    lengths = {a.data<char>(), operands.offsets(a, axes), 0, 0};
  }
  if (course.reset) {
    const mx::array& a = *course.reset;
    int axes = static_cast<int>(a.ndim()) - 1;
    reset = {a.data<char>(), operands.offsets(a, axes), a.strides(-1), 0};
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
