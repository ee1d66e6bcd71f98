#include "primitives/recurrence.h"

#include <cmath>

#include "mlx/transforms.h"
#include "mlx_faults/references.h"
#include "mlx_faults/stream_threads.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/linear_scan.h"
#include "primitives/linearisation.h"
#include "primitives/matmul.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

std::optional<mx::array> input_at(const Arrays& inputs, int i) {
  return i < 0 ? std::nullopt : std::optional(inputs[i]);
}

// The outputs for the first of these inputs, which are in the form's order.
Arrays outputs_of(
    const RecurrenceForm& form,
    const Arrays& all,
    const mx::Stream& s) {
  Arrays inputs(all.begin(), all.begin() + form.inputs());
  auto primitive = std::make_shared<Recurrence>(s, form);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  std::vector<mx::Dtype> dtypes(shapes.size(), inputs[0].dtype());
  if (form.preactivations() >= 0) {
    dtypes[form.preactivations()] = compute_dtype(inputs[0].dtype());
  }
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), inputs);
}

// All states, and nothing else.
mx::array states_of(
    RecurrenceForm form,
    const Arrays& inputs,
    const mx::Stream& s) {
  form.checkpoint_every = all_states;
  form.latest_checkpoint = false;
  form.keep_preactivations = false;
  form.returns_state = false;
  return outputs_of(form, inputs, s)[0];
}

// How the kernels are told which states to keep of L.
int64_t checkpoint_steps(const RecurrenceForm& form, int64_t L) {
  if (form.checkpoint_every != checkpoint_square_root) {
    return form.checkpoint_every;
  }
  auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(L)));
  return root * root < L ? root + 1 : std::max<int64_t>(root, 1);
}

// The sets of weights, and what one call has of each operand.
struct Sizes {
  int axes; // leading, of the sets
  int64_t sets, N, L, D, H;

  Sizes(const mx::array& x, const mx::array& Whh)
      : axes(static_cast<int>(Whh.ndim()) - 2),
        sets(size_between(Whh, 0, axes)),
        N(size_between(x, axes, static_cast<int>(x.ndim()) - 2)),
        L(x.shape(-2)),
        D(x.shape(-1)),
        H(Whh.shape(-1)) {
  }
};

// The shape of all states that inputs like these give; raises where the inputs
// do not fit each other.
mx::Shape states_shape(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const char* name) {
  const mx::array& x = inputs[form.x];
  const mx::array& Whh = inputs[form.Whh];
  auto Wxh = input_at(inputs, form.Wxh());
  auto bias = input_at(inputs, form.bias());
  auto hidden = input_at(inputs, form.hidden());
  auto hidden0 = input_at(inputs, form.hidden0());
  auto leak = input_at(inputs, form.leak());
  auto key = input_at(inputs, form.key());
  Arrays own(inputs.begin(), inputs.begin() + form.inputs());
  bool fits = has_kernels(x.dtype()) && Whh.ndim() >= 2 &&
      x.ndim() >= Whh.ndim() && form.checkpoint_every >= checkpoint_square_root;
  int sets = fits ? static_cast<int>(Whh.ndim()) - 2 : 0;
  int H = fits ? Whh.shape(-1) : 0;
  fits = fits && Whh.shape(-2) == H && same_sets(x, Whh, sets) &&
      (Wxh ? Wxh->shape() == with_tail(Whh, 1, {x.shape(-1)})
           : x.shape(-1) == H) &&
      (!bias || bias->shape() == with_tail(Whh, 1, {})) &&
      (!hidden || hidden->shape() == with_tail(x, 2, {H})) &&
      (!hidden0 || hidden0->shape() == with_tail(Whh, 1, {})) &&
      (!leak || leak->shape() == with_tail(Whh, 1, {})) &&
      (!key ||
       (key->dtype() == mx::uint32 &&
        key->shape() == with_tail(Whh, 2, {2}))) &&
      mlx_recurrent::fits(form.course, own, x);
  for (int i = 0; i < form.numbers(); ++i) {
    fits = fits && inputs[i].dtype() == x.dtype();
  }
  expect(fits, name);
  return with_tail(x, 1, {H});
}

