#include "primitives/recurrence_vjp.h"

#include "mlx/transforms.h"
#include "mlx_faults/zero_cotangent.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/linear_scan.h"
#include "primitives/linearisation.h"
#include "primitives/matmul.h"
#include "primitives/recurrence_slots.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = RecurrenceSlot;

// `all` with others in these places.
Arrays replaced(Arrays all, const Ints& places, const Arrays& others) {
  for (size_t k = 0; k < places.size(); ++k) {
    all[places[k]] = others[k];
  }
  return all;
}

} // namespace

Arrays backward(
    const BackwardForm& form,
    const Arrays& inputs,
    const mx::Stream& s) {
  auto primitive = std::make_shared<RecurrenceVJP>(s, form);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  std::vector<mx::Dtype> dtypes(shapes.size(), inputs[0].dtype());
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), inputs);
}

void RecurrenceVJP::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const RecurrenceForm& layer = form_.layer;
  for (mx::array& out : outputs) {
    allocate(out);
  }
  auto operands = std::make_shared<Operands>();
  RecurrenceSizes sizes = sizes_of(layer, inputs);
  std::vector<kernels::BackwardArgs> sets;
  for (const auto& one : arguments(layer, inputs, sizes, *operands)) {
    int64_t set = static_cast<int64_t>(sets.size());
    kernels::BackwardArgs args{};
    args.layer = one;
    for (size_t k = 0; k < outputs.size(); ++k) {
      args.*row_of(form_.wanted[k]).cotangent =
          outputs[k].size() > 0 ? of_set(outputs[k], set, sizes.sets) : nullptr;
    }
    sets.push_back(args);
  }
  for (int i = layer.inputs.size(); i < form_.inputs.size(); ++i) {
    const RecurrenceRow& row = row_of(form_.inputs.at(i));
    if (row.slot != Slot::saved || !is_empty(inputs[i])) {
      put(sets, row.backward, row.kind, inputs[i], sizes.N, *operands);
    }
  }
  launch(
      stream(),
      kernels_for(inputs[0]).backward,
      std::move(sets),
      partition_of(sizes, inputs[0].dtype(), layer.projected()),
      operands);
}

std::vector<mx::Shape> RecurrenceVJP::output_shapes(const Arrays& inputs) {
  Shapes shapes = shapes_of(form_.layer, inputs, name());
  expect(shapes.fit(form_.inputs, inputs), name());
  std::vector<mx::Shape> found;
  for (Slot slot : form_.wanted) {
    found.push_back(shapes.of(kind_of(slot)));
  }
  return found;
}

bool RecurrenceVJP::is_equivalent(const mx::Primitive& other) const {
  return form_.wanted.size() == 1 &&
      form_ == static_cast<const RecurrenceVJP&>(other).form_;
}

