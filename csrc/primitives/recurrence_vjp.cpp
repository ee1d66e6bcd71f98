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
      Slot slot = form_.wanted[k];
      target(args, row_of(slot).cotangent, slot) =
          outputs[k].size() > 0 ? of_set(outputs[k], set, sizes.sets) : nullptr;
    }
    sets.push_back(args);
  }
  for (int i = layer.inputs.size(); i < form_.inputs.size(); ++i) {
    Slot slot = form_.inputs.at(i);
    const RecurrenceRow& row = row_of(slot);
    if (slot != Slot::saved || !is_empty(inputs[i])) {
      int state = parts_of(slot).state;
      put(sets, row.backward, state, row.kind, inputs[i], sizes.N, *operands);
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

namespace {

// The derivative as linear scans and products: lambda_t = c_t + what it passes
// on, and delta, what the pre-activations get of it; for an Elman cell k f'(a)
// lambda.
class Backpropagation {
 public:
  // `sets` axes are not summed over.
  Backpropagation(
      const RecurrenceForm& layer,
      const Slots<Slot>& slots,
      const Arrays& inputs,
      int sets,
      const mx::Stream& stream)
      : layer_(layer),
        slots_(slots),
        inputs_(inputs),
        sets_(sets),
        s_(stream),
        course_(course_of(layer.course, layer.inputs, inputs)),
        y_(states()),
        linear_(layer_, inputs, y_, stream),
        lambda_(linear_.scan(cotangents(), true)),
        delta_(linear_.to_slabs(lambda_)),
        of_input_(linear_.of_input(delta_)),
        of_state_(
            layer.shape().slabs() == layer.shape().shared
                ? of_input_
                : linear_.of_state(delta_)) {
  }

  mx::array gradient(Slot slot) {
    auto [first, k] = parts_of(slot);
    switch (first) {
      case Slot::x:
        // Zero where no step is taken, also for what stands there in its own
        // cotangent.
        return linear_.valid(linear_.with_input_factors(
            layer_.projected()
                ? of_input_
                : matmul(of_input_, transposed(in(Slot::Wxh), s_), {}, s_)));
      case Slot::Whh:
        return of_state_ ? outer_sum(*of_state_, linear_.seen(), sets_, s_)
                         : mx::zeros_like(in(Slot::Whh), s_);
      case Slot::Wxh:
        return outer_sum(of_input_, linear_.input(), sets_, s_);
      case Slot::bias:
        return row_sum(of_input_, sets_, s_);
      case Slot::bhn: {
        int state_only = layer_.shape().state_only;
        StateArrays own(delta_.begin(), delta_.begin() + state_only);
        return row_sum(linear_.side_by_side(std::move(own)), sets_, s_);
      }
      case Slot::parameters:
        return linear_.to_parameters(lambda_, sets_);
      case Slot::hidden:
        return to_first(k);
      case Slot::hidden0: {
        mx::array d = passed_on(k);
        return row_sum(only_places(d, Places::starts, course_, s_), sets_, s_);
      }
      case Slot::leak: {
        mx::array d =
            linear_.updated(multiply(lambda_[0], linear_.change(), s_));
        return row_sum(d, sets_, s_);
      }
      default:
        throw std::out_of_range("[mlx_recurrent] no such input");
    }
  }

 private:
  const mx::array& in(Slot slot) const {
    return slots_.in(inputs_, slot);
  }

  Arrays states() const {
    if (!layer_.keeps_all_of(1)) {
      return states_of(layer_, inputs_, s_);
    }
    Arrays all;
    for (int k = 0; k < layer_.shape().states; ++k) {
      all.push_back(in(nth(Slot::states, k)));
    }
    return all;
  }

  // Of each state; absent where there is none.
  StateArrays cotangents() const {
    StateArrays all;
    for (int k = 0; k < static_cast<int>(y_.size()); ++k) {
      auto c = slots_.find(inputs_, nth(Slot::dstates, k));
      if (auto dstate = slots_.find(inputs_, nth(Slot::dstate, k))) {
        c = sum(c, only_at(*dstate, End::last, y_[k], course_, s_), s_);
      }
      all.push_back(c);
    }
    return all;
  }

  // To state k before each step.
  mx::array passed_on(int k) {
    std::optional<mx::array> total;
    if (k == 0 && of_state_) {
      mx::array by_Whh =
          matmul(*of_state_, transposed(in(Slot::Whh), s_), {}, s_);
      const auto& factors = linear_.seen_factors();
      total = factors ? gate(*factors, by_Whh, s_) : by_Whh;
    }
    for (const auto& [link, factor] : linear_.factors().states) {
      if (link.from == k) {
        total = sum(total, scaled(factor, lambda_[link.to], s_), s_);
      }
    }
    return total ? *total : filled(y_[k], 0, s_);
  }

  mx::array to_first(int k) {
    mx::array d = step_at(passed_on(k), End::first, {}, course_, s_);
    if (auto dstate = slots_.find(inputs_, nth(Slot::dstate, k))) {
      // Without steps the state is what it was at first.
      mx::array none = filled(y_[k], 0, s_);
      d = add(d, step_at(none, End::last, dstate, course_, s_), s_);
    }
    return d;
  }

  const RecurrenceForm& layer_;
  const Slots<Slot>& slots_;
  const Arrays& inputs_;
  int sets_;
  mx::Stream s_;
  Course course_;
  Arrays y_;
  Linearisation linear_;
  Arrays lambda_;
  StateArrays delta_; // of each slab
  mx::array of_input_;
  std::optional<mx::array> of_state_; // absent where Whh has no rows
};

} // namespace

Arrays RecurrenceVJP::composed(
    const Arrays& inputs,
    const std::vector<Slot>& wanted,
    int more_sets) const {
  const mx::Stream& s = const_cast<RecurrenceVJP*>(this)->stream();
  RecurrenceForm layer = form_.layer;
  if (layer.inputs.has(Slot::key)) {
    layer.repeated_axes += more_sets;
  }
  const mx::array& Whh = form_.inputs.in(inputs, Slot::Whh);
  int sets = static_cast<int>(Whh.ndim()) - 2 + more_sets;
  Backpropagation back(layer, form_.inputs, inputs, sets, s);
  Arrays outputs;
  for (Slot slot : wanted) {
    outputs.push_back(back.gradient(slot));
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