// The arguments of each set.
std::vector<kernels::RecurrenceArgs> arguments(
    const RecurrenceForm& form,
    const Arrays& inputs,
    const Sizes& sizes,
    Operands& operands) {
  kernels::Sequence x = operands.sequence(inputs[form.x]);
  kernels::Sequence hidden{nullptr, nullptr, 0, 0};
  if (form.has_hidden) {
    hidden = operands.rows(inputs[form.hidden()]);
  }
  std::vector<kernels::RecurrenceArgs> sets;
  if (form.function) {
    operands.hold(form.function);
  }
  Arrays own(inputs.begin(), inputs.begin() + form.inputs());
  std::vector<kernels::Course> runs =
      courses(form.course, own, inputs[form.x], sizes.sets, sizes.N, operands);
  auto vector = [&](int input, int64_t set) {
    return input < 0 ? kernels::Vector{nullptr, 0}
                     : Operands::vector(inputs[input], set);
  };
  for (int64_t i = 0; i < sizes.sets; ++i) {
    kernels::RecurrenceArgs args{};
    args.N = sizes.N;
    args.L = sizes.L;
    args.D = sizes.D;
    args.H = sizes.H;
    args.activation = form.activation;
    if (form.function) {
      args.function = &form.function->function();
      args.derivative = &form.function->derivative();
    }
    args.projected = form.projected;
    args.x = of_set(x, i, sizes.N);
    if (!form.projected) {
      args.Wxh = Operands::matrix(inputs[form.Wxh()], i);
    }
    args.bias = vector(form.bias(), i);
    args.hidden0 = vector(form.hidden0(), i);
    args.leak = vector(form.leak(), i);
    args.course = runs[i];
    if (form.has_key()) {
      kernels::Vector key = vector(form.key(), i);
      int first = sizes.axes + form.repeated_axes;
      const mx::array& x = inputs[form.x];
      args.draws = {
          static_cast<const uint32_t*>(key.data),
          key.stride,
          size_between(x, first, static_cast<int>(x.ndim()) - 2),
          form.zoneout,
          form.recurrent_dropout,
          form.input_dropout};
    }
    args.Whh = Operands::matrix(inputs[form.Whh], i);
    args.hidden = of_set(hidden, i, sizes.N);
    args.checkpoint_every = checkpoint_steps(form, sizes.L);
    args.latest_checkpoint = form.latest_checkpoint;
    sets.push_back(args);
  }
  return sets;
}

kernels::Partition partition_of(
    const RecurrenceForm& form,
    const Sizes& sizes,
    const mx::array& x) {
  return kernels::partition_recurrence(
      sizes.N,
      sizes.L,
      form.projected ? 0 : sizes.D,
      sizes.H,
      compute_bytes(x.dtype()),
      machine_now(),
      sizes.sets);
}

// `all` with others in these places.
Arrays replaced(Arrays all, const Ints& places, const Arrays& others) {
  for (size_t k = 0; k < places.size(); ++k) {
    all[places[k]] = others[k];
  }
  return all;
}

// Whether a cotangent is what MLX passes for an output that nobody used: its
// own zeros. One that is zero but not known to be is right, only slower.
bool unused(const mx::array& cotangent) {
  auto made_by = [](const mx::array& a, const char* name) {
    return a.has_primitive() && std::string(a.primitive().name()) == name;
  };
  const mx::array* a = &cotangent;
  if (!made_by(*a, "Full")) {
    return false;
  }
  a = &a->inputs()[0];
  if (made_by(*a, "Broadcast")) {
    a = &a->inputs()[0];
  }
  if (a->has_primitive() || a->status() != mx::array::Status::available ||
      a->nbytes() > sizeof(double) || !a->data_shared_ptr()) {
    return false;
  }
  const char* bytes = a->data<char>();
  return std::all_of(
      bytes, bytes + a->nbytes(), [](char byte) { return byte == 0; });
}

} // namespace

