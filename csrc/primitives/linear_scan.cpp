#include "primitives/linear_scan.h"

#include <algorithm>

#include "mlx_faults/zero_cotangent.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/matmul.h"
#include "primitives/slabs.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = ScanSlot;
using Args = kernels::LinearScanArgs;

constexpr struct {
  Slot slot; // the first of a group
  SlotKind kind;
} groups[] = {
    {Slot::V, {"V", Lead::sets, {Size::state_slabs, Size::H}}},
    {Slot::gamma, {"gamma", Lead::rows, {Size::L, Size::H}}},
    {Slot::lengths, lengths_kind},
    {Slot::reset, reset_kind},
    {Slot::s, {"s", Lead::rows, {Size::L, Size::H}}},
    {Slot::hidden, {"hidden", Lead::rows, {Size::H}}},
    {Slot::hidden0, {"hidden0", Lead::sets, {Size::H}}},
    {Slot::A, {"A", Lead::rows, {Size::L, Size::H}}},
    {Slot::B, {"B", Lead::rows, {Size::L, Size::H}}}};

// The group of a slot, as a place in the table.
size_t group_of(Slot slot) {
  size_t i = std::size(groups) - 1;
  while (slot < groups[i].slot) {
    --i;
  }
  return i;
}

// A slot as its group and which one of that it is.
std::pair<Slot, int> parts_of(Slot slot) {
  Slot group = groups[group_of(slot)].slot;
  return {group, static_cast<int>(slot) - static_cast<int>(group)};
}

Slot nth(Slot group, size_t i) {
  return static_cast<Slot>(static_cast<int>(group) + static_cast<int>(i));
}

// Calls use(array, its slot) for every array of the operands, of which those of
// the course are none.
template <class Operands, class Use>
void each_array(Operands& in, Use use) {
  use(in.gamma, Slot::gamma);
  for (size_t k = 0; k < in.s.size(); ++k) {
    use(in.s[k], nth(Slot::s, k));
    use(in.hidden[k], nth(Slot::hidden, k));
    use(in.hidden0[k], nth(Slot::hidden0, k));
  }
  for (size_t i = 0; i < in.A.size(); ++i) {
    use(in.A[i].factor, nth(Slot::A, i));
  }
  for (size_t i = 0; i < in.B.size(); ++i) {
    use(in.B[i].factor, nth(Slot::B, i));
  }
}

// u, the results before each step. Cut, because y are derivatives.
Arrays before(
    const ScanOperands& in,
    const Course& course,
    const Arrays& y,
    const mx::Stream& s) {
  Arrays all;
  for (size_t k = 0; k < y.size(); ++k) {
    mx::array u = step_before(y[k], in.hidden[k], course, s);
    if (in.hidden0[k]) {
      mx::array rows = repeated_row(*in.hidden0[k], y[k], s);
      u = add(u, only_places(rows, Places::starts, course, s), s);
    }
    all.push_back(u);
  }
  return all;
}

std::vector<ScanLink> links(const std::vector<ScanPath>& paths) {
  std::vector<ScanLink> all;
  for (const ScanPath& path : paths) {
    all.push_back(path.link);
  }
  return all;
}

// The kernel's arguments but for the course and the results.
std::vector<Args> arguments(
    const LinearScanForm& form,
    const ScanOperands& in,
    int64_t sets,
    int64_t N,
    Operands& operands) {
  Args one{};
  one.N = N;
  one.L = in.s[0]->shape(-2);
  one.H = in.s[0]->shape(-1);
  one.states = form.states;
  one.slabs = form.slabs;
  one.transposed = form.transposed;
  one.A_count = static_cast<int>(form.A.size());
  one.B_count = static_cast<int>(form.B.size());
  for (size_t i = 0; i < form.A.size(); ++i) {
    one.A[i] = {form.A[i].to, form.A[i].from, {}};
  }
  for (size_t i = 0; i < form.B.size(); ++i) {
    one.B[i] = {form.B[i].to, form.B[i].from, {}};
  }
  std::vector<Args> all(sets, one);
  for (int64_t i = 0; i < sets; ++i) {
    all[i].V = Operands::matrix(in.V, i);
  }
  auto put = [&](const mx::array& a, auto place) {
    kernels::Sequence rows =
        a.ndim() == in.s[0]->ndim() ? operands.sequence(a) : operands.rows(a);
    for (int64_t i = 0; i < sets; ++i) {
      place(all[i]) = of_set(rows, i, N);
    }
  };
  each_array(in, [&](const std::optional<mx::array>& a, Slot slot) {
    if (!a) {
      return;
    }
    auto [group, k] = parts_of(slot);
    switch (group) {
      case Slot::gamma:
        return put(*a, [](Args& g) -> auto& { return g.gamma; });
      case Slot::s:
        return put(*a, [k = k](Args& g) -> auto& { return g.s[k]; });
      case Slot::hidden:
        return put(*a, [k = k](Args& g) -> auto& { return g.hidden[k]; });
      case Slot::A:
        return put(*a, [k = k](Args& g) -> auto& { return g.A[k].factor; });
      case Slot::B:
        return put(*a, [k = k](Args& g) -> auto& { return g.B[k].factor; });
      default:
        for (int64_t i = 0; i < sets; ++i) {
          all[i].hidden0[k] = Operands::vector(*a, i);
        }
    }
  });
  return all;
}

