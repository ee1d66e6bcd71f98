#include "primitives/pointwise.h"

#include "mlx/transforms.h"
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

mx::array pointwise_slope(
    const mx::array& a,
    const std::shared_ptr<const Traced>& function,
    const mx::Stream& stream) {
  if (auto slope = function->slope()) {
    return pointwise(a, std::move(slope), stream);
  }
  // In MLX's operations.
  return mx::vjp(
             [&](const Arrays& in) {
               return Arrays{function->expression().replay(in)};
             },
             {a},
             {mx::ones_like(a, stream)})
      .second[0];
}

void run_program(
    const kernels::Program& program,
    const Arrays& inputs,
    mx::array& out,
    const mx::Stream& stream,
    std::shared_ptr<const void> owner) {
  bool second = inputs.size() > 1 && !inputs[0].is_donatable();
  const void* from[2] = {
      inputs[0].data<char>(),
      inputs.size() > 1 ? inputs[1].data<char>() : nullptr};
  allocate_over(out, inputs[second]);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  operands->hold(std::move(owner));
  kernels::PointwiseArgs args{
      static_cast<int64_t>(out.size()),
      &program,
      {from[0], from[1]},
      out.data<char>()};
  launch(
      stream,
      kernels_for(out).pointwise,
      std::vector{args},
      kernels::partition_pointwise(args.count, program.count, machine_now()),
      operands);
}

void Pointwise::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  run_program(function_->function(), inputs, outputs[0], stream(), function_);
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
  mx::array slope = pointwise_slope(primals[0], function_, s);
  return {multiply(matched(cotangents[0], outputs[0], s), slope, s)};
}

Arrays Pointwise::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints&) {
  const mx::Stream& s = stream();
  mx::array slope = pointwise_slope(primals[0], function_, s);
  return {multiply(matched(tangents[0], primals[0], s), slope, s)};
}

std::pair<Arrays, Ints> Pointwise::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return {{pointwise(inputs[0], function_, stream())}, axes};
}

} // namespace mlx_recurrent
