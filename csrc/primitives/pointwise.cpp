#include "primitives/pointwise.h"

#include "primitives/arithmetic.h"
#include "primitives/launch.h"

namespace mlx_recurrent {

mx::array pointwise(
    const mx::array& a,
    std::shared_ptr<const Traced> function,
    const mx::Stream& stream) {
  // The kernel reads one row of elements.
  return mx::array(
      a.shape(),
      a.dtype(),
      std::make_shared<Pointwise>(stream, std::move(function)),
      Arrays{mx::contiguous(a, false, stream)});
}

void Pointwise::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& a = inputs[0];
  mx::array& out = outputs[0];
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  operands->hold(function_);
  kernels::PointwiseArgs args{
      static_cast<int64_t>(out.size()),
      &function_->function(),
      {a.data<char>(), nullptr},
      out.data<char>()};
  launch(
      stream(),
      kernels_for(out).pointwise,
      std::vector{args},
      kernels::partition_pointwise(
          args.count, args.program->count, machine_now()),
      operands);
}

std::vector<mx::Shape> Pointwise::output_shapes(const Arrays& inputs) {
  return {inputs[0].shape()};
}

bool Pointwise::is_equivalent(const mx::Primitive& other) const {
  return function_ == static_cast<const Pointwise&>(other).function_;
}

Arrays Pointwise::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints&,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array slope = pointwise(primals[0], function_->slope(), s);
  return {multiply(matched(cotangents[0], outputs[0], s), slope, s)};
}

Arrays Pointwise::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints&) {
  const mx::Stream& s = stream();
  mx::array slope = pointwise(primals[0], function_->slope(), s);
  return {multiply(matched(tangents[0], primals[0], s), slope, s)};
}

std::pair<Arrays, Ints> Pointwise::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return {{pointwise(inputs[0], function_, stream())}, axes};
}

} // namespace mlx_recurrent
