#include "primitives/pointwise.h"

#include "mlx/transforms.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"

namespace mlx_recurrent {

mx::array pointwise(
    const Arrays& arguments,
    std::shared_ptr<const Traced> function,
    const mx::Stream& stream) {
  // The kernel reads one row of elements.
  Arrays rows;
  for (const mx::array& a : arguments) {
    rows.push_back(mx::contiguous(a, false, stream));
  }
  return mx::array(
      arguments[0].shape(),
      arguments[0].dtype(),
      std::make_shared<Pointwise>(stream, std::move(function)),
      std::move(rows));
}

mx::array pointwise_slope(
    const Arrays& arguments,
    int by,
    const std::shared_ptr<const Traced>& function,
    const mx::Stream& stream) {
  if (auto slope = function->slope(by)) {
    return pointwise(arguments, std::move(slope), stream);
  }
  // In MLX's operations.
  return mx::vjp(
             [&](const Arrays& in) {
               Arrays all = arguments;
               all[by] = in[0];
               return function->expression().replay(all);
             },
             {arguments[by]},
             {mx::ones_like(arguments[by], stream)})
      .second[0];
}

void run_program(
    const kernels::Program& program,
    const Arrays& inputs,
    mx::array& out,
    const mx::Stream& stream,
    std::shared_ptr<const void> owner) {
  auto from = std::make_shared<std::vector<const void*>>();
  size_t over = 0; // which of the inputs' memory becomes the result's
  for (size_t i = 0; i < inputs.size(); ++i) {
    from->push_back(inputs[i].data<char>());
    over = inputs[over].is_donatable() ? over : i;
  }
  allocate_over(out, inputs[over]);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  operands->hold(std::move(owner));
  operands->hold(from);
  kernels::PointwiseArgs args{
      static_cast<int64_t>(out.size()),
      &program,
      from->data(),
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
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays gradients;
  for (int by : argnums) {
    gradients.push_back(scaled_slope(primals, by, c));
  }
  return gradients;
}

Arrays Pointwise::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::optional<mx::array> total;
  for (size_t k = 0; k < argnums.size(); ++k) {
    mx::array d = matched(tangents[k], primals[argnums[k]], s);
    mx::array moved = scaled_slope(primals, argnums[k], d);
    total = total ? add(*total, moved, s) : moved;
  }
  return {*total};
}

// d times the derivative by an argument; zero, whatever d is, where that is.
mx::array Pointwise::scaled_slope(
    const Arrays& primals,
    int by,
    const mx::array& d) {
  const mx::Stream& s = stream();
  auto known = function_->slope(by);
  auto constant = known ? known->expression().constant_result() : std::nullopt;
  if (constant == 0) {
    return filled(d, 0, s);
  }
  return constant == 1
      ? d
      : multiply(d, pointwise_slope(primals, by, function_, s), s);
}

std::pair<Arrays, Ints> Pointwise::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{pointwise(in, function_, stream())};
      },
      std::vector<bool>(inputs.size(), true),
      true,
      0,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
