#include "primitives/linear_scan.h"

#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"
#include "primitives/time.h"

namespace mlx_recurrent {

mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& s) {
  return factor ? multiply(*factor, a, s) : a;
}

mx::array linear_scan(
    const LinearScanInputs& in,
    bool reverse,
    const mx::Stream& stream) {
  Arrays inputs{in.s, in.V};
  for (const auto* optional : {&in.beta, &in.gamma, &in.hidden}) {
    if (*optional) {
      inputs.push_back(**optional);
    }
  }
  auto primitive = std::make_shared<LinearScan>(
      stream,
      reverse,
      in.beta.has_value(),
      in.gamma.has_value(),
      in.hidden.has_value());
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), in.s.dtype(), std::move(primitive), std::move(inputs));
}

LinearScanInputs LinearScan::unpack(const Arrays& inputs) const {
  auto at = [&](int i) {
    return i < 0 ? std::nullopt : std::optional(inputs[i]);
  };
  return {inputs[0], inputs[1], at(beta()), at(gamma()), at(hidden())};
}

void LinearScan::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  // Each element of s is read just before its place is written.
  allocate_over(out, inputs[0]);
  if (out.size() == 0) {
    return;
  }
  LinearScanInputs in = unpack(inputs);
  auto operands = std::make_shared<Operands>();
  kernels::Sequence absent{nullptr, nullptr, 0, 0};
  int axes = static_cast<int>(in.V.ndim()) - 2;
  int64_t sets = size_between(in.V, 0, axes);
  int64_t N = size_between(out, axes, static_cast<int>(out.ndim()) - 2);
  int64_t L = out.shape(-2);
  int64_t H = out.shape(-1);
  kernels::Sequence source = operands->sequence(in.s);
  kernels::Sequence beta = in.beta ? operands->sequence(*in.beta) : absent;
  kernels::Sequence gamma = in.gamma ? operands->sequence(*in.gamma) : absent;
  kernels::Sequence hidden = in.hidden ? operands->rows(*in.hidden) : absent;
  std::vector<kernels::LinearScanArgs> args;
  for (int64_t i = 0; i < sets; ++i) {
    args.push_back(
        {N,
         L,
         H,
         reverse_,
         of_set(source, i, N),
         Operands::matrix(in.V, i),
         of_set(beta, i, N),
         of_set(gamma, i, N),
         of_set(hidden, i, N),
         of_set(out, i, sets)});
  }
  launch(
      stream(),
      kernels_for(out).linear_scan,
      std::move(args),
      kernels::partition_recurrence(
          N, L, 0, H, compute_bytes(out.dtype()), machine_now(), sets),
      operands);
}

std::vector<mx::Shape> LinearScan::output_shapes(const Arrays& inputs) {
  LinearScanInputs in = unpack(inputs);
  bool fits = has_kernels(in.s.dtype()) && in.V.ndim() >= 2 &&
      in.s.ndim() >= in.V.ndim();
  int sets = fits ? static_cast<int>(in.V.ndim()) - 2 : 0;
  int H = fits ? in.s.shape(-1) : 0;
  fits = fits && in.V.shape(-1) == H && in.V.shape(-2) == H &&
      same_sets(in.s, in.V, sets) &&
      (!in.beta || in.beta->shape() == in.s.shape()) &&
      (!in.gamma || in.gamma->shape() == in.s.shape()) &&
      (!in.hidden || in.hidden->shape() == with_tail(in.s, 2, {H}));
  for (const mx::array& a : inputs) {
    fits = fits && a.dtype() == in.s.dtype();
  }
  expect(fits, name());
  return {in.s.shape()};
}

bool LinearScan::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const LinearScan&>(other);
  return reverse_ == o.reverse_ && has_beta_ == o.has_beta_ &&
      has_gamma_ == o.has_gamma_ && has_hidden_ == o.has_hidden_;
}

// The transpose swaps beta and gamma and runs the other way.
Arrays LinearScan::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  LinearScanInputs in = unpack(primals);
  const mx::array& y = outputs[0];
  int sets = static_cast<int>(in.V.ndim()) - 2;
  mx::array back = transposed(in.V, s);
  mx::array c = matched(cotangents[0], y, s);
  mx::array lambda =
      linear_scan({c, back, in.gamma, in.beta, {}}, !reverse_, s);
  mx::array weighted = scaled(in.beta, lambda, s);
  Arrays grads;
  for (int i : argnums) {
    if (i == 0) {
      grads.push_back(lambda);
    } else if (i == 1) {
      mx::array carried =
          step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
      grads.push_back(outer_sum(weighted, carried, sets, s));
    } else if (i == beta()) {
      mx::array carried =
          step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
      grads.push_back(multiply(lambda, matmul(carried, in.V, {}, s), s));
    } else if (i == gamma()) {
      mx::array after = step_before(weighted, {}, !reverse_, s);
      grads.push_back(multiply(y, matmul(after, back, {}, s), s));
    } else {
      End first = reverse_ ? End::last : End::first;
      grads.push_back(matmul(step_at(weighted, first, {}, s), back, {}, s));
    }
  }
  return grads;
}

Arrays LinearScan::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  LinearScanInputs in = unpack(primals);
  mx::array y = linear_scan(in, reverse_, s);
  mx::array carried =
      step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
  std::optional<mx::array> source;
  std::optional<mx::array> first;
  auto add = [&](const mx::array& term) {
    source = source ? mlx_recurrent::add(*source, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    mx::array d = matched(tangents[k], primals[i], s);
    if (i == 0) {
      add(d);
    } else if (i == 1) {
      add(scaled(in.beta, matmul(carried, d, {}, s), s));
    } else if (i == beta()) {
      add(multiply(d, matmul(carried, in.V, {}, s), s));
    } else if (i == gamma()) {
      mx::array moved = step_before(multiply(d, y, s), {}, reverse_, s);
      add(scaled(in.beta, matmul(moved, in.V, {}, s), s));
    } else {
      first = d;
    }
  }
  return {linear_scan(
      {source ? *source : filled(y, 0, s), in.V, in.beta, in.gamma, first},
      reverse_,
      s)};
}

std::pair<Arrays, Ints> LinearScan::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(inputs.size(), true);
  joins[1] = false;
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{linear_scan(unpack(in), reverse_, stream())};
      },
      joins,
      true,
      static_cast<int>(inputs[1].ndim()) - 2 - (axes[1] >= 0),
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