Arrays recurrence(
    const RecurrenceInputs& in,
    RecurrenceForm form,
    Returned returned,
    int checkpoint_every,
    const mx::Stream& stream) {
  form.projected = !in.Wxh;
  form.has_bias = in.bias.has_value();
  form.has_hidden = in.hidden.has_value();
  form.has_hidden0 = in.hidden0.has_value();
  form.has_leak = in.leak.has_value();
  form.course = in.course.form;
  form.returns_state = returned != Returned::states;
  form.keep_preactivations = checkpoint_every == 0;
  if (returned == Returned::state) {
    // A derivative that is cut to blocks needs the states at their borders.
    int block = form.course.truncate_every;
    form.latest_checkpoint = checkpoint_every == 0 && block > 0;
    form.checkpoint_every = checkpoint_every > 0 ? checkpoint_every
        : block > 0                              ? block
                                                 : checkpoint_square_root;
  }
  Arrays inputs{in.x, in.Whh};
  for (const auto* optional :
       {&in.Wxh, &in.bias, &in.hidden, &in.hidden0, &in.leak, &in.key}) {
    if (*optional) {
      inputs.push_back(**optional);
    }
  }
  in.course.append_to(inputs);
  expect_operands(inputs, stream);
  return outputs_of(form, inputs, stream);
}

mx::array pre_activation(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& previous,
    int t,
    const mx::Stream& stream) {
  // A slice: what is read, or begins a composed path, has the shapes of a call.
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[x.ndim() - 2] = t;
  stop[x.ndim() - 2] = t + 1;
  mx::array x_t = mx::squeeze(mx::slice(x, start, stop, stream), -2, stream);
  mx::array z = Wxh ? matmul(x_t, *Wxh, bias, stream) : x_t;
  return previous ? mx::add(z, matmul(*previous, Whh, {}, stream), stream) : z;
}

void Recurrence::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  size_t size = 0;
  int traced = form_.preactivations();
  // `outputs` refers to each, and so does every other output.
  bool wanted = traced >= 0 &&
      references(outputs[traced]) > static_cast<long>(outputs.size());
  for (int i = 0; i < static_cast<int>(outputs.size()); ++i) {
    if (i == traced && !wanted) {
      leave_empty(outputs[i]);
    } else {
      allocate(outputs[i]);
      size += outputs[i].size();
    }
  }
  if (size == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  Sizes sizes(inputs[form_.x], inputs[form_.Whh]);
  std::vector<kernels::ForwardArgs> sets;
  for (const auto& layer : arguments(form_, inputs, sizes, *operands)) {
    int64_t i = static_cast<int64_t>(sets.size());
    sets.push_back(
        {layer,
         of_set(outputs[0], i, sizes.sets),
         form_.returns_state ? of_set(outputs[1], i, sizes.sets) : nullptr,
         wanted ? of_set(outputs[traced], i, sizes.sets) : nullptr});
  }
  launch(
      stream(),
      kernels_for(outputs[0]).forward,
      std::move(sets),
      partition_of(form_, sizes, inputs[form_.x]),
      operands);
}

std::vector<mx::Shape> Recurrence::output_shapes(const Arrays& inputs) {
  mx::Shape states = states_shape(form_, inputs, name());
  int L = states[states.size() - 2];
  mx::Shape state(states.begin(), states.end() - 2);
  state.push_back(states.back());
  states[states.size() - 2] = static_cast<int>(kernels::kept_states(
      L, checkpoint_steps(form_, L), form_.latest_checkpoint));
  std::vector<mx::Shape> shapes{states};
  if (form_.returns_state) {
    shapes.push_back(state);
  }
  if (form_.preactivations() >= 0) {
    shapes.push_back(states);
  }
  return shapes;
}

