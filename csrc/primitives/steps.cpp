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
#include "primitives/row_copy.h"

namespace mlx_recurrent {

namespace {

using kernels::RowRun;

constexpr struct {
  StepSlot slot;
  SlotKind kind;
} rows[] = {
    {StepSlot::sequence, {"sequence", Lead::rows, {Size::L, Size::H}}},
    {StepSlot::step, {"step", Lead::rows, {Size::H}}},
    {StepSlot::lengths, lengths_kind},
    {StepSlot::reset, reset_kind}};
static_assert(in_order(rows));

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
  Copy(const Course& course, const mx::array& y, mx::array& result)
      : N(size_between(y, 0, static_cast<int>(y.ndim()) - 2)),
        L(y.shape(-2)),
        H(y.shape(-1)),
        item(static_cast<int64_t>(y.itemsize())) {
    allocate(result);
    out = result.data<char>();
    const CourseForm& form = course.form;
    int64_t sets = size_between(y, 0, form.flips + 1);
    rows_each = sets > 0 ? N / sets : 0;
    by_set = courses(course, y, sets, rows_each, *operands);
    for (kernels::Course& each : by_set) {
      each.truncate_every = form.cuts ? form.truncate_every : 0;
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

// A primitive's result for a sequence, a step if there is one, and a course.
template <class Primitive, class... Rest>
mx::array made(
    const mx::Stream& stream,
    const mx::array& sequence,
    const std::optional<mx::array>& step,
    const Course& course,
    Rest... rest) {
  Slotted<StepSlot> in;
  in[StepSlot::sequence] = sequence;
  in[StepSlot::step] = step;
  in[StepSlot::lengths] = course.lengths;
  in[StepSlot::reset] = course.reset;
  auto primitive =
      std::make_shared<Primitive>(stream, in.slots(), course.form, rest...);
  Arrays inputs = in.in_order();
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape),
      sequence.dtype(),
      std::move(primitive),
      std::move(inputs));
}

} // namespace

const SlotKind& kind_of(StepSlot slot) {
  return rows[static_cast<int>(slot)].kind;
}

mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    const Course& course,
    const mx::Stream& stream) {
  return made<StepBefore>(stream, y, first, course);
}

mx::array step_after(
    const mx::array& y,
    const Course& course,
    const mx::Stream& stream) {
  return made<StepAfter>(stream, y, {}, course);
}

mx::array step_at(
    const mx::array& y,
    End end,
    const std::optional<mx::array>& otherwise,
    const Course& course,
    const mx::Stream& stream) {
  return made<StepAt>(stream, y, otherwise, course, end);
}

mx::array only_at(
    const mx::array& step,
    End end,
    const mx::array& like,
    const Course& course,
    const mx::Stream& stream) {
  return made<OnlyAt>(stream, like, step, course, end);
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
  return made<OnlyPlaces>(stream, y, {}, course, places);
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
  course.lengths = lengths;
  mx::array y = widen(x, 2, lengths, 0, stream);
  return only_places(y, Places::valid, course, stream);
}

mx::array taken_factors(
    const mx::array& mask,
    const mx::array& like,
    const mx::Stream& stream) {
  mx::array factors =
      mx::expand_dims(mx::astype(mask, like.dtype(), stream), -1, stream);
  return widen(factors, 0, like, 0, stream);
}

mx::array without_skipped(
    const mx::array& x,
    const mx::array& mask,
    const mx::Stream& stream) {
  mx::array y = widen(x, 2, mask, 1, stream);
  return gate(taken_factors(mask, y, stream), y, stream);
}

std::vector<mx::Shape> AlongTime::output_shapes(const Arrays& inputs) {
  const mx::array& y = sequence_of(inputs);
  expect(y.ndim() >= 2 && course_.fits(y), name());
  Shapes shapes(y, 0, y.shape(-1));
  expect(shapes.fit(slots_, inputs), name());
  return {shapes.of(kind_of(result()))};
}