// What states make of the cotangents of V's results, slab by slab.
mx::array to_slabs(
    const ScanOperands& in,
    const Arrays& states,
    int slabs,
    const mx::Stream& s) {
  StateArrays all(states.begin(), states.end());
  return joined(carried_back(in.B, all, slabs, s), s);
}

// What a scan's derivative is a product of. With lambda the results of the
// transposed scan and u what stands before each step of the other's, that by a
// factor is the product of its two sides, whichever of the two is given.
class Sides {
 public:
  Sides(
      const ScanOperands& in,
      int slabs,
      const Course& course,
      Arrays lambda,
      Arrays u,
      const mx::Stream& stream)
      : in_(in),
        slabs_(slabs),
        course_(course),
        lambda_(std::move(lambda)),
        u_(std::move(u)),
        s_(stream),
        carried_(scaled(in.gamma, u_[0], s_)),
        weighted_(to_slabs(in, lambda_, slabs, s_)),
        V_back_(transposed(in.V, s_)) {
  }

  mx::array gradient(Slot group, int k) {
    int sets = static_cast<int>(in_.V.ndim()) - 2;
    switch (group) {
      case Slot::V:
        return outer_sum(weighted_, carried_, sets, s_);
      case Slot::gamma:
        return multiply(u_[0], matmul(weighted_, V_back_, {}, s_), s_);
      case Slot::A: {
        const ScanLink& link = in_.A[k].link;
        return multiply(lambda_[link.to], u_[link.from], s_);
      }
      case Slot::B: {
        const ScanLink& link = in_.B[k].link;
        product_ = product_ ? product_ : matmul(carried_, in_.V, {}, s_);
        return multiply(
            lambda_[link.to], slab(*product_, link.from, slabs_, s_), s_);
      }
      case Slot::hidden:
        return through(k, [&](const mx::array& a) {
          return step_at(a, End::first, {}, course_, s_);
        });
      case Slot::hidden0: {
        mx::array rows = through(k, [&](const mx::array& a) {
          return only_places(a, Places::starts, course_, s_);
        });
        return row_sum(rows, sets, s_);
      }
      default:
        throw std::out_of_range("[mlx_recurrent] no such operand");
    }
  }

 private:
  // A^T lambda + gamma V^T B^T lambda of state k, of some places or rows.
  template <class Pick>
  mx::array through(int k, Pick pick) const {
    std::optional<mx::array> total;
    for (const auto& [link, factor] : in_.A) {
      if (link.from == k) {
        mx::array passed = pick(lambda_[link.to]);
        total = sum(
            total, factor ? multiply(pick(*factor), passed, s_) : passed, s_);
      }
    }
    if (k == 0) {
      mx::array by_V = matmul(pick(weighted_), V_back_, {}, s_);
      total = sum(
          total, in_.gamma ? multiply(pick(*in_.gamma), by_V, s_) : by_V, s_);
    }
    return total ? *total : filled(pick(lambda_[k]), 0, s_);
  }

  const ScanOperands& in_;
  int slabs_;
  const Course& course_;
  Arrays lambda_, u_;
  mx::Stream s_;
  mx::array carried_;  // what V is multiplied with
  mx::array weighted_; // what comes to its results
  mx::array V_back_;
  std::optional<mx::array> product_;
};