// Only with a single output: where MLX's compile merges primitives of several,
// it may put one after what reads it.
bool Recurrence::is_equivalent(const mx::Primitive& other) const {
  return !form_.returns_state && form_.preactivations() < 0 &&
      form_ == static_cast<const Recurrence&>(other).form_;
}

Arrays Recurrence::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  bool all = form_.checkpoint_every == all_states;
  BackwardForm form{
      form_,
      all && !unused(cotangents[0]),
      form_.returns_state && !unused(cotangents[1]),
      {}};
  for (int i : argnums) {
    if (i < form_.numbers()) {
      form.wanted.push_back(i);
    }
  }
  Arrays inputs = primals;
  // A derivative's own derivative recomputes where some are kept: nothing goes
  // through those.
  inputs.push_back(all ? outputs[0] : mx::stop_gradient(outputs[0], s));
  if (form.of_states) {
    inputs.push_back(matched(cotangents[0], outputs[0], s));
  }
  if (form.of_state) {
    inputs.push_back(matched(cotangents[1], outputs[1], s));
  }
  if (int traced = form_.preactivations(); traced >= 0) {
    // What goes through them goes through the states too.
    inputs.push_back(mx::stop_gradient(outputs[traced], s));
  }
  Arrays found = backward(form, inputs, s);
  Arrays grads;
  size_t next = 0;
  for (int i : argnums) {
    grads.push_back(
        i < form_.numbers() ? found[next++] : mx::zeros_like(primals[i], s));
  }
  return grads;
}

// dh_t = (1 - k) dq_t + g (dz_t + dWhh p_t + Whh (m_h dq_t)) + dk (f(a) - q_t),
// with g = k f'(a) and p = m_h q.
Arrays Recurrence::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  mx::array y = states_of(form_, primals, s);
  Linearisation terms(form_, primals, y, s);
  std::optional<mx::array> dz;
  std::optional<mx::array> source;
  std::optional<mx::array> first;
  std::optional<mx::array> hidden0;
  auto add_to = [&](std::optional<mx::array>& sum, const mx::array& term) {
    sum = sum ? add(*sum, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    if (i >= form_.numbers()) {
      continue;
    }
    mx::array d = matched(tangents[k], primals[i], s);
    if (i == form_.x) {
      d = terms.with_input_factors(terms.valid(d));
      add_to(dz, form_.projected ? d : matmul(d, primals[form_.Wxh()], {}, s));
    } else if (i == form_.Whh) {
      add_to(dz, matmul(terms.seen(), d, {}, s));
    } else if (i == form_.Wxh()) {
      add_to(dz, matmul(terms.input(), d, {}, s));
    } else if (i == form_.bias()) {
      add_to(dz, repeated_row(d, y, s));
    } else if (i == form_.leak()) {
      mx::array dk = terms.updated(repeated_row(d, y, s));
      add_to(source, multiply(dk, terms.change(), s));
    } else if (i == form_.hidden0()) {
      hidden0 = d;
    } else {
      first = d;
    }
  }
  if (dz) {
    add_to(source, scaled(terms.slope(), *dz, s));
  }
  mx::array dy =
      terms.scan(source ? *source : filled(y, 0, s), false, first, hidden0);
  // Where only some states are kept, nobody sees them or their tangents.
  Arrays moved{dy};
  if (form_.returns_state) {
    Course course(form_.course, primals);
    moved.push_back(step_at(dy, End::last, first, course, s));
  }
  if (form_.preactivations() >= 0) {
    // Nobody asks for theirs.
    mx::array none = filled(y, 0, s);
    moved.push_back(mx::astype(none, compute_dtype(y.dtype()), s));
  }
  return moved;
}

