#include "primitives/linear_scan.h"

#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

// u, the result before each step. Cut, because y is a derivative.
mx::array before(
    const LinearScanInputs& in,
    const mx::array& y,
    const mx::Stream& s) {
  mx::array u = step_before(y, in.hidden, in.course, s);
  if (!in.hidden0) {
    return u;
  }
  mx::array rows = repeated_row(*in.hidden0, y, s);
  return add(u, only_places(rows, Places::starts, in.course, s), s);
}

// The sum of terms that may be absent.
std::optional<mx::array> sum(
    const std::optional<mx::array>& a,
    const std::optional<mx::array>& b,
    const mx::Stream& s) {
  return a && b ? add(*a, *b, s) : a ? a : b;
}

} // namespace

mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& s) {
  return factor ? multiply(*factor, a, s) : a;
}

mx::array linear_scan(
    LinearScanInputs in,
    bool transposed,
    const mx::Stream& stream) {
  if (!in.course.reset) {
    in.hidden0 = std::nullopt;
  }
  in.course = in.course.cut();
  Arrays inputs{in.s, in.V};
  for (const auto* optional :
       {&in.alpha, &in.beta, &in.gamma, &in.hidden, &in.hidden0}) {
    if (*optional) {
      inputs.push_back(**optional);
    }
  }
  in.course.append_to(inputs);
  auto primitive = std::make_shared<LinearScan>(
      stream,
      LinearScanForm{
          transposed,
          in.alpha.has_value(),
          in.beta.has_value(),
          in.gamma.has_value(),
          in.hidden.has_value(),
          in.hidden0.has_value(),
          in.course.form});
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), in.s.dtype(), std::move(primitive), std::move(inputs));
}

LinearScanInputs LinearScan::unpack(const Arrays& inputs) const {
  auto at = [&](int i) {
    return i < 0 ? std::nullopt : std::optional(inputs[i]);
  };
  return {
      inputs[form_.s],
      inputs[form_.V],
      at(form_.alpha()),
      at(form_.beta()),
      at(form_.gamma()),
      at(form_.hidden()),
      at(form_.hidden0()),
      Course(form_.course, inputs)};
}

LinearScanInputs LinearScan::outside(const Arrays& inputs) {
  LinearScanInputs in = unpack(inputs);
  for (auto* factor : {&in.alpha, &in.beta, &in.gamma}) {
    if (*factor) {
      *factor = only_places(**factor, Places::valid, in.course, stream());
    }
  }
  return in;
}