// The operands of the scan that gives a scan's tangents, whose results are y.
class Tangents {
 public:
  Tangents(
      const ScanOperands& in,
      int slabs,
      const Course& course,
      bool back,
      const Arrays& y,
      const mx::Stream& stream)
      : in_(in),
        slabs_(slabs),
        course_(course),
        back_(back),
        y_(y),
        s_(stream),
        V_back_(transposed(in.V, s_)),
        moved_(in),
        passing_(in.states()),
        weighted_(slabs) {
    moved_.s = moved_.hidden = moved_.hidden0 = StateArrays(in.states());
    if (!back) {
      u_ = before(in, course, y, s_);
      carried_ = scaled(in.gamma, u_[0], s_);
    }
  }

  void add(Slot group, int k, const mx::array& d) {
    switch (group) {
      case Slot::s:
        moved_.s[k] = d;
        break;
      case Slot::hidden:
        moved_.hidden[k] = d;
        break;
      case Slot::hidden0:
        moved_.hidden0[k] = d;
        break;
      default:
        return back_ ? add_back(group, k, d) : add_forward(group, k, d);
    }
  }

  ScanOperands operands() {
    if (product_) {
      StateArrays all =
          carried_along(in_.B, parted(*product_, slabs_, s_), in_.states(), s_);
      for (int k = 0; k < in_.states(); ++k) {
        passing_[k] = sum(passing_[k], all[k], s_);
      }
    }
    if (std::any_of(weighted_.begin(), weighted_.end(), [](const auto& a) {
          return a.has_value();
        })) {
      mx::array by_V = matmul(joined(weighted_, s_), V_back_, {}, s_);
      passing_[0] = sum(passing_[0], scaled(in_.gamma, by_V, s_), s_);
    }
    for (int k = 0; k < in_.states(); ++k) {
      auto& passing = passing_[k];
      if (back_ && passing) {
        passing = step_after(*passing, course_, s_);
      }
      moved_.s[k] = sum(moved_.s[k], passing, s_);
    }
    if (!moved_.s[0]) {
      moved_.s[0] = filled(y_[0], 0, s_);
    }
    return moved_;
  }

 private:
  void add_forward(Slot group, int k, const mx::array& d) {
    if (group == Slot::V) {
      product_ = sum(product_, matmul(*carried_, d, {}, s_), s_);
    } else if (group == Slot::gamma) {
      mx::array seen = multiply(valid(d), u_[0], s_);
      product_ = sum(product_, matmul(seen, in_.V, {}, s_), s_);
    } else if (group == Slot::A) {
      const ScanLink& link = in_.A[k].link;
      pass(link.to, multiply(valid(d), u_[link.from], s_));
    } else {
      const ScanLink& link = in_.B[k].link;
      by_V_ = by_V_ ? by_V_ : matmul(*carried_, in_.V, {}, s_);
      pass(
          link.to, multiply(valid(d), slab(*by_V_, link.from, slabs_, s_), s_));
    }
  }

  void add_back(Slot group, int k, const mx::array& d) {
    if (group == Slot::V) {
      mx::array weighted = to_slabs(in_, y_, slabs_, s_);
      mx::array by_V = matmul(weighted, transposed(d, s_), {}, s_);
      pass(0, scaled(in_.gamma, by_V, s_));
    } else if (group == Slot::gamma) {
      mx::array weighted = to_slabs(in_, y_, slabs_, s_);
      pass(0, multiply(valid(d), matmul(weighted, V_back_, {}, s_), s_));
    } else if (group == Slot::A) {
      const ScanLink& link = in_.A[k].link;
      pass(link.from, multiply(valid(d), y_[link.to], s_));
    } else {
      const ScanLink& link = in_.B[k].link;
      auto& slab = weighted_[link.from];
      slab = sum(slab, multiply(valid(d), y_[link.to], s_), s_);
    }
  }

  void pass(int k, const mx::array& term) {
    passing_[k] = sum(passing_[k], term, s_);
  }
  mx::array valid(const mx::array& d) const {
    return only_places(d, Places::valid, course_, s_);
  }