// lambda_t = c_t + what it passes on; delta = k f'(a) lambda.
Arrays RecurrenceVJP::composed(
    const Arrays& inputs,
    const std::vector<Slot>& wanted,
    int more_sets) const {
  const mx::Stream& s = const_cast<RecurrenceVJP*>(this)->stream();
  auto in = [&](Slot slot) -> const mx::array& {
    return form_.inputs.in(inputs, slot);
  };
  RecurrenceForm layer = form_.layer;
  if (layer.inputs.has(Slot::key)) {
    layer.repeated_axes += more_sets;
  }
  int sets = static_cast<int>(in(Slot::Whh).ndim()) - 2 + more_sets;
  mx::array y =
      layer.keeps_all_states() ? in(Slot::states) : states_of(layer, inputs, s);
  Course course = course_of(layer.course, layer.inputs, inputs);
  Linearisation linear(layer, inputs, y, s);
  auto cotangent = form_.inputs.find(inputs, Slot::dstates);
  auto dstate = form_.inputs.find(inputs, Slot::dstate);
  if (dstate) {
    mx::array last = only_at(*dstate, End::last, y, course, s);
    cotangent = cotangent ? add(*cotangent, last, s) : last;
  }
  mx::array c = cotangent ? *cotangent : filled(y, 0, s);
  mx::array lambda = linear.scan(c, true);
  mx::array delta = scaled(linear.slope(), lambda, s);
  // To the states before each step.
  std::optional<mx::array> passed;
  auto passed_on = [&]() -> const mx::array& {
    if (!passed) {
      mx::array back = transposed(in(Slot::Whh), s);
      passed = matmul(delta, back, {}, s);
      if (const auto& factors = linear.seen_factors()) {
        passed = gate(*factors, *passed, s);
      }
      if (const auto& factors = linear.passed()) {
        passed = add(*passed, multiply(*factors, lambda, s), s);
      }
    }
    return *passed;
  };
  auto gradient = [&](Slot slot) -> mx::array {
    switch (slot) {
      case Slot::x:
        // Zero in the padding, also for what stands there in its own cotangent.
        return linear.valid(linear.with_input_factors(
            layer.projected()
                ? delta
                : matmul(delta, transposed(in(Slot::Wxh), s), {}, s)));
      case Slot::Whh:
        return outer_sum(delta, linear.seen(), sets, s);
      case Slot::Wxh:
        return outer_sum(delta, linear.input(), sets, s);
      case Slot::bias:
        return row_sum(delta, sets, s);
      case Slot::hidden: {
        mx::array d = step_at(passed_on(), End::first, {}, course, s);
        if (dstate) {
          // Without steps the state is what it was at first.
          mx::array none = filled(y, 0, s);
          d = add(d, step_at(none, End::last, dstate, course, s), s);
        }
        return d;
      }
      case Slot::hidden0:
        return row_sum(
            only_places(passed_on(), Places::starts, course, s), sets, s);
      case Slot::leak: {
        mx::array d = linear.updated(multiply(lambda, linear.change(), s));
        return row_sum(d, sets, s);
      }
      default:
        throw std::out_of_range("[mlx_recurrent] no such input");
    }
  };
  Arrays outputs;
  for (Slot slot : wanted) {
    outputs.push_back(gradient(slot));
  }
  return outputs;
}

Arrays RecurrenceVJP::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  std::vector<Slot> used;
  Arrays matching;
  for (size_t k = 0; k < form_.wanted.size(); ++k) {
    if (!is_unused(cotangents[k])) {
      used.push_back(form_.wanted[k]);
      matching.push_back(matched(cotangents[k], outputs[k], stream()));
    }
  }
  Arrays moving;
  for (int i : argnums) {
    moving.push_back(primals[i]);
  }
  return mx::vjp(
             [&](const Arrays& at) {
               return composed(replaced(primals, argnums, at), used, 0);
             },
             moving,
             matching)
      .second;
}

Arrays RecurrenceVJP::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  Arrays moving;
  Arrays matching;
  for (size_t k = 0; k < argnums.size(); ++k) {
    moving.push_back(primals[argnums[k]]);
    matching.push_back(matched(tangents[k], moving[k], stream()));
  }
  return mx::jvp(
             [&](const Arrays& at) {
               return composed(replaced(primals, argnums, at), form_.wanted, 0);
             },
             moving,
             matching)
      .second;
}

std::pair<Arrays, Ints> RecurrenceVJP::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  const RecurrenceForm& layer = form_.layer;
  std::vector<bool> joins = are_of_rows(form_.inputs);
  bool weights_mapped = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    weights_mapped = weights_mapped || (!joins[i] && axes[i] >= 0);
  }
  bool sums =
      std::any_of(form_.wanted.begin(), form_.wanted.end(), [](Slot slot) {
        return !kind_of(slot).is_of_rows();
      });
  int sets = layer.sets(inputs, axes);
  if (sums && !weights_mapped) {
    // Gradients for each example: one recurrence over all of them as a batch,
    // and sums for each.
    Arrays joined = with_axis(inputs, axes, joins, sets, stream());
    return {composed(joined, form_.wanted, 1), Ints(form_.wanted.size(), sets)};
  }
  return vectorize(
      [this](const Arrays& in, int more_sets) {
        BackwardForm form = form_;
        form.layer = form.layer.mapped(more_sets);
        return backward(form, in, stream());
      },
      joins,
      !sums,
      sets,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
