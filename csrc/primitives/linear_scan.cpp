#include "primitives/linear_scan.h"

#include "primitives/batching.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"

namespace mlx_recurrent {

mx::array steps(
    const mx::array& y,
    int first,
    int last,
    const mx::Stream& s,
    int stride) {
  mx::Shape start(y.ndim(), 0);
  mx::Shape stop = y.shape();
  mx::Shape strides(y.ndim(), 1);
  start[y.ndim() - 2] = first;
  stop[y.ndim() - 2] = last;
  strides[y.ndim() - 2] = stride;
  return mx::slice(y, start, stop, strides, s);
}

mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& s) {
  return factor ? mx::multiply(*factor, a, s) : a;
}

mx::array step_before(
    const mx::array& y,
    const std::optional<mx::array>& first,
    bool reverse,
    const mx::Stream& s) {
  int L = y.shape(-2);
  mx::array before = first
      ? mx::expand_dims(*first, -2, s)
      : mx::zeros(with_tail(y, 2, {1, y.shape(-1)}), y.dtype(), s);
  return reverse ? mx::concatenate({steps(y, 1, L, s), before}, -2, s)
                 : mx::concatenate({before, steps(y, 0, L - 1, s)}, -2, s);
}

mx::array step_at(const mx::array& y, int t, const mx::Stream& s) {
  return mx::squeeze(steps(y, t, t + 1, s), -2, s);
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
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  LinearScanInputs in = unpack(inputs);
  auto operands = std::make_shared<Operands>();
  kernels::Sequence absent{nullptr, nullptr, 0, 0};
  int ndim = static_cast<int>(out.ndim());
  kernels::LinearScanArgs args{
      leading_size(out, ndim - 2),
      out.shape(-2),
      out.shape(-1),
      reverse_,
      operands->sequence(in.s),
      Operands::matrix(in.V),
      in.beta ? operands->sequence(*in.beta) : absent,
      in.gamma ? operands->sequence(*in.gamma) : absent,
      in.hidden ? operands->rows(*in.hidden) : absent,
      out.data<char>()};
  launch(
      stream(),
      kernels_for(out).linear_scan,
      args,
      kernels::partition_recurrence(
          args.N, args.L, 0, args.H, compute_bytes(out.dtype()), machine_now()),
      operands);
}

std::vector<mx::Shape> LinearScan::output_shapes(const Arrays& inputs) {
  LinearScanInputs in = unpack(inputs);
  bool fits = has_kernels(in.s.dtype()) && in.s.ndim() >= 2;
  int H = fits ? in.s.shape(-1) : 0;
  fits = fits && in.V.shape() == mx::Shape{H, H} &&
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
  if (y.shape(-2) == 0) {
    Arrays zeros;
    for (int i : argnums) {
      zeros.push_back(mx::zeros_like(primals[i], s));
    }
    return zeros;
  }
  mx::array transposed = mx::transpose(in.V, s);
  mx::array c = matched(cotangents[0], y, s);
  mx::array lambda =
      linear_scan({c, transposed, in.gamma, in.beta, {}}, !reverse_, s);
  mx::array weighted = scaled(in.beta, lambda, s);
  Arrays grads;
  for (int i : argnums) {
    if (i == 0) {
      grads.push_back(lambda);
    } else if (i == 1) {
      mx::array carried =
          step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
      grads.push_back(outer_sum(weighted, carried, s));
    } else if (i == beta()) {
      mx::array carried =
          step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
      grads.push_back(mx::multiply(lambda, matmul(carried, in.V, {}, s), s));
    } else if (i == gamma()) {
      mx::array after = step_before(weighted, {}, !reverse_, s);
      grads.push_back(mx::multiply(y, matmul(after, transposed, {}, s), s));
    } else {
      int first = reverse_ ? y.shape(-2) - 1 : 0;
      grads.push_back(matmul(step_at(weighted, first, s), transposed, {}, s));
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
  if (in.s.shape(-2) == 0) {
    return {mx::zeros_like(in.s, s)};
  }
  mx::array y = linear_scan(in, reverse_, s);
  mx::array carried =
      step_before(scaled(in.gamma, y, s), in.hidden, reverse_, s);
  std::optional<mx::array> source;
  std::optional<mx::array> first;
  auto add = [&](const mx::array& term) {
    source = source ? mx::add(*source, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    mx::array d = matched(tangents[k], primals[i], s);
    if (i == 0) {
      add(d);
    } else if (i == 1) {
      add(scaled(in.beta, matmul(carried, d, {}, s), s));
    } else if (i == beta()) {
      add(mx::multiply(d, matmul(carried, in.V, {}, s), s));
    } else if (i == gamma()) {
      mx::array moved = step_before(mx::multiply(d, y, s), {}, reverse_, s);
      add(scaled(in.beta, matmul(moved, in.V, {}, s), s));
    } else {
      first = d;
    }
  }
  return {linear_scan(
      {source ? *source : mx::zeros_like(y, s), in.V, in.beta, in.gamma, first},
      reverse_,
      s)};
}

std::pair<Arrays, Ints> LinearScan::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(inputs.size(), true);
  joins[1] = false;
  return vectorize(
      [this](const Arrays& in) {
        return Arrays{linear_scan(unpack(in), reverse_, stream())};
      },
      joins,
      true,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
