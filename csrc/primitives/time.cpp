#include "primitives/time.h"

#include <cstring>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/memory.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

namespace {

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

// What the three primitives copy: `steps` from a sequence, or a single row, or
// zeros, into a result of N rows.
struct Copy {
  int64_t N, L, H, item;
  kernels::Sequence steps{nullptr, nullptr, 0, 0};
  kernels::Sequence row{nullptr, nullptr, 0, 0};
  char* out;
  std::shared_ptr<Operands> operands = std::make_shared<Operands>();

  // y (..., L, H) says how many rows and steps there are.
  Copy(const mx::array& y, mx::array& result)
      : N(size_between(y, 0, static_cast<int>(y.ndim()) - 2)),
        L(y.shape(-2)),
        H(y.shape(-1)),
        item(static_cast<int64_t>(y.itemsize())) {
    allocate(result);
    out = result.data<char>();
  }

  // `to` row number `at`: step t of row n, or where t is no step, the row.
  void put(int64_t at, int64_t n, int64_t t) const {
    bool is_step = steps.data && t >= 0 && t < L;
    const kernels::Sequence& from = is_step ? steps : row;
    copy_row(
        out + at * H * item,
        from.data ? features_at(from, n, is_step ? t : 0, item) : nullptr,
        from.feature_stride,
        H,
        item);
  }
};

mx::array with_shape_of(
    std::shared_ptr<mx::Primitive> primitive,
    Arrays inputs) {
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  mx::Dtype dtype = inputs[0].dtype();
  return mx::array(
      std::move(shape), dtype, std::move(primitive), std::move(inputs));
}

// A step that stands beside a sequence, if there is one, fits it.
void expect_step(const mx::array& y, const mx::array* step, const char* name) {
  expect(
      y.ndim() >= 2 &&
          (!step ||
           (step->dtype() == y.dtype() &&
            step->shape() == with_tail(y, 2, {y.shape(-1)}))),
      name);
}

const mx::array* second(const Arrays& inputs) {
  return inputs.size() > 1 ? &inputs[1] : nullptr;
}

std::optional<mx::array> optional_second(const Arrays& inputs) {
  return inputs.size() > 1 ? std::optional(inputs[1]) : std::nullopt;
}

Arrays with_optional(const mx::array& y, const std::optional<mx::array>& step) {
  return step ? Arrays{y, *step} : Arrays{y};
}

// The tangents of y, zero where it has none, and of the step beside it.
std::pair<mx::array, std::optional<mx::array>> split_tangents(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums,
    const mx::Stream& s) {
  std::optional<mx::array> found[2];
  for (size_t k = 0; k < argnums.size(); ++k) {
    found[argnums[k]] = matched(tangents[k], primals[argnums[k]], s);
  }
  return {found[0] ? *found[0] : filled(primals[0], 0, s), found[1]};
}

} // namespace

mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    bool reverse,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<StepBefore>(stream, reverse), with_optional(y, first));
}

mx::array step_at(
    const mx::array& y,
    End end,
    const std::optional<mx::array>& otherwise,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<StepAt>(stream, end), with_optional(y, otherwise));
}

mx::array only_at(
    const mx::array& step,
    End end,
    const mx::array& like,
    const mx::Stream& stream) {
  return with_shape_of(
      std::make_shared<OnlyAt>(stream, end), Arrays{step, like});
}

void StepBefore::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  if (const mx::array* first = second(inputs)) {
    copy.row = copy.operands->rows(*first);
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy, shift = reverse_ ? 1 : -1] {
        for (int64_t n = 0; n < copy.N; ++n) {
          for (int64_t t = 0; t < copy.L; ++t) {
            copy.put(n * copy.L + t, n, t + shift);
          }
        }
      });
}

std::vector<mx::Shape> StepBefore::output_shapes(const Arrays& inputs) {
  expect_step(inputs[0], second(inputs), name());
  return {inputs[0].shape()};
}

bool StepBefore::is_equivalent(const mx::Primitive& other) const {
  return reverse_ == static_cast<const StepBefore&>(other).reverse_;
}

Arrays StepBefore::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays&) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], primals[0], s);
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        i == 0 ? step_before(c, {}, !reverse_, s)
               : step_at(c, reverse_ ? End::last : End::first, {}, s));
  }
  return grads;
}

Arrays StepBefore::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  auto [dy, dfirst] = split_tangents(primals, tangents, argnums, stream());
  return {step_before(dy, dfirst, reverse_, stream())};
}

std::pair<Arrays, Ints> StepBefore::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{
            step_before(in[0], optional_second(in), reverse_, stream())};
      },
      std::vector<bool>(inputs.size(), true),
      true,
      0,
      inputs,
      axes,
      stream());
}

void StepAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(inputs[0], outputs[0]);
  copy.steps = copy.operands->sequence(inputs[0]);
  if (const mx::array* otherwise = second(inputs)) {
    copy.row = copy.operands->rows(*otherwise);
  }
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy, t = end_ == End::first ? 0 : copy.L - 1] {
        for (int64_t n = 0; n < copy.N; ++n) {
          copy.put(n, n, t);
        }
      });
}

std::vector<mx::Shape> StepAt::output_shapes(const Arrays& inputs) {
  expect_step(inputs[0], second(inputs), name());
  return {with_tail(inputs[0], 2, {inputs[0].shape(-1)})};
}

bool StepAt::is_equivalent(const mx::Primitive& other) const {
  return end_ == static_cast<const StepAt&>(other).end_;
}

Arrays StepAt::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    // What stands for a step gets the cotangent where there are no steps.
    grads.push_back(
        i == 0 ? only_at(c, end_, primals[0], s)
               : step_at(filled(primals[0], 0, s), end_, c, s));
  }
  return grads;
}

Arrays StepAt::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  auto [dy, dotherwise] = split_tangents(primals, tangents, argnums, stream());
  return {step_at(dy, end_, dotherwise, stream())};
}

std::pair<Arrays, Ints> StepAt::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{step_at(in[0], end_, optional_second(in), stream())};
      },
      std::vector<bool>(inputs.size(), true),
      true,
      0,
      inputs,
      axes,
      stream());
}

void OnlyAt::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  Copy copy(inputs[1], outputs[0]);
  copy.row = copy.operands->rows(inputs[0]);
  mx::cpu::get_command_encoder(stream()).dispatch(
      [copy, at = end_ == End::first ? 0 : copy.L - 1] {
        std::memset(copy.out, 0, copy.N * copy.L * copy.H * copy.item);
        for (int64_t n = 0; copy.L > 0 && n < copy.N; ++n) {
          copy.put(n * copy.L + at, n, 0);
        }
      });
}

std::vector<mx::Shape> OnlyAt::output_shapes(const Arrays& inputs) {
  expect_step(inputs[1], &inputs[0], name());
  return {inputs[1].shape()};
}

bool OnlyAt::is_equivalent(const mx::Primitive& other) const {
  return end_ == static_cast<const OnlyAt&>(other).end_;
}

Arrays OnlyAt::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        i == 0 ? step_at(c, end_, {}, s) : filled(primals[1], 0, s));
  }
  return grads;
}

Arrays OnlyAt::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  mx::array d = argnums[0] == 0 ? matched(tangents[0], primals[0], s)
                                : filled(primals[0], 0, s);
  return {only_at(d, end_, primals[1], s)};
}

std::pair<Arrays, Ints> OnlyAt::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{only_at(in[0], end_, in[1], stream())};
      },
      {true, true},
      true,
      0,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