bool AlongTime::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const AlongTime&>(other);
  return slots_ == o.slots_ && course_ == o.course_;
}

Arrays AlongTime::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Course cut = course_with(primals).cut();
  Arrays grads;
  for (int i : argnums) {
    StepSlot slot = slots_.at(i);
    grads.push_back(
        is_linear_in(slot) ? transposed(slot, c, sequence_of(primals), cut)
                           : filled(primals[i], 0, s));
  }
  return grads;
}

Arrays AlongTime::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  // What it is not linear in stays; what does not move is zero.
  Slotted<StepSlot> moved;
  for (size_t k = 0; k < argnums.size(); ++k) {
    StepSlot slot = slots_.at(argnums[k]);
    if (is_linear_in(slot)) {
      moved[slot] = matched(tangents[k], primals[argnums[k]], s);
    }
  }
  const mx::array& y = sequence_of(primals);
  auto& sequence = moved[StepSlot::sequence];
  auto& step = moved[StepSlot::step];
  if (!is_linear_in(StepSlot::sequence)) {
    sequence = y;
    step = step ? *step : filled(*step_of(primals), 0, s);
  }
  return {again(
      sequence ? *sequence : filled(y, 0, s),
      step,
      course_with(primals).cut())};
}

std::pair<Arrays, Ints> AlongTime::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        Course moved = course_with(in);
        moved.form = with_axis_at(course_, 0);
        return Arrays{again(sequence_of(in), step_of(in), moved)};
      },
      are_of_rows(slots_),
      true,
      0,
      inputs,
      axes,
      stream());
}

void StepBefore::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& y = sequence_of(inputs);
  Copy copy(course_with(inputs), y, outputs[0]);
  copy.steps = copy.operands->sequence(y);
  if (auto first = step_of(inputs)) {
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
    StepSlot input,
    const mx::array& cotangent,
    const mx::array&,
    const Course& course) {
  return input == StepSlot::sequence
      ? step_after(cotangent, course, stream())
      : step_at(cotangent, End::first, {}, course, stream());
}

void StepAfter::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& y = sequence_of(inputs);
  Copy copy(course_with(inputs), y, outputs[0]);
  copy.steps = copy.operands->sequence(y);
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
    StepSlot,
    const mx::array& cotangent,
    const mx::array&,
    const Course& course) {
  return step_before(cotangent, {}, course, stream());
}

void StepAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& y = sequence_of(inputs);
  Copy copy(course_with(inputs), y, outputs[0]);
  copy.steps = copy.operands->sequence(y);
  if (auto otherwise = step_of(inputs)) {
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
    StepSlot input,
    const mx::array& cotangent,
    const mx::array& sequence,
    const Course& course) {
  if (input == StepSlot::sequence) {
    return only_at(cotangent, end_, sequence, course, stream());
  }
  // What stands for a step gets the cotangent where there are no steps.
  mx::array none = filled(sequence, 0, stream());
  return step_at(none, end_, cotangent, course, stream());
}

void OnlyAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(course_with(inputs), sequence_of(inputs), outputs[0]);
  copy.row = copy.operands->rows(*step_of(inputs));
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

bool OnlyAt::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const OnlyAt&>(other);
  return AlongTime::is_equivalent(o) && end_ == o.end_;
}

mx::array OnlyAt::again(
    const mx::array& like,
    const std::optional<mx::array>& step,
    const Course& course) {
  return only_at(step.value(), end_, like, course, stream());
}

mx::array OnlyAt::transposed(
    StepSlot,
    const mx::array& cotangent,
    const mx::array&,
    const Course& course) {
  return step_at(cotangent, end_, {}, course, stream());
}

void OnlyPlaces::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& y = sequence_of(inputs);
  Copy copy(course_with(inputs), y, outputs[0]);
  copy.steps = copy.operands->sequence(y);
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
    StepSlot,
    const mx::array& cotangent,
    const mx::array&,
    const Course& course) {
  return only_places(cotangent, places_, course, stream());
}

} // namespace mlx_recurrent
