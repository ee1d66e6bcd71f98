#include "primitives/arithmetic.h"

#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/memory.h"
#include "primitives/pointwise.h"

namespace mlx_recurrent {

namespace {

using Operation = Arithmetic::Operation;

mx::array apply(
    Operation operation,
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& s) {
  auto primitive = std::make_shared<Arithmetic>(s, operation);
  mx::Shape shape = primitive->output_shapes({a, b})[0];
  return mx::array(
      std::move(shape), a.dtype(), std::move(primitive), Arrays{a, b});
}

// An evaluated array whose elements lie in a row: itself, or a copy.
mx::array in_rows(const mx::array& a, const mx::Stream& s) {
  if (a.flags().row_contiguous) {
    return a;
  }
  Arrays copy{mx::contiguous(a, false, s)};
  copy[0].primitive().eval_cpu({a}, copy);
  mx::cpu::get_command_encoder(s).add_temporary(copy[0]);
  return copy[0];
}

} // namespace

mx::array add(const mx::array& a, const mx::array& b, const mx::Stream& s) {
  return apply(Operation::add, a, b, s);
}

mx::array multiply(
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& s) {
  return apply(Operation::multiply, a, b, s);
}

mx::array gate(const mx::array& mask, const mx::array& b, const mx::Stream& s) {
  return apply(Operation::gate, mask, b, s);
}

void Arithmetic::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  using kernels::Op;
  static constexpr kernels::Instruction adds[] = {{Op::add, 2, 0, 1, 0}};
  static constexpr kernels::Instruction multiplies[] = {
      {Op::multiply, 2, 0, 1, 0}};
  static constexpr kernels::Instruction gates[] = {
      {Op::multiply, 3, 0, 1, 0}, {Op::select, 3, 0, 3, 2}};
  static constexpr double zero = 0;
  static constexpr int32_t second = 2, third = 3;
  static constexpr kernels::Program programs[] = {
      {adds, 1, nullptr, 0, 2, 1, &second, 1},
      {multiplies, 1, nullptr, 0, 2, 1, &second, 1},
      {gates, 2, &zero, 1, 2, 1, &third, 1}};
  const mx::Stream& s = stream();
  const mx::array& a = inputs[0];
  const mx::array& b = inputs[1];
  const kernels::Program& program = programs[static_cast<int>(operation_)];
  if (a.flags().row_contiguous && b.flags().row_contiguous && a.size() > 0) {
    run_program(program, inputs, outputs[0], s);
    return;
  }
  if (operation_ == Operation::gate) {
    run_program(program, {in_rows(a, s), in_rows(b, s)}, outputs[0], s);
    return;
  }
  mx::array by_mlx =
      operation_ == Operation::add ? mx::add(a, b, s) : mx::multiply(a, b, s);
  by_mlx.primitive().eval_cpu(inputs, outputs);
}

std::vector<mx::Shape> Arithmetic::output_shapes(const Arrays& inputs) {
  expect(
      inputs[0].shape() == inputs[1].shape() &&
          inputs[0].dtype() == inputs[1].dtype(),
      name());
  return {inputs[0].shape()};
}

bool Arithmetic::is_equivalent(const mx::Primitive& other) const {
  return operation_ == static_cast<const Arithmetic&>(other).operation_;
}

std::optional<mx::array> Arithmetic::moved(
    const Arrays& primals,
    int i,
    const mx::array& change) {
  switch (operation_) {
    case Operation::add:
      return change;
    case Operation::multiply:
      return multiply(change, primals[1 - i], stream());
    case Operation::gate:
      return i == 0 ? std::nullopt
                    : std::optional(gate(primals[0], change, stream()));
  }
  return std::nullopt;
}

Arrays Arithmetic::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    auto grad = moved(primals, i, c);
    grads.push_back(grad ? *grad : filled(primals[i], 0, s));
  }
  return grads;
}

Arrays Arithmetic::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::optional<mx::array> total;
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    auto d = moved(primals, i, matched(tangents[k], primals[i], s));
    total = total && d ? add(*total, *d, s) : d ? d : total;
  }
  return {total ? *total : filled(primals[0], 0, s)};
}

std::pair<Arrays, Ints> Arithmetic::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{apply(operation_, in[0], in[1], stream())};
      },
      {true, true},
      true,
      0,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
