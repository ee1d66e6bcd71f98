#include "primitives/steps.h"

#include <cstring>
#include <memory>

#include "kernels/row_run.h"
#include "mlx/backend/cpu/encoder.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/memory.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

namespace {

using kernels::RowRun;

// One row of features, of elements of `item` bytes; from null: zeros.
void copy_row(
    char* to,
    const char* from,
    int64_t stride,
    int64_t count,
    int64_t item) {
  if (!from) {
    std::memset(to, 0, count * item);
  } else if (stride == 1) {
    std::memcpy(to, from, count * item);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * item, from + i * stride * item, item);
    }
  }
}

// Where the features of row n at step t begin.
const char* features_at(
    const kernels::Sequence& s,
    int64_t n,
    int64_t t,
    int64_t item) {
  return static_cast<const char*>(s.data) +
      (s.row_offsets[n] + t * s.step_stride) * item;
}

// What the primitives copy: rows of features from a sequence, or a single row,
// or zeros, into a result of N rows.
struct Copy {
  int64_t N, L, H, item;
  kernels::Sequence steps{nullptr, nullptr, 0, 0};
  kernels::Sequence row{nullptr, nullptr, 0, 0};
  char* out;
  std::shared_ptr<Operands> operands = std::make_shared<Operands>();
  int64_t rows_each; // of a course
  std::vector<kernels::Course> by_set;

  // y (..., L, H) says how many rows and steps there are.
  Copy(
      const CourseForm& form,
      const Arrays& inputs,
      const mx::array& y,
      mx::array& result)
      : N(size_between(y, 0, static_cast<int>(y.ndim()) - 2)),
        L(y.shape(-2)),
        H(y.shape(-1)),
        item(static_cast<int64_t>(y.itemsize())) {
    allocate(result);
    out = result.data<char>();
    int64_t sets = size_between(y, 0, form.flips + 1);
    rows_each = sets > 0 ? N / sets : 0;
    by_set = courses(form, inputs, y, sets, rows_each, *operands);
    for (kernels::Course& course : by_set) {
      course.truncate_every = form.cuts ? form.truncate_every : 0;
    }
  }

  // Calls each(row, its run) for all rows.
  template <class Each>
  void for_rows(Each each) const {
    for (int64_t n = 0; n < N; ++n) {
      const kernels::Course& course = by_set[n / rows_each];
      int64_t row = n % rows_each;
      each(n, RowRun{course, row, kernels::length_of(course, row, L)});
    }
  }

  // `to` row number `at`: a row of features, or from null, zeros.
  void put(int64_t at, const char* from, int64_t stride) const {
    copy_row(out + at * H * item, from, stride, H, item);
  }
  void put_step(int64_t at, int64_t n, int64_t t) const {
    put(at, features_at(steps, n, t, item), steps.feature_stride);
  }
  void put_row(int64_t at, int64_t n) const {
    put(at,
        row.data ? features_at(row, n, 0, item) : nullptr,
        row.feature_stride);
  }
  void put_zeros(int64_t at, int64_t count = 1) const {
    std::memset(out + at * H * item, 0, count * H * item);
  }
  // Behind a row's last step.
  void put_padding(int64_t n, int64_t length) const {
    put_zeros(n * L + length, L - length);
  }
};

// `inputs` but for the course's arrays, and what is in the course.
mx::array with_shape_of(
    std::shared_ptr<mx::Primitive> primitive,
    Arrays inputs,
    const Course& course) {
  course.append_to(inputs);
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  mx::Dtype dtype = inputs[0].dtype();
  return mx::array(
      std::move(shape), dtype, std::move(primitive), std::move(inputs));
}

// The course fits y, and so does a step that stands beside it, if there is one.
void expect_fits(
    const CourseForm& form,
    const Arrays& inputs,
    const mx::array& y,
    const std::optional<mx::array>& step,
    const char* name) {
  expect(
      fits(form, inputs, y) &&
          (!step ||
           (step->dtype() == y.dtype() &&
            step->shape() == with_tail(y, 2, {y.shape(-1)}))),
      name);
}

Arrays with_optional(const mx::array& y, const std::optional<mx::array>& step) {
  return step ? Arrays{y, *step} : Arrays{y};
}

} // namespace

std::optional<mx::array> AlongTime::at(const Arrays& inputs, size_t i) const {
  return i + form_.inputs() < inputs.size() ? std::optional(inputs[i])
                                            : std::nullopt;
}

mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    const Course& course,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<StepBefore>(stream, course.form),
      with_optional(y, first),
      course);
}

mx::array step_after(
    const mx::array& y,
    const Course& course,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<StepAfter>(stream, course.form), {y}, course);
}

mx::array step_at(
    const mx::array& y,
    End end,
    const std::optional<mx::array>& otherwise,
    const Course& course,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<StepAt>(stream, course.form, end),
      with_optional(y, otherwise),
      course);
}

mx::array only_at(
    const mx::array& step,
    End end,
    const mx::array& like,
    const Course& course,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<OnlyAt>(stream, course.form, end), {step, like}, course);
}

mx::array only_places(
    const mx::array& y,
    Places places,
    const Course& course,
    const mx::Stream& stream) {
  if (places == Places::valid && !course.lengths) {
    return y;
  }
  if (places == Places::starts && !course.reset) {
    return filled(y, 0, stream);
  }
  return with_shape_of(
      std::make_shared<OnlyPlaces>(stream, course.form, places), {y}, course);
}

mx::array two_steps(
    const mx::array& first,
    const mx::array& last,
    const mx::Stream& stream) {
  mx::array two = mx::zeros({2, 1}, first.dtype(), stream);
  mx::array like =
      filled(widen(two, 2, first, 1, stream), 0, stream, first.shape(-1));
  return add(
      only_at(first, End::first, like, {}, stream),
      only_at(last, End::last, like, {}, stream),
      stream);
}

mx::array without_padding(
    const mx::array& x,
    const mx::array& lengths,
    const mx::Stream& stream) {
  Course course;
  course.form.has_lengths = true;
  course.lengths = lengths;
  mx::array y = widen(x, 2, lengths, 0, stream);
  return only_places(y, Places::valid, course, stream);
}

std::vector<mx::Shape> AlongTime::output_shapes(const Arrays& inputs) {
  expect_fits(form_, inputs, inputs[0], at(inputs, 1), name());
  return {inputs[0].shape()};
}

bool AlongTime::is_equivalent(const mx::Primitive& other) const {
  return form_ == static_cast<const AlongTime&>(other).form_;
}

Arrays AlongTime::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Course cut = Course(form_, primals).cut();
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        is_linear_in(i) && at(primals, i) ? transposed(i, c, primals, cut)
                                          : filled(primals[i], 0, s));
  }
  return grads;
}

Arrays AlongTime::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::optional<mx::array> first;
  std::optional<mx::array> second;
  if (!is_linear_in(1)) {
    second = at(primals, 1);
  }
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    if (is_linear_in(i) && at(primals, i)) {
      (i == 0 ? first : second) = matched(tangents[k], primals[i], s);
    }
  }
  Course cut = Course(form_, primals).cut();
  return {again(first ? *first : filled(primals[0], 0, s), second, cut)};
}

std::pair<Arrays, Ints> AlongTime::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        Course moved(with_axis_at(form_, 0), in);
        return Arrays{again(in[0], at(in, 1), moved)};
      },
      std::vector<bool>(inputs.size(), true),
      true,
      0,
      inputs,
      axes,
      stream());
}

void StepBefore::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(form_, inputs, inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  if (auto first = at(inputs, 1)) {
    copy.row = copy.operands->rows(*first);
  }
  mx::cpu::get_command_encoder(stream()).dispatch([copy = std::move(copy)] {
    copy.for_rows([&](int64_t n, const RowRun& run) {
      for (int64_t i = 0; i < run.length; ++i) {
        int64_t to = n * copy.L + run.place(i);
        if (run.starts(i) || run.truncates(i)) {
          copy.put_zeros(to);
        } else if (i == 0) {
          copy.put_row(to, n);
        } else {
          copy.put_step(to, n, run.place(i - 1));
        }
      }
      copy.put_padding(n, run.length);
    });
  });
}

mx::array StepBefore::again(
    const mx::array& y,
    const std::optional<mx::array>& first,
    const Course& course) {
  return step_before(y, first, course, stream());
}

mx::array StepBefore::transposed(
    int input,
    const mx::array& cotangent,
    const Arrays&,
    const Course& course) {
  return input == 0 ? step_after(cotangent, course, stream())
                    : step_at(cotangent, End::first, {}, course, stream());
}