void LinearScan::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  // Each element of s is read just before its place is written, and what is
  // cleared is not read.
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
  auto sequence = [&](const std::optional<mx::array>& a) {
    return a ? operands->sequence(*a) : absent;
  };
  kernels::Sequence source = operands->sequence(in.s);
  kernels::Sequence alpha = sequence(in.alpha);
  kernels::Sequence beta = sequence(in.beta);
  kernels::Sequence gamma = sequence(in.gamma);
  kernels::Sequence hidden = in.hidden ? operands->rows(*in.hidden) : absent;
  std::vector<kernels::Course> course =
      courses(form_.course, inputs, out, sets, N, *operands);
  std::vector<kernels::LinearScanArgs> args;
  for (int64_t i = 0; i < sets; ++i) {
    args.push_back(
        {N,
         L,
         H,
         form_.transposed,
         course[i],
         of_set(source, i, N),
         Operands::matrix(in.V, i),
         of_set(alpha, i, N),
         of_set(beta, i, N),
         of_set(gamma, i, N),
         of_set(hidden, i, N),
         in.hidden0 ? Operands::vector(*in.hidden0, i)
                    : kernels::Vector{nullptr, 0},
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
      same_sets(in.s, in.V, sets) && form_.course.flips < sets &&
      mlx_recurrent::fits(form_.course, inputs, in.s) &&
      (!in.hidden || in.hidden->shape() == with_tail(in.s, 2, {H})) &&
      (!in.hidden0 || in.hidden0->shape() == with_tail(in.V, 1, {})) &&
      !(form_.transposed && (in.hidden || in.hidden0));
  for (const auto* factor : {&in.alpha, &in.beta, &in.gamma}) {
    fits = fits && (!*factor || (*factor)->shape() == in.s.shape());
  }
  for (int i = 0; i < form_.inputs(); ++i) {
    fits = fits && inputs[i].dtype() == in.s.dtype();
  }
  expect(fits, name());
  return {in.s.shape()};
}

bool LinearScan::is_equivalent(const mx::Primitive& other) const {
  return form_ == static_cast<const LinearScan&>(other).form_;
}

// With lambda the result of the transposed scan and u what stands before each
// step of the other's, a factor's derivative is the product of its two sides,
// whichever of the two is given.
Arrays LinearScan::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  LinearScanInputs in = outside(primals);
  int sets = static_cast<int>(in.V.ndim()) - 2;
  mx::array c = matched(cotangents[0], outputs[0], s);
  mx::array other = linear_scan(
      {c, in.V, in.alpha, in.beta, in.gamma, {}, {}, in.course},
      !form_.transposed,
      s);
  mx::array lambda = form_.transposed ? outputs[0] : other;
  mx::array u = before(in, form_.transposed ? other : outputs[0], s);
  mx::array carried = scaled(in.gamma, u, s);
  mx::array weighted = scaled(in.beta, lambda, s);
  mx::array back = mlx_recurrent::transposed(in.V, s);
  // (alpha + gamma V^T beta) lambda, of some places or rows.
  auto through = [&](const auto& pick) {
    mx::array by_V = matmul(pick(weighted), back, {}, s);
    return *sum(
        in.alpha ? std::optional(multiply(pick(*in.alpha), pick(lambda), s))
                 : std::nullopt,
        in.gamma ? multiply(pick(*in.gamma), by_V, s) : by_V,
        s);
  };
  Arrays grads;
  for (int i : argnums) {
    if (i == form_.s) {
      grads.push_back(other);
    } else if (i == form_.V) {
      grads.push_back(outer_sum(weighted, carried, sets, s));
    } else if (i == form_.alpha()) {
      grads.push_back(multiply(lambda, u, s));
    } else if (i == form_.beta()) {
      grads.push_back(multiply(lambda, matmul(carried, in.V, {}, s), s));
    } else if (i == form_.gamma()) {
      grads.push_back(multiply(u, matmul(weighted, back, {}, s), s));
    } else if (i == form_.hidden()) {
      grads.push_back(through([&](const mx::array& a) {
        return step_at(a, End::first, {}, in.course, s);
      }));
    } else if (i == form_.hidden0()) {
      grads.push_back(row_sum(
          through([&](const mx::array& a) {
            return only_places(a, Places::starts, in.course, s);
          }),
          sets,
          s));
    } else {
      grads.push_back(filled(primals[i], 0, s));
    }
  }
  return grads;
}

Arrays LinearScan::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  LinearScanInputs in = outside(primals);
  mx::array y = linear_scan(in, form_.transposed, s);
  mx::array back = mlx_recurrent::transposed(in.V, s);
  mx::array weighted = scaled(in.beta, y, s);
  std::optional<mx::array> source;  // at its own step
  std::optional<mx::array> passing; // at a passage, for the step before
  std::optional<mx::array> first;
  std::optional<mx::array> hidden0;
  auto pass = [&](const mx::array& term) { passing = sum(passing, term, s); };
  std::optional<mx::array> u;
  if (!form_.transposed) {
    u = before(in, y, s);
  }
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    if (i >= form_.inputs()) {
      continue;
    }
    mx::array d = matched(tangents[k], primals[i], s);
    if (i == form_.s) {
      source = d;
    } else if (i == form_.hidden()) {
      first = d;
    } else if (i == form_.hidden0()) {
      hidden0 = d;
    } else if (i == form_.V) {
      pass(
          u ? scaled(in.beta, matmul(scaled(in.gamma, *u, s), d, {}, s), s)
            : scaled(
                  in.gamma,
                  matmul(weighted, mlx_recurrent::transposed(d, s), {}, s),
                  s));
    } else {
      d = only_places(d, Places::valid, in.course, s);
      if (i == form_.alpha()) {
        pass(multiply(d, u ? *u : y, s));
      } else if (i == form_.beta()) {
        pass(
            u ? multiply(d, matmul(scaled(in.gamma, *u, s), in.V, {}, s), s)
              : scaled(in.gamma, matmul(multiply(d, y, s), back, {}, s), s));
      } else {
        pass(
            u ? scaled(in.beta, matmul(multiply(d, *u, s), in.V, {}, s), s)
              : multiply(d, matmul(weighted, back, {}, s), s));
      }
    }
  }
  if (form_.transposed && passing) {
    passing = step_after(*passing, in.course, s);
  }
  source = sum(source, passing, s);
  return {linear_scan(
      {source ? *source : filled(y, 0, s),
       in.V,
       in.alpha,
       in.beta,
       in.gamma,
       first,
       hidden0,
       in.course},
      form_.transposed,
      s)};
}

std::pair<Arrays, Ints> LinearScan::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(inputs.size(), true);
  joins[form_.V] = false;
  if (form_.has_hidden0) {
    joins[form_.hidden0()] = false;
  }
  int sets =
      static_cast<int>(inputs[form_.V].ndim()) - 2 - (axes[form_.V] >= 0);
  return vectorize(
      [&](const Arrays& in, int more_sets) {
        LinearScanInputs unpacked = unpack(in);
        unpacked.course.form =
            with_axis_at(form_.course, more_sets > 0 ? 0 : sets);
        return Arrays{linear_scan(unpacked, form_.transposed, stream())};
      },
      joins,
      true,
      sets,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
