// Steps of a sequence as operations of the graph, for any number of steps:
// MLX's slices keep that of the first call in a shapeless function. Closed
// under differentiation.
//
// "Before" and "after", "first" and "last" are in the order of each row's run.
// Nothing is read in the padding, and results are zero there. Where a course
// truncates, the values are whole, and derivatives cut.

#pragma once

#include <optional>

#include "primitives/course.h"

namespace mlx_recurrent {

// The first or the last step.
enum class End : int { first, last };

// Steps that run, or those of them that an episode starts with.
enum class Places : int { valid, starts };

// The value of the step before each of y (..., L, H): at a row's first step
// `first` (..., H), or zero; where an episode starts, zero.
mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    const Course& course,
    const mx::Stream& stream);

// The value of the step after each of y (..., L, H), zero after a row's last
// step and after the last of an episode: what `step_before` is to y,
// transposed.
mx::array step_after(
    const mx::array& y,
    const Course& course,
    const mx::Stream& stream);

// Each row's step at one end of y (..., L, H): (..., H). At the first, where
// `hidden` comes in, it is zero if an episode starts there. For a row without
// steps it is `otherwise` (..., H), or zero.
mx::array step_at(
    const mx::array& y,
    End end,
    const std::optional<mx::array>& otherwise,
    const Course& course,
    const mx::Stream& stream);

// Its transpose: zeros in the shape of `like` (..., L, H), but for `step`
// (..., H) at each row's end.
mx::array only_at(
    const mx::array& step,
    End end,
    const mx::array& like,
    const Course& course,
    const mx::Stream& stream);

// y (..., L, H) with zeros, whatever it is there, at all other places.
mx::array only_places(
    const mx::array& y,
    Places places,
    const Course& course,
    const mx::Stream& stream);

// x (..., L, D) with zeros past each row's length, int32 (...), to whose axes
// the leading ones of x broadcast.
mx::array without_padding(
    const mx::array& x,
    const mx::array& lengths,
    const mx::Stream& stream);

// 1 where a mask, bool (..., L), holds and 0 where it does not, in the shape
// and the dtype of `like` (..., L, D).
mx::array taken_factors(
    const mx::array& mask,
    const mx::array& like,
    const mx::Stream& stream);

// x (..., L, D) with zeros, whatever it is there, at the steps where a mask
// does not hold, bool (..., L), to whose axes the leading ones of x broadcast.
mx::array without_skipped(
    const mx::array& x,
    const mx::array& mask,
    const mx::Stream& stream);

// Two arrays (..., H) as the steps of a sequence (..., 2, H).
mx::array two_steps(
    const mx::array& first,
    const mx::array& last,
    const mx::Stream& stream);

// The inputs of these primitives.
enum class StepSlot : int { sequence, step, lengths, reset };

const SlotKind& kind_of(StepSlot slot);

// A primitive along time, linear in the inputs that `is_linear_in` names. Its
// derivatives follow from what it is on other inputs and from its transpose.
class AlongTime : public CpuPrimitive {
 public:
  AlongTime(
      const mx::Stream& stream,
      const Slots<StepSlot>& slots,
      const CourseForm& course)
      : CpuPrimitive(stream), slots_(slots), course_(course) {
  }

  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()

 protected:
  // The same of another sequence and another step.
  virtual mx::array again(
      const mx::array& sequence,
      const std::optional<mx::array>& step,
      const Course& course) = 0;
  // What a cotangent is for an input that it is linear in; of the sequence only
  // the shape counts.
  virtual mx::array transposed(
      StepSlot input,
      const mx::array& cotangent,
      const mx::array& sequence,
      const Course& course) = 0;
  virtual bool is_linear_in(StepSlot input) const {
    return kind_of(input).has_derivative();
  }
  // What has the shape of the result.
  virtual StepSlot result() const {
    return StepSlot::sequence;
  }

  const mx::array& sequence_of(const Arrays& inputs) const {
    return slots_.in(inputs, StepSlot::sequence);
  }
  std::optional<mx::array> step_of(const Arrays& inputs) const {
    return slots_.find(inputs, StepSlot::step);
  }
  Course course_with(const Arrays& inputs) const {
    return course_of(course_, slots_, inputs);
  }

  Slots<StepSlot> slots_;
  CourseForm course_;
};

// What each of them says of itself.
#define DEFINE_AGAIN()                      \
  mx::array again(                          \
      const mx::array& sequence,            \
      const std::optional<mx::array>& step, \
      const Course& course) override;       \
  mx::array transposed(                     \
      StepSlot input,                       \
      const mx::array& cotangent,           \
      const mx::array& sequence,            \
      const Course& course) override;

// The step is what stands before all, where that is not zero.
class StepBefore : public AlongTime {
 public:
  using AlongTime::AlongTime;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  DEFINE_OWN_NAME(StepBefore)

 protected:
  DEFINE_AGAIN()
};

class StepAfter : public AlongTime {
 public:
  using AlongTime::AlongTime;

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  DEFINE_OWN_NAME(StepAfter)

 protected:
  DEFINE_AGAIN()
};

// The step is what stands for one where there are none.
class StepAt : public AlongTime {
 public:
  StepAt(
      const mx::Stream& stream,
      const Slots<StepSlot>& slots,
      const CourseForm& course,
      End end)
      : AlongTime(stream, slots, course), end_(end) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_OWN_NAME(StepAt)

 protected:
  DEFINE_AGAIN()
  StepSlot result() const override {
    return StepSlot::step;
  }

 private:
  End end_;
};

// Of the sequence only the shape counts.
class OnlyAt : public AlongTime {
 public:
  OnlyAt(
      const mx::Stream& stream,
      const Slots<StepSlot>& slots,
      const CourseForm& course,
      End end)
      : AlongTime(stream, slots, course), end_(end) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_OWN_NAME(OnlyAt)

 protected:
  DEFINE_AGAIN()
  bool is_linear_in(StepSlot input) const override {
    return input == StepSlot::step;
  }

 private:
  End end_;
};

class OnlyPlaces : public AlongTime {
 public:
  OnlyPlaces(
      const mx::Stream& stream,
      const Slots<StepSlot>& slots,
      const CourseForm& course,
      Places places)
      : AlongTime(stream, slots, course), places_(places) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_OWN_NAME(OnlyPlaces)

 protected:
  DEFINE_AGAIN()

 private:
  Places places_;
};

#undef DEFINE_AGAIN

} // namespace mlx_recurrent
