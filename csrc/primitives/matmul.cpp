#include "primitives/matmul.h"

#include "mlx_faults/stream_threads.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"

namespace mlx_recurrent {

namespace {

// (S..., ..., features) as rows and steps of each of S sets; a single vector is
// one row of one step.
struct Steps {
  int64_t N, L;
  bool single;

  Steps(const mx::array& a, int sets) {
    int ndim = static_cast<int>(a.ndim());
    single = ndim - sets < 2;
    N = single ? 1 : size_between(a, sets, ndim - 2);
    L = single ? 1 : a.shape(-2);
  }

  kernels::Sequence of(Operands& operands, const mx::array& a) const {
    return single ? operands.rows(a) : operands.sequence(a);
  }
};

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
  expect_blas();
  expect_operands(inputs, stream);
  auto primitive = std::make_shared<Matmul>(stream);
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), x.dtype(), std::move(primitive), std::move(inputs));
}

mx::array outer_sum(
    const mx::array& a,
    const mx::array& b,
    int sets,
    const mx::Stream& stream) {
  auto primitive = std::make_shared<OuterSum>(stream, sets);
  mx::Shape shape = primitive->output_shapes({a, b})[0];
  return mx::array(
      std::move(shape), a.dtype(), std::move(primitive), Arrays{a, b});
}

mx::array repeated_row(
    const mx::array& row,
    const mx::array& like,
    const mx::Stream& stream) {
  return matmul(
      filled(like, 1, stream, 1), mx::expand_dims(row, -1, stream), {}, stream);
}

mx::array row_sum(const mx::array& a, int sets, const mx::Stream& stream) {
  if (static_cast<int>(a.ndim()) == sets + 1) {
    return a;
  }
  mx::array ones = filled(a, 1, stream, 1);
  return mx::squeeze(outer_sum(ones, a, sets, stream), -2, stream);
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
  int axes = static_cast<int>(w.ndim()) - 2;
  int64_t sets = size_between(w, 0, axes);
  Steps steps(x, axes);
  kernels::Sequence rows = steps.of(*operands, x);
  std::vector<kernels::MatmulArgs> args;
  for (int64_t i = 0; i < sets; ++i) {
    args.push_back(
        {steps.N,
         steps.L,
         x.shape(-1),
         w.shape(-2),
         of_set(rows, i, steps.N),
         Operands::matrix(w, i),
         inputs.size() > 2 ? Operands::vector(inputs[2], i)
                           : kernels::Vector{nullptr, 0},
         of_set(out, i, sets),
         sgemm()});
  }
  launch(
      stream(),
      kernels_for(out).matmul,
      std::move(args),
      kernels::partition_matmul(
          steps.N * steps.L, x.shape(-1), w.shape(-2), machine_now(), sets),
      operands);
}

std::vector<mx::Shape> Matmul::output_shapes(const Arrays& inputs) {
  const mx::array& x = inputs[0];
  const mx::array& w = inputs[1];
  bool fits = has_kernels(x.dtype()) && w.ndim() >= 2 &&
      x.ndim() + 1 >= w.ndim() && x.shape(-1) == w.shape(-1) &&
      w.dtype() == x.dtype() && same_sets(x, w, static_cast<int>(w.ndim()) - 2);
  if (inputs.size() > 2) {
    fits = fits && inputs[2].shape() == with_tail(w, 1, {}) &&
        inputs[2].dtype() == x.dtype();
  }
  expect(fits, name());
  return {with_tail(x, 1, {w.shape(-2)})};
}

Arrays Matmul::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  int sets = static_cast<int>(primals[1].ndim()) - 2;
  Arrays grads;
  for (int i : argnums) {
    if (i == 0) {
      grads.push_back(matmul(c, transposed(primals[1], s), {}, s));
    } else if (i == 1) {
      grads.push_back(outer_sum(c, primals[0], sets, s));
    } else {
      grads.push_back(row_sum(c, sets, s));
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
    total = total ? mlx_recurrent::add(*total, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    mx::array d = matched(tangents[k], primals[argnums[k]], s);
    if (argnums[k] == 0) {
      add(matmul(d, primals[1], {}, s));
    } else if (argnums[k] == 1) {
      add(matmul(primals[0], d, {}, s));
    } else {
      add(repeated_row(d, primals[0], s));
    }
  }
  return {*total};
}

std::pair<Arrays, Ints> Matmul::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{matmul(
            in[0],
            in[1],
            in.size() > 2 ? std::optional(in[2]) : std::nullopt,
            stream())};
      },
      {true, false, false},
      true,
      static_cast<int>(inputs[1].ndim()) - 2 - (axes[1] >= 0),
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
  int64_t sets = size_between(a, 0, sets_);
  Steps steps(a, sets_);
  kernels::Sequence rows_a = steps.of(*operands, a);
  kernels::Sequence rows_b = steps.of(*operands, b);
  std::vector<kernels::OuterSumArgs> args;
  for (int64_t i = 0; i < sets; ++i) {
    args.push_back(
        {steps.N,
         steps.L,
         a.shape(-1),
         b.shape(-1),
         of_set(rows_a, i, steps.N),
         of_set(rows_b, i, steps.N),
         of_set(out, i, sets),
         sgemm()});
  }
  launch(
      stream(),
      kernels_for(out).outer_sum,
      std::move(args),
      kernels::partition_outer_sum(
          steps.N * steps.L, a.shape(-1), b.shape(-1), machine_now(), sets),
      operands);
}

std::vector<mx::Shape> OuterSum::output_shapes(const Arrays& inputs) {
  const mx::array& a = inputs[0];
  const mx::array& b = inputs[1];
  expect(
      has_kernels(a.dtype()) && static_cast<int>(a.ndim()) > sets_ &&
          a.dtype() == b.dtype() && b.ndim() == a.ndim() &&
          with_tail(b, 1, {a.shape(-1)}) == a.shape(),
      name());
  int between = static_cast<int>(a.ndim()) - sets_;
  return {with_tail(a, between, {a.shape(-1), b.shape(-1)})};
}

bool OuterSum::is_equivalent(const mx::Primitive& other) const {
  return sets_ == static_cast<const OuterSum&>(other).sets_;
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
               : matmul(primals[0], transposed(c, s), {}, s));
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
    mx::array term = argnums[k] == 0 ? outer_sum(d, primals[1], sets_, s)
                                     : outer_sum(primals[0], d, sets_, s);
    total = total ? add(*total, term, s) : term;
  }
  return {*total};
}

std::pair<Arrays, Ints> OuterSum::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int more_sets) {
        return Arrays{outer_sum(in[0], in[1], sets_ + more_sets, stream())};
      },
      {true, true},
      false,
      sets_,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
