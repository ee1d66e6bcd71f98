#include "primitives/masks.h"

#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"

namespace mlx_recurrent {

namespace {

// What a factor costs, in instructions of a program.
constexpr int kDrawInstructions = 2;

// Memory for one step that all steps share.
void allocate_one_step(mx::array& out) {
  mx::Strides strides(out.ndim(), 0);
  int64_t stride = 1;
  for (int axis = static_cast<int>(out.ndim()) - 1; axis >= 0; --axis) {
    if (axis != static_cast<int>(out.ndim()) - 2) {
      strides[axis] = stride;
      stride *= out.shape(axis);
    }
  }
  mx::array step(with_tail(out, 2, {out.shape(-1)}), out.dtype(), nullptr, {});
  allocate(step);
  bool whole = out.shape(-2) == 1;
  out.copy_shared_buffer(
      step, strides, {true, whole, whole && stride == 1}, step.size());
}

} // namespace

mx::array mask(
    const mx::array& key,
    const mx::array& like,
    kernels::Drawn what,
    double probability,
    int64_t rows,
    const mx::Stream& stream) {
  auto primitive = std::make_shared<Mask>(stream, what, probability, rows);
  mx::Shape shape = primitive->output_shapes({key, like})[0];
  return mx::array(
      std::move(shape), like.dtype(), std::move(primitive), Arrays{key, like});
}

void Mask::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& key = inputs[0];
  mx::array& out = outputs[0];
  bool each_step = kernels::keeps_units(what_);
  if (each_step || out.size() == 0) {
    allocate(out);
  } else {
    allocate_one_step(out);
  }
  if (out.size() == 0) {
    return;
  }
  int axes = static_cast<int>(key.ndim()) - 1;
  int64_t sets = size_between(key, 0, axes);
  int64_t N = size_between(out, axes, static_cast<int>(out.ndim()) - 2);
  int64_t steps = each_step ? out.shape(-2) : 1;
  int64_t set_bytes =
      N * steps * out.shape(-1) * static_cast<int64_t>(out.itemsize());
  kernels::Probabilities probabilities{};
  probabilities.of[static_cast<int>(what_)] = probability_;
  std::vector<kernels::MaskArgs> args;
  for (int64_t i = 0; i < sets; ++i) {
    kernels::Vector words = Operands::vector(key, i);
    args.push_back(
        {N,
         steps,
         out.shape(-1),
         what_,
         {static_cast<const uint32_t*>(words.data),
          words.stride,
          rows_,
          probabilities},
         out.data<char>() + i * set_bytes});
  }
  launch(
      stream(),
      kernels_for(out).mask,
      std::move(args),
      kernels::partition_pointwise(
          N * steps * out.shape(-1), kDrawInstructions, machine_now()),
      std::make_shared<Operands>());
}

std::vector<mx::Shape> Mask::output_shapes(const Arrays& inputs) {
  const mx::array& key = inputs[0];
  const mx::array& like = inputs[1];
  expect(
      key.dtype() == mx::uint32 && key.ndim() >= 1 && key.shape(-1) == 2 &&
          has_kernels(like.dtype()) && like.ndim() > key.ndim() &&
          same_sets(like, key, static_cast<int>(key.ndim()) - 1) && rows_ > 0,
      name());
  return {like.shape()};
}

bool Mask::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Mask&>(other);
  return what_ == o.what_ && probability_ == o.probability_ && rows_ == o.rows_;
}

Arrays Mask::vjp(
    const Arrays& primals,
    const Arrays&,
    const Ints& argnums,
    const Arrays&) {
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(filled(primals[i], 0, stream()));
  }
  return grads;
}

Arrays Mask::jvp(const Arrays& primals, const Arrays&, const Ints&) {
  return {filled(primals[1], 0, stream())};
}

std::pair<Arrays, Ints> Mask::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{mask(in[0], in[1], what_, probability_, rows_, stream())};
      },
      {false, true},
      true,
      static_cast<int>(inputs[0].ndim()) - 1 - (axes[0] >= 0),
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