std::pair<Arrays, Ints> Recurrence::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(form_.inputs());
  for (int i = 0; i < form_.inputs(); ++i) {
    joins[i] = form_.is_of_rows(i);
  }
  return vectorize(
      [this](const Arrays& in, int more_sets) {
        return outputs_of(form_.mapped(more_sets), in, stream());
      },
      joins,
      true,
      form_.sets(inputs, axes),
      inputs,
      axes,
      stream());
}

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
  Sizes sizes(inputs[layer.x], inputs[layer.Whh]);
  kernels::Sequence absent{nullptr, nullptr, 0, 0};
  kernels::Sequence states = operands->sequence(inputs[form_.states()]);
  kernels::Sequence dstates =
      form_.of_states ? operands->sequence(inputs[form_.dstates()]) : absent;
  kernels::Sequence dstate =
      form_.of_state ? operands->rows(inputs[form_.dstate()]) : absent;
  kernels::Sequence preactivations = absent;
  if (int traced = form_.preactivations();
      traced >= 0 && !is_empty(inputs[traced])) {
    preactivations = operands->sequence(inputs[traced]);
  }
  std::vector<kernels::BackwardArgs> sets;
  for (const auto& one : arguments(layer, inputs, sizes, *operands)) {
    int64_t set = static_cast<int64_t>(sets.size());
    kernels::BackwardArgs args{};
    args.layer = one;
    args.states = of_set(states, set, sizes.N);
    args.dstates = of_set(dstates, set, sizes.N);
    args.dstate = of_set(dstate, set, sizes.N);
    args.preactivations = of_set(preactivations, set, sizes.N);
    for (size_t k = 0; k < form_.wanted.size(); ++k) {
      int i = form_.wanted[k];
      void*& target = i == layer.x ? args.dx
          : i == layer.Whh         ? args.dWhh
          : i == layer.Wxh()       ? args.dWxh
          : i == layer.bias()      ? args.dbias
          : i == layer.leak()      ? args.dleak
          : i == layer.hidden0()   ? args.dhidden0
                                   : args.dhidden;
      target =
          outputs[k].size() > 0 ? of_set(outputs[k], set, sizes.sets) : nullptr;
    }
    sets.push_back(args);
  }
  launch(
      stream(),
      kernels_for(inputs[layer.x]).backward,
      std::move(sets),
      partition_of(layer, sizes, inputs[layer.x]),
      operands);
}

std::vector<mx::Shape> RecurrenceVJP::output_shapes(const Arrays& inputs) {
  const RecurrenceForm& layer = form_.layer;
  mx::Shape states = states_shape(layer, inputs, name());
  auto fits = [&](int i, const mx::Shape& shape) {
    return inputs[i].shape() == shape && inputs[i].dtype() == inputs[0].dtype();
  };
  int L = states[states.size() - 2];
  mx::Shape kept = states;
  kept[kept.size() - 2] = static_cast<int>(kernels::kept_states(
      L, checkpoint_steps(layer, L), layer.latest_checkpoint));
  mx::Shape state(states.begin(), states.end() - 2);
  state.push_back(states.back());
  expect(
      fits(form_.states(), kept) &&
          (!form_.of_states || fits(form_.dstates(), states)) &&
          (!form_.of_state || fits(form_.dstate(), state)),
      name());
  if (int traced = form_.preactivations(); traced >= 0) {
    expect(
        inputs[traced].shape() == states &&
            inputs[traced].dtype() == compute_dtype(inputs[0].dtype()),
        name());
  }
  std::vector<mx::Shape> shapes;
  for (int i : form_.wanted) {
    shapes.push_back(inputs[i].shape());
  }
  return shapes;
}

bool RecurrenceVJP::is_equivalent(const mx::Primitive& other) const {
  return form_.wanted.size() == 1 &&
      form_ == static_cast<const RecurrenceVJP&>(other).form_;
}