void StepAfter::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(form_, inputs, inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  mx::cpu::get_command_encoder(stream()).dispatch([copy = std::move(copy)] {
    copy.for_rows([&](int64_t n, const RowRun& run) {
      for (int64_t i = 0; i < run.length; ++i) {
        int64_t to = n * copy.L + run.place(i);
        int64_t next = i + 1;
        if (next == run.length || run.starts(next) || run.truncates(next)) {
          copy.put_zeros(to);
        } else {
          copy.put_step(to, n, run.place(next));
        }
      }
      copy.put_padding(n, run.length);
    });
  });
}

mx::array StepAfter::again(
    const mx::array& y,
    const std::optional<mx::array>&,
    const Course& course) {
  return step_after(y, course, stream());
}

mx::array StepAfter::transposed(
    int,
    const mx::array& cotangent,
    const Arrays&,
    const Course& course) {
  return step_before(cotangent, {}, course, stream());
}

void StepAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(form_, inputs, inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  if (auto otherwise = at(inputs, 1)) {
    copy.row = copy.operands->rows(*otherwise);
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy = std::move(copy), end = end_] {
        copy.for_rows([&](int64_t n, const RowRun& run) {
          if (run.length == 0) {
            copy.put_row(n, n);
          } else if (end == End::first && run.starts(0)) {
            copy.put_zeros(n);
          } else {
            int64_t i = end == End::first ? 0 : run.length - 1;
            copy.put_step(n, n, run.place(i));
          }
        });
      });
}

std::vector<mx::Shape> StepAt::output_shapes(const Arrays& inputs) {
  expect_fits(form_, inputs, inputs[0], at(inputs, 1), name());
  return {with_tail(inputs[0], 2, {inputs[0].shape(-1)})};
}

bool StepAt::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const StepAt&>(other);
  return AlongTime::is_equivalent(o) && end_ == o.end_;
}

mx::array StepAt::again(
    const mx::array& y,
    const std::optional<mx::array>& otherwise,
    const Course& course) {
  return step_at(y, end_, otherwise, course, stream());
}

mx::array StepAt::transposed(
    int input,
    const mx::array& cotangent,
    const Arrays& primals,
    const Course& course) {
  if (input == 0) {
    return only_at(cotangent, end_, primals[0], course, stream());
  }
  // What stands for a step gets the cotangent where there are no steps.
  mx::array none = filled(primals[0], 0, stream());
  return step_at(none, end_, cotangent, course, stream());
}

void OnlyAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(form_, inputs, inputs[1], outputs[0]);
  copy.row = copy.operands->rows(inputs[0]);
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy = std::move(copy), end = end_] {
        copy.for_rows([&](int64_t n, const RowRun& run) {
          copy.put_zeros(n * copy.L, copy.L);
          if (run.length > 0 && !(end == End::first && run.starts(0))) {
            int64_t i = end == End::first ? 0 : run.length - 1;
            copy.put_row(n * copy.L + run.place(i), n);
          }
        });
      });
}

std::vector<mx::Shape> OnlyAt::output_shapes(const Arrays& inputs) {
  expect_fits(form_, inputs, inputs[1], inputs[0], name());
  return {inputs[1].shape()};
}

bool OnlyAt::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const OnlyAt&>(other);
  return AlongTime::is_equivalent(o) && end_ == o.end_;
}

mx::array OnlyAt::again(
    const mx::array& step,
    const std::optional<mx::array>& like,
    const Course& course) {
  return only_at(step, end_, *like, course, stream());
}

mx::array OnlyAt::transposed(
    int,
    const mx::array& cotangent,
    const Arrays&,
    const Course& course) {
  return step_at(cotangent, end_, {}, course, stream());
}

void OnlyPlaces::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(form_, inputs, inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy = std::move(copy), places = places_] {
        copy.for_rows([&](int64_t n, const RowRun& run) {
          for (int64_t i = 0; i < run.length; ++i) {
            int64_t t = run.place(i);
            if (places == Places::starts && !run.starts(i)) {
              copy.put_zeros(n * copy.L + t);
            } else {
              copy.put_step(n * copy.L + t, n, t);
            }
          }
          copy.put_padding(n, run.length);
        });
      });
}

bool OnlyPlaces::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const OnlyPlaces&>(other);
  return AlongTime::is_equivalent(o) && places_ == o.places_;
}

mx::array OnlyPlaces::again(
    const mx::array& y,
    const std::optional<mx::array>&,
    const Course& course) {
  return only_places(y, places_, course, stream());
}

mx::array OnlyPlaces::transposed(
    int,
    const mx::array& cotangent,
    const Arrays&,
    const Course& course) {
  return only_places(cotangent, places_, course, stream());
}

} // namespace mlx_recurrent
