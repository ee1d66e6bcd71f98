#include "primitives/linear_scan.h"

#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = ScanSlot;

constexpr Slot factor_slots[] = {Slot::alpha, Slot::beta, Slot::gamma};

using Args = kernels::LinearScanArgs;

constexpr struct {
  Slot slot;
  SlotKind kind;
  Place<Args> place; // the course's are in `Args::course`
} rows[] = {
    {Slot::s, {"s", Lead::rows, {Size::L, Size::H}}, &Args::s},
    {Slot::V, {"V", Lead::sets, {Size::H, Size::H}}, &Args::V},
    {Slot::alpha, {"alpha", Lead::rows, {Size::L, Size::H}}, &Args::alpha},
    {Slot::beta, {"beta", Lead::rows, {Size::L, Size::H}}, &Args::beta},
    {Slot::gamma, {"gamma", Lead::rows, {Size::L, Size::H}}, &Args::gamma},
    {Slot::hidden, {"hidden", Lead::rows, {Size::H}}, &Args::hidden},
    {Slot::hidden0, {"hidden0", Lead::sets, {Size::H}}, &Args::hidden0},
    {Slot::lengths, lengths_kind, {}},
    {Slot::reset, reset_kind, {}}};
static_assert(in_order(rows));

// u, the result before each step. Cut, because y is a derivative.
mx::array before(
    const Slotted<Slot>& in,
    const Course& course,
    const mx::array& y,
    const mx::Stream& s) {
  mx::array u = step_before(y, in[Slot::hidden], course, s);
  if (!in[Slot::hidden0]) {
    return u;
  }
  mx::array rows = repeated_row(*in[Slot::hidden0], y, s);
  return add(u, only_places(rows, Places::starts, course, s), s);
}

// The sum of terms that may be absent.
std::optional<mx::array> sum(
    const std::optional<mx::array>& a,
    const std::optional<mx::array>& b,
    const mx::Stream& s) {
  return a && b ? add(*a, *b, s) : a ? a : b;
}

} // namespace

const SlotKind& kind_of(ScanSlot slot) {
  return rows[static_cast<int>(slot)].kind;
}

mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& s) {
  return factor ? multiply(*factor, a, s) : a;
}

mx::array linear_scan(
    Slotted<Slot> in,
    const Course& course,
    bool transposed,
    const mx::Stream& stream) {
  Course cut = course.cut();
  in[Slot::lengths] = cut.lengths;
  in[Slot::reset] = cut.reset;
  if (!cut.reset) {
    in[Slot::hidden0] = std::nullopt;
  }
  auto primitive = std::make_shared<LinearScan>(
      stream, LinearScanForm{transposed, in.slots(), cut.form});
  Arrays inputs = in.in_order();
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  mx::Dtype dtype = in.get(Slot::s).dtype();
  return mx::array(
      std::move(shape), dtype, std::move(primitive), std::move(inputs));
}

Slotted<Slot> LinearScan::outside(const Arrays& inputs) {
  Slotted<Slot> in(form_.inputs, inputs);
  Course course = course_of(form_.course, form_.inputs, inputs);
  for (Slot slot : factor_slots) {
    if (auto& factor = in[slot]) {
      factor = only_places(*factor, Places::valid, course, stream());
    }
  }
  return in;
}

