#include "primitives/matmul.h"

#include "primitives/batching.h"
#include "primitives/launch.h"

namespace mlx_recurrent {

namespace {

// (..., features) as rows and steps; a single vector is one row of one step.
struct Steps {
  int64_t N, L;
};

Steps steps_of(const mx::array& a) {
  int ndim = static_cast<int>(a.ndim());
  return ndim < 2 ? Steps{1, 1} : Steps{leading_size(a, ndim - 2), a.shape(-2)};
}

kernels::Sequence sequence_of(Operands& operands, const mx::array& a) {
  return a.ndim() < 2 ? operands.rows(a) : operands.sequence(a);
}

} // namespace

mx::array matmul(
    const mx::array& x,
    const mx::array& w,
    const std::optional<mx::array>& bias,
    const mx::Stream& stream) {
  Arrays inputs{x, w};
  if (bias) {
    inputs.push_back(*bias);
  }
  auto primitive = std::make_shared<Matmul>(stream);
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), x.dtype(), std::move(primitive), std::move(inputs));
}

mx::array outer_sum(
    const mx::array& a,
    const mx::array& b,
    const mx::Stream& stream) {
  auto primitive = std::make_shared<OuterSum>(stream);
  mx::Shape shape = primitive->output_shapes({a, b})[0];
  return mx::array(
      std::move(shape), a.dtype(), std::move(primitive), Arrays{a, b});
}

void Matmul::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& x = inputs[0];
  const mx::array& w = inputs[1];
  mx::array& out = outputs[0];
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  Steps steps = steps_of(x);
  kernels::MatmulArgs args{
      steps.N,
      steps.L,
      x.shape(-1),
      w.shape(0),
      sequence_of(*operands, x),
      Operands::matrix(w),
      inputs.size() > 2 ? Operands::vector(inputs[2])
                        : kernels::Vector{nullptr, 0},
      out.data<char>()};
  launch(
      stream(),
      kernels_for(out).matmul,
      args,
      kernels::partition_matmul(args.N * args.L, args.K, args.M, machine_now()),
      operands);
}

std::vector<mx::Shape> Matmul::output_shapes(const Arrays& inputs) {
  const mx::array& x = inputs[0];
  const mx::array& w = inputs[1];
  bool fits = has_kernels(x.dtype()) && x.ndim() >= 1 && w.ndim() == 2 &&
      x.shape(-1) == w.shape(1) && w.dtype() == x.dtype();
  if (inputs.size() > 2) {
    fits = fits && inputs[2].shape() == mx::Shape{w.shape(0)} &&
        inputs[2].dtype() == x.dtype();
  }
  expect(fits, name());
  return {with_tail(x, 1, {w.shape(0)})};
}

Arrays Matmul::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    if (i == 0) {
      grads.push_back(matmul(c, mx::transpose(primals[1], s), {}, s));
    } else if (i == 1) {
      grads.push_back(outer_sum(c, primals[0], s));
    } else {
      grads.push_back(sum_leading(c, s));
    }
  }
  return grads;
}

Arrays Matmul::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::optional<mx::array> total;
  auto add = [&](const mx::array& term) {
    total = total ? mx::add(*total, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    mx::array d = matched(tangents[k], primals[argnums[k]], s);
    if (argnums[k] == 0) {
      add(matmul(d, primals[1], {}, s));
    } else if (argnums[k] == 1) {
      add(matmul(primals[0], d, {}, s));
    } else {
      add(mx::broadcast_to(d, output_shapes(primals)[0], s));
    }
  }
  return {*total};
}

std::pair<Arrays, Ints> Matmul::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in) {
        return Arrays{matmul(
            in[0],
            in[1],
            in.size() > 2 ? std::optional(in[2]) : std::nullopt,
            stream())};
      },
      {true, false, false},
      true,
      inputs,
      axes,
      stream());
}

void OuterSum::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& a = inputs[0];
  const mx::array& b = inputs[1];
  mx::array& out = outputs[0];
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  Steps steps = steps_of(a);
  kernels::OuterSumArgs args{
      steps.N,
      steps.L,
      a.shape(-1),
      b.shape(-1),
      sequence_of(*operands, a),
      sequence_of(*operands, b),
      out.data<char>()};
  launch(
      stream(),
      kernels_for(out).outer_sum,
      args,
      kernels::partition_outer_sum(
          args.N * args.L, args.M, args.K, machine_now()),
      operands);
}

std::vector<mx::Shape> OuterSum::output_shapes(const Arrays& inputs) {
  const mx::array& a = inputs[0];
  const mx::array& b = inputs[1];
  expect(
      has_kernels(a.dtype()) && a.ndim() >= 1 && a.dtype() == b.dtype() &&
          b.ndim() == a.ndim() && with_tail(b, 1, {a.shape(-1)}) == a.shape(),
      name());
  return {mx::Shape{a.shape(-1), b.shape(-1)}};
}

Arrays OuterSum::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        i == 0 ? matmul(primals[1], c, {}, s)
               : matmul(primals[0], mx::transpose(c, s), {}, s));
  }
  return grads;
}

Arrays OuterSum::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::optional<mx::array> total;
  for (size_t k = 0; k < argnums.size(); ++k) {
    mx::array d = matched(tangents[k], primals[argnums[k]], s);
    mx::array term = argnums[k] == 0 ? outer_sum(d, primals[1], s)
                                     : outer_sum(primals[0], d, s);
    total = total ? mx::add(*total, term, s) : term;
  }
  return {*total};
}

std::pair<Arrays, Ints> OuterSum::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in) {
        return Arrays{outer_sum(in[0], in[1], stream())};
      },
      {true, true},
      false,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