  const ScanOperands& in_;
  int slabs_;
  const Course& course_;
  bool back_;
  const Arrays& y_;
  mx::Stream s_;
  mx::array V_back_;
  Arrays u_;
  std::optional<mx::array> carried_, by_V_;
  ScanOperands moved_;
  // At the place of a passage: what the factors' tangents let through, of each
  // state; of that the results of V, and transposed what V is multiplied with.
  StateArrays passing_;
  std::optional<mx::array> product_;
  StateArrays weighted_;
};

} // namespace

const SlotKind& kind_of(ScanSlot slot) {
  return groups[group_of(slot)].kind;
}

mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& s) {
  return factor ? multiply(*factor, a, s) : a;
}

std::optional<mx::array> sum(
    const std::optional<mx::array>& a,
    const std::optional<mx::array>& b,
    const mx::Stream& s) {
  return a && b ? add(*a, *b, s) : a ? a : b;
}

StateArrays carried_along(
    const std::vector<ScanPath>& paths,
    const StateArrays& from,
    int places,
    const mx::Stream& s) {
  StateArrays all(places);
  for (const auto& [link, factor] : paths) {
    if (const auto& a = from[link.from]) {
      all[link.to] = sum(all[link.to], scaled(factor, *a, s), s);
    }
  }
  return all;
}

StateArrays carried_back(
    const std::vector<ScanPath>& paths,
    const StateArrays& to,
    int places,
    const mx::Stream& s) {
  StateArrays all(places);
  for (const auto& [link, factor] : paths) {
    if (const auto& a = to[link.to]) {
      all[link.from] = sum(all[link.from], scaled(factor, *a, s), s);
    }
  }
  return all;
}

Arrays linear_scan(
    const ScanOperands& in,
    int slabs,
    const Course& course,
    bool transposed,
    const mx::Stream& stream) {
  Course cut = course.cut();
  Slotted<Slot> slotted;
  slotted[Slot::V] = in.V;
  slotted[Slot::lengths] = cut.lengths;
  slotted[Slot::reset] = cut.reset;
  each_array(in, [&](const std::optional<mx::array>& a, Slot slot) {
    if (cut.reset || parts_of(slot).first != Slot::hidden0) {
      slotted[slot] = a;
    }
  });
  auto primitive = std::make_shared<LinearScan>(
      stream,
      LinearScanForm{
          transposed,
          in.states(),
          slabs,
          links(in.A),
          links(in.B),
          slotted.slots(),
          cut.form});
  Arrays inputs = slotted.in_order();
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  mx::Dtype dtype = in.s[0]->dtype();
  if (shapes.size() == 1) {
    return {mx::array(
        std::move(shapes[0]), dtype, std::move(primitive), std::move(inputs))};
  }
  std::vector<mx::Dtype> dtypes(shapes.size(), dtype);
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), inputs);
}

ScanOperands LinearScan::operands(const Arrays& inputs) const {
  ScanOperands in{form_.inputs.in(inputs, Slot::V), {}, {}, {}, {}, {}, {}};
  in.s.resize(form_.states);
  in.hidden.resize(form_.states);
  in.hidden0.resize(form_.states);
  for (const ScanLink& link : form_.A) {
    in.A.push_back({link, {}});
  }
  for (const ScanLink& link : form_.B) {
    in.B.push_back({link, {}});
  }
  each_array(in, [&](std::optional<mx::array>& a, Slot slot) {
    a = form_.inputs.find(inputs, slot);
  });
  return in;
}

ScanOperands LinearScan::outside(const Arrays& inputs) {
  ScanOperands in = operands(inputs);
  Course course = course_of(form_.course, form_.inputs, inputs);
  each_array(in, [&](std::optional<mx::array>& a, Slot slot) {
    Slot group = parts_of(slot).first;
    if (a && (group == Slot::gamma || group == Slot::A || group == Slot::B)) {
      a = only_places(*a, Places::valid, course, stream());
    }
  });
  return in;
}

Arrays LinearScan::scan(
    const ScanOperands& in,
    const Course& course,
    bool transposed) {
  return linear_scan(in, form_.slabs, course, transposed, stream());
}