void LinearScan::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  // Each element of s is read just before its place is written, and what is
  // cleared is not read.
  allocate_over(out, form_.inputs.in(inputs, Slot::s));
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  const mx::array& V = form_.inputs.in(inputs, Slot::V);
  int axes = static_cast<int>(V.ndim()) - 2;
  int64_t sets = size_between(V, 0, axes);
  int64_t N = size_between(out, axes, static_cast<int>(out.ndim()) - 2);
  int64_t L = out.shape(-2);
  int64_t H = out.shape(-1);
  Args one{};
  one.N = N;
  one.L = L;
  one.H = H;
  one.transposed = form_.transposed;
  std::vector<Args> args(sets, one);
  for (int i = 0; i < form_.inputs.size(); ++i) {
    Slot slot = form_.inputs.at(i);
    const auto& row = rows[static_cast<int>(slot)];
    put(args, row.place, row.kind, inputs[i], N, *operands);
  }
  Course course = course_of(form_.course, form_.inputs, inputs);
  std::vector<kernels::Course> runs = courses(course, out, sets, N, *operands);
  for (int64_t i = 0; i < sets; ++i) {
    args[i].course = runs[i];
    args[i].out = of_set(out, i, sets);
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
  const mx::array& s = form_.inputs.in(inputs, Slot::s);
  const mx::array& V = form_.inputs.in(inputs, Slot::V);
  bool starts =
      form_.inputs.has(Slot::hidden) || form_.inputs.has(Slot::hidden0);
  int sets = static_cast<int>(V.ndim()) - 2;
  expect(
      has_kernels(s.dtype()) && sets >= 0 && s.ndim() >= V.ndim() &&
          same_sets(s, V, sets) && form_.course.flips < sets &&
          form_.course.fits(s) && !(form_.transposed && starts),
      name());
  Shapes shapes(s, sets, s.shape(-1));
  expect(shapes.fit(form_.inputs, inputs), name());
  return {s.shape()};
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
  Slotted<Slot> in = outside(primals);
  Course course = course_of(form_.course, form_.inputs, primals);
  const mx::array& V = in.get(Slot::V);
  const auto& alpha = in[Slot::alpha];
  const auto& beta = in[Slot::beta];
  const auto& gamma = in[Slot::gamma];
  int sets = static_cast<int>(V.ndim()) - 2;
  Slotted<Slot> cotangents_in = in;
  cotangents_in[Slot::s] = matched(cotangents[0], outputs[0], s);
  cotangents_in[Slot::hidden] = cotangents_in[Slot::hidden0] = std::nullopt;
  mx::array other = linear_scan(cotangents_in, course, !form_.transposed, s);
  mx::array lambda = form_.transposed ? outputs[0] : other;
  mx::array u = before(in, course, form_.transposed ? other : outputs[0], s);
  mx::array carried = scaled(gamma, u, s);
  mx::array weighted = scaled(beta, lambda, s);
  mx::array back = mlx_recurrent::transposed(V, s);
  // (alpha + gamma V^T beta) lambda, of some places or rows.
  auto through = [&](const auto& pick) {
    mx::array by_V = matmul(pick(weighted), back, {}, s);
    return *sum(
        alpha ? std::optional(multiply(pick(*alpha), pick(lambda), s))
              : std::nullopt,
        gamma ? multiply(pick(*gamma), by_V, s) : by_V,
        s);
  };
  auto gradient = [&](int i) -> mx::array {
    switch (form_.inputs.at(i)) {
      case Slot::s:
        return other;
      case Slot::V:
        return outer_sum(weighted, carried, sets, s);
      case Slot::alpha:
        return multiply(lambda, u, s);
      case Slot::beta:
        return multiply(lambda, matmul(carried, V, {}, s), s);
      case Slot::gamma:
        return multiply(u, matmul(weighted, back, {}, s), s);
      case Slot::hidden:
        return through([&](const mx::array& a) {
          return step_at(a, End::first, {}, course, s);
        });
      case Slot::hidden0:
        return row_sum(
            through([&](const mx::array& a) {
              return only_places(a, Places::starts, course, s);
            }),
            sets,
            s);
      case Slot::lengths:
      case Slot::reset:
        return filled(primals[i], 0, s);
    }
    throw std::out_of_range("[mlx_recurrent] no such slot");
  };
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(gradient(i));
  }
  return grads;
}

Arrays LinearScan::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  Slotted<Slot> in = outside(primals);
  Course course = course_of(form_.course, form_.inputs, primals);
  const mx::array& V = in.get(Slot::V);
  const auto& beta = in[Slot::beta];
  const auto& gamma = in[Slot::gamma];
  mx::array y = linear_scan(in, course, form_.transposed, s);
  mx::array back = mlx_recurrent::transposed(V, s);
  mx::array weighted = scaled(beta, y, s);
  Slotted<Slot> moved = in;
  auto& source = moved[Slot::s]; // at its own step
  source = moved[Slot::hidden] = moved[Slot::hidden0] = std::nullopt;
  std::optional<mx::array> passing; // at a passage, for the step before
  auto pass = [&](const mx::array& term) { passing = sum(passing, term, s); };
  std::optional<mx::array> u;
  if (!form_.transposed) {
    u = before(in, course, y, s);
  }
  for (size_t k = 0; k < argnums.size(); ++k) {
    Slot slot = form_.inputs.at(argnums[k]);
    if (!kind_of(slot).has_derivative()) {
      continue;
    }
    mx::array d = matched(tangents[k], primals[argnums[k]], s);
    auto valid = [&] { return only_places(d, Places::valid, course, s); };
    switch (slot) {
      case Slot::s:
      case Slot::hidden:
      case Slot::hidden0:
        moved[slot] = d;
        break;
      case Slot::V:
        pass(
            u ? scaled(beta, matmul(scaled(gamma, *u, s), d, {}, s), s)
              : scaled(
                    gamma,
                    matmul(weighted, mlx_recurrent::transposed(d, s), {}, s),
                    s));
        break;
      case Slot::alpha:
        pass(multiply(valid(), u ? *u : y, s));
        break;
      case Slot::beta:
        pass(
            u ? multiply(valid(), matmul(scaled(gamma, *u, s), V, {}, s), s)
              : scaled(gamma, matmul(multiply(valid(), y, s), back, {}, s), s));
        break;
      case Slot::gamma:
        pass(
            u ? scaled(beta, matmul(multiply(valid(), *u, s), V, {}, s), s)
              : multiply(valid(), matmul(weighted, back, {}, s), s));
        break;
      case Slot::lengths:
      case Slot::reset:
        break;
    }
  }
  if (form_.transposed && passing) {
    passing = step_after(*passing, course, s);
  }
  source = sum(source, passing, s);
  if (!source) {
    source = filled(y, 0, s);
  }
  return {linear_scan(moved, course, form_.transposed, s)};
}

std::pair<Arrays, Ints> LinearScan::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  int V = form_.inputs.index(Slot::V);
  int sets = static_cast<int>(inputs[V].ndim()) - 2 - (axes[V] >= 0);
  return vectorize(
      [&](const Arrays& in, int more_sets) {
        Course course = course_of(form_.course, form_.inputs, in);
        course.form = with_axis_at(form_.course, more_sets > 0 ? 0 : sets);
        return Arrays{linear_scan(
            Slotted<Slot>(form_.inputs, in),
            course,
            form_.transposed,
            stream())};
      },
      are_of_rows(form_.inputs),
      true,
      sets,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
