#include "primitives/arithmetic.h"

#include <memory>

#include "primitives/batching.h"
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

void Arithmetic::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::Stream& s = stream();
  const mx::array& a = inputs[0];
  const mx::array& b = inputs[1];
  if (a.flags().row_contiguous && b.flags().row_contiguous && a.size() > 0) {
    static constexpr kernels::Instruction code[] = {
        {kernels::Op::add, 2, 0, 1, 0}, {kernels::Op::multiply, 2, 0, 1, 0}};
    static constexpr kernels::Program programs[] = {
        {&code[0], 1, nullptr, 0, 2, 1, 2}, {&code[1], 1, nullptr, 0, 2, 1, 2}};
    run_program(programs[static_cast<int>(operation_)], inputs, outputs[0], s);
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

Arrays Arithmetic::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    bool factor = operation_ == Operation::multiply;
    grads.push_back(factor ? multiply(c, primals[1 - i], s) : c);
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
    mx::array d = matched(tangents[k], primals[i], s);
    if (operation_ == Operation::multiply) {
      d = multiply(d, primals[1 - i], s);
    }
    total = total ? add(*total, d, s) : d;
  }
  return {*total};
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