// lambda_t = c_t + what it passes on; delta = k f'(a) lambda.
Arrays RecurrenceVJP::composed(
    const Arrays& inputs,
    const Ints& wanted,
    int more_sets) const {
  const mx::Stream& s = const_cast<RecurrenceVJP*>(this)->stream();
  RecurrenceForm layer = form_.layer;
  if (layer.has_key()) {
    layer.repeated_axes += more_sets;
  }
  int sets = static_cast<int>(inputs[layer.Whh].ndim()) - 2 + more_sets;
  mx::array y = layer.checkpoint_every == all_states
      ? inputs[form_.states()]
      : states_of(layer, inputs, s);
  Arrays own(inputs.begin(), inputs.begin() + layer.inputs());
  Course course(layer.course, own);
  Linearisation terms(layer, inputs, y, s);
  std::optional<mx::array> cotangent;
  if (form_.of_states) {
    cotangent = inputs[form_.dstates()];
  }
  if (form_.of_state) {
    mx::array last = only_at(inputs[form_.dstate()], End::last, y, course, s);
    cotangent = cotangent ? add(*cotangent, last, s) : last;
  }
  mx::array c = cotangent ? *cotangent : filled(y, 0, s);
  mx::array lambda = terms.scan(c, true);
  mx::array delta = scaled(terms.slope(), lambda, s);
  // To the states before each step.
  std::optional<mx::array> passed;
  auto passed_on = [&]() -> const mx::array& {
    if (!passed) {
      mx::array back = transposed(inputs[layer.Whh], s);
      passed = matmul(delta, back, {}, s);
      if (const auto& factors = terms.seen_factors()) {
        passed = gate(*factors, *passed, s);
      }
      if (const auto& factors = terms.passed()) {
        passed = add(*passed, multiply(*factors, lambda, s), s);
      }
    }
    return *passed;
  };
  Arrays outputs;
  for (int i : wanted) {
    if (i == layer.x) {
      mx::array d = layer.projected
          ? delta
          : matmul(delta, transposed(inputs[layer.Wxh()], s), {}, s);
      // Zero in the padding, also for what stands there in its own cotangent.
      outputs.push_back(terms.valid(terms.with_input_factors(d)));
    } else if (i == layer.Whh) {
      outputs.push_back(outer_sum(delta, terms.seen(), sets, s));
    } else if (i == layer.Wxh()) {
      outputs.push_back(outer_sum(delta, terms.input(), sets, s));
    } else if (i == layer.bias()) {
      outputs.push_back(row_sum(delta, sets, s));
    } else if (i == layer.leak()) {
      mx::array d = terms.updated(multiply(lambda, terms.change(), s));
      outputs.push_back(row_sum(d, sets, s));
    } else if (i == layer.hidden0()) {
      mx::array d = only_places(passed_on(), Places::starts, course, s);
      outputs.push_back(row_sum(d, sets, s));
    } else {
      mx::array d = step_at(passed_on(), End::first, {}, course, s);
      if (form_.of_state) {
        // Without steps the state is what it was at first.
        auto dstate = inputs[form_.dstate()];
        mx::array none = filled(y, 0, s);
        d = add(d, step_at(none, End::last, dstate, course, s), s);
      }
      outputs.push_back(d);
    }
  }
  return outputs;
}

Arrays RecurrenceVJP::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  Ints used;
  Arrays matching;
  for (size_t k = 0; k < form_.wanted.size(); ++k) {
    if (!unused(cotangents[k])) {
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
  auto is_weight = [&](int i) {
    return i < layer.inputs() && !layer.is_of_rows(i);
  };
  std::vector<bool> joins(inputs.size());
  bool weights_mapped = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    joins[i] = !is_weight(static_cast<int>(i));
    weights_mapped = weights_mapped || (!joins[i] && axes[i] >= 0);
  }
  bool sums = std::any_of(form_.wanted.begin(), form_.wanted.end(), is_weight);
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