void LinearScan::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  for (int k = 0; k < form_.states; ++k) {
    // Each element of s is read just before its place is written, and what is
    // cleared is not read.
    if (form_.inputs.has(nth(Slot::s, k))) {
      allocate_over(outputs[k], form_.inputs.in(inputs, nth(Slot::s, k)));
    } else {
      allocate(outputs[k]);
    }
  }
  ScanOperands in = operands(inputs);
  const mx::array& out = outputs[0];
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  int axes = static_cast<int>(in.V.ndim()) - 2;
  int64_t sets = size_between(in.V, 0, axes);
  int64_t N = size_between(out, axes, static_cast<int>(out.ndim()) - 2);
  std::vector<Args> args = arguments(form_, in, sets, N, *operands);
  Course course = course_of(form_.course, form_.inputs, inputs);
  std::vector<kernels::Course> runs = courses(course, out, sets, N, *operands);
  for (int64_t i = 0; i < sets; ++i) {
    args[i].course = runs[i];
    for (int k = 0; k < form_.states; ++k) {
      args[i].out[k] = of_set(outputs[k], i, sets);
    }
  }
  launch(
      stream(),
      kernels_for(out).linear_scan,
      std::move(args),
      kernels::partition_recurrence(
          N,
          out.shape(-2),
          0,
          out.shape(-1),
          compute_bytes(out.dtype()),
          machine_now(),
          sets,
          form_.slabs),
      operands);
}

std::vector<mx::Shape> LinearScan::output_shapes(const Arrays& inputs) {
  ScanOperands in = operands(inputs);
  const mx::array& s = in.s[0].value();
  bool starts = false;
  for (int k = 0; k < form_.states; ++k) {
    starts = starts || in.hidden[k] || in.hidden0[k];
  }
  int sets = static_cast<int>(in.V.ndim()) - 2;
  expect(
      has_kernels(s.dtype()) && sets >= 0 && s.ndim() >= in.V.ndim() &&
          same_sets(s, in.V, sets) && form_.course.flips < sets &&
          form_.course.fits(s) && !(form_.transposed && starts) &&
          !form_.B.empty(),
      name());
  Shapes shapes(s, sets, s.shape(-1));
  shapes.set(Size::state_slabs, form_.slabs * s.shape(-1));
  expect(shapes.fit(form_.inputs, inputs), name());
  return std::vector<mx::Shape>(form_.states, s.shape());
}

// Only with a single output: where MLX's compile merges primitives of several,
// it may put one after what reads it.
bool LinearScan::is_equivalent(const mx::Primitive& other) const {
  return form_.states == 1 &&
      form_ == static_cast<const LinearScan&>(other).form_;
}

Arrays LinearScan::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  ScanOperands in = outside(primals);
  Course course = course_of(form_.course, form_.inputs, primals);
  ScanOperands back = in;
  back.s = back.hidden = back.hidden0 = StateArrays(form_.states);
  for (int k = 0; k < form_.states; ++k) {
    if (k == 0 || !is_unused(cotangents[k])) {
      back.s[k] = matched(cotangents[k], outputs[k], s);
    }
  }
  Arrays other = scan(back, course, !form_.transposed);
  Sides sides(
      in,
      form_.slabs,
      course,
      form_.transposed ? outputs : other,
      before(in, course, form_.transposed ? other : outputs, s),
      s);
  Arrays grads;
  for (int i : argnums) {
    Slot slot = form_.inputs.at(i);
    auto [group, k] = parts_of(slot);
    grads.push_back(
        !kind_of(slot).has_derivative() ? filled(primals[i], 0, s)
            : group == Slot::s          ? other[k]
                                        : sides.gradient(group, k));
  }
  return grads;
}

Arrays LinearScan::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  ScanOperands in = outside(primals);
  Course course = course_of(form_.course, form_.inputs, primals);
  Arrays y = scan(in, course, form_.transposed);
  Tangents moved(in, form_.slabs, course, form_.transposed, y, s);
  for (size_t i = 0; i < argnums.size(); ++i) {
    Slot slot = form_.inputs.at(argnums[i]);
    if (kind_of(slot).has_derivative()) {
      auto [group, k] = parts_of(slot);
      moved.add(group, k, matched(tangents[i], primals[argnums[i]], s));
    }
  }
  return scan(moved.operands(), course, form_.transposed);
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
        return scan(operands(in), course, form_.transposed);
      },
      are_of_rows(form_.inputs),
      true,
      sets,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
