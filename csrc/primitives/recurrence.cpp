#include "primitives/recurrence.h"

#include "kernels/elman.h"
#include "mlx/transforms.h"
#include "primitives/batching.h"
#include "primitives/launch.h"
#include "primitives/linear_scan.h"
#include "primitives/matmul.h"

namespace mlx_recurrent {

namespace {

// An array whose arithmetic goes to one stream, for the formulas of elman.h.
struct Graph {
  mx::array a;
  mx::Stream s;

  friend Graph operator-(const Graph& x, const Graph& y) {
    return {mx::subtract(x.a, y.a, x.s), x.s};
  }
  friend Graph operator*(const Graph& x, const Graph& y) {
    return {mx::multiply(x.a, y.a, x.s), x.s};
  }
};

struct GraphOps {
  static Graph where_positive(const Graph& h, const Graph& one) {
    mx::array zero(0.0f, h.a.dtype());
    return {mx::where(mx::greater(h.a, zero, h.s), one.a, zero, h.s), h.s};
  }
};

// f'(a) from h = f(a); absent where it is 1.
std::optional<mx::array> slope(
    kernels::Activation activation,
    const mx::array& h,
    const mx::Stream& s) {
  Graph value{h, s};
  Graph one{mx::array(1.0f, h.dtype()), s};
  switch (activation) {
    case kernels::Activation::tanh:
      return elman::slope<kernels::Activation::tanh, GraphOps>(value, one).a;
    case kernels::Activation::relu:
      return elman::slope<kernels::Activation::relu, GraphOps>(value, one).a;
    case kernels::Activation::sigmoid:
      return elman::slope<kernels::Activation::sigmoid, GraphOps>(value, one).a;
    case kernels::Activation::identity:
      return std::nullopt;
    case kernels::Activation::traced:
      break;
  }
  throw std::invalid_argument("[mlx_recurrent] no such activation");
}

std::optional<mx::array> input_at(const Arrays& inputs, int i) {
  return i < 0 ? std::nullopt : std::optional(inputs[i]);
}

mx::array states_of(
    const RecurrenceForm& form,
    const Arrays& inputs,
    int keep_every,
    const mx::Stream& s) {
  return recurrence(
      inputs[form.x],
      input_at(inputs, form.Wxh()),
      input_at(inputs, form.bias()),
      inputs[form.Whh],
      input_at(inputs, form.hidden()),
      form.activation,
      keep_every,
      s);
}

// From all steps of y, those that `keep_every` keeps.
mx::array kept(const mx::array& y, int keep_every, const mx::Stream& s) {
  int L = y.shape(-2);
  if (keep_every == 0) {
    return y;
  }
  if (L < keep_every) {
    return steps(y, L - 1, L, s);
  }
  mx::array whole = steps(y, keep_every - 1, L, s, keep_every);
  return L % keep_every == 0
      ? whole
      : mx::concatenate({whole, steps(y, L - 1, L, s)}, -2, s);
}

// The transpose of `kept`: zeros at the steps that are not kept.
mx::array spread(
    const mx::array& c,
    int L,
    int keep_every,
    const mx::Stream& s) {
  if (keep_every == 0) {
    return c;
  }
  int H = c.shape(-1);
  int whole = L / keep_every;
  Arrays parts;
  if (whole > 0) {
    mx::array last = mx::expand_dims(steps(c, 0, whole, s), -2, s);
    mx::array zeros =
        mx::zeros(with_tail(c, 2, {whole, keep_every - 1, H}), c.dtype(), s);
    parts.push_back(
        mx::reshape(
            mx::concatenate({zeros, last}, -2, s),
            with_tail(c, 2, {whole * keep_every, H}),
            s));
  }
  if (int rest = L % keep_every; rest > 0) {
    parts.push_back(mx::zeros(with_tail(c, 2, {rest - 1, H}), c.dtype(), s));
    parts.push_back(steps(c, whole, whole + 1, s));
  }
  return mx::concatenate(parts, -2, s);
}

// The shape of the states that inputs like these give; raises where the inputs
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
  bool fits = has_kernels(x.dtype()) && x.ndim() >= 2 && Whh.ndim() == 2 &&
      form.keep_every >= 0 && (form.keep_every == 0 || x.shape(-2) > 0);
  int H = fits ? Whh.shape(0) : 0;
  fits = fits && Whh.shape(1) == H &&
      (Wxh ? Wxh->shape() == mx::Shape{H, x.shape(-1)} : x.shape(-1) == H) &&
      (!bias || bias->shape() == mx::Shape{H}) &&
      (!hidden || hidden->shape() == with_tail(x, 2, {H}));
  for (int i = 0; i < form.inputs(); ++i) {
    fits = fits && inputs[i].dtype() == x.dtype();
  }
  expect(fits, name);
  int64_t count = kernels::kept_states(x.shape(-2), form.keep_every);
  return with_tail(x, 2, {static_cast<int>(count), H});
}

kernels::RecurrenceArgs arguments(
    const RecurrenceForm& form,
    const Arrays& inputs,
    Operands& operands) {
  const mx::array& x = inputs[form.x];
  const mx::array& Whh = inputs[form.Whh];
  kernels::RecurrenceArgs args{};
  args.N = leading_size(x, static_cast<int>(x.ndim()) - 2);
  args.L = x.shape(-2);
  args.D = x.shape(-1);
  args.H = Whh.shape(0);
  args.activation = form.activation;
  args.projected = form.projected;
  args.x = operands.sequence(x);
  if (!form.projected) {
    args.Wxh = Operands::matrix(inputs[form.Wxh()]);
  }
  if (form.has_bias) {
    args.bias = Operands::vector(inputs[form.bias()]);
  }
  args.Whh = Operands::matrix(Whh);
  if (form.has_hidden) {
    args.hidden = operands.rows(inputs[form.hidden()]);
  }
  args.keep_every = form.keep_every;
  return args;
}

kernels::Partition partition_of(
    const kernels::RecurrenceArgs& args,
    const mx::array& x) {
  return kernels::partition_recurrence(
      args.N,
      args.L,
      args.projected ? 0 : args.D,
      args.H,
      compute_bytes(x.dtype()),
      machine_now());
}

} // namespace

mx::array recurrence(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& hidden,
    kernels::Activation activation,
    int keep_every,
    const mx::Stream& stream) {
  expect(Wxh || !bias, "mlx_recurrent.Recurrence");
  RecurrenceForm form{
      activation,
      !Wxh.has_value(),
      bias.has_value(),
      hidden.has_value(),
      keep_every};
  Arrays inputs{x, Whh};
  for (const auto* optional : {&Wxh, &bias, &hidden}) {
    if (*optional) {
      inputs.push_back(**optional);
    }
  }
  auto primitive = std::make_shared<Recurrence>(stream, form);
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  return mx::array(
      std::move(shape), x.dtype(), std::move(primitive), std::move(inputs));
}

mx::array pre_activation(
    const mx::array& x,
    const std::optional<mx::array>& Wxh,
    const std::optional<mx::array>& bias,
    const mx::array& Whh,
    const std::optional<mx::array>& previous,
    int t,
    const mx::Stream& stream) {
  mx::array x_t = step_at(x, t, stream);
  mx::array z = Wxh ? matmul(x_t, *Wxh, bias, stream) : x_t;
  return previous
      ? mx::add(z, matmul(*previous, Whh, {}, stream), stream)
      : z;
}

void Recurrence::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  kernels::ForwardArgs args{
      arguments(form_, inputs, *operands), out.data<char>()};
  launch(
      stream(),
      kernels_for(out).forward,
      args,
      partition_of(args.layer, inputs[form_.x]),
      operands);
}

std::vector<mx::Shape> Recurrence::output_shapes(const Arrays& inputs) {
  return {states_shape(form_, inputs, name())};
}

bool Recurrence::is_equivalent(const mx::Primitive& other) const {
  return form_ == static_cast<const Recurrence&>(other).form_;
}

Arrays Recurrence::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  Arrays inputs = primals;
  inputs.push_back(outputs[0]);
  inputs.push_back(matched(cotangents[0], outputs[0], stream()));
  auto primitive = std::make_shared<RecurrenceVJP>(stream(), form_, argnums);
  return mx::array::make_arrays(
      primitive->output_shapes(inputs),
      std::vector<mx::Dtype>(argnums.size(), outputs[0].dtype()),
      primitive,
      inputs);
}

// dy_t = g_t (dz_t + dWhh h_{t-1} + Whh dy_{t-1}), g = f'(a).
Arrays Recurrence::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  mx::array y = states_of(form_, primals, 0, s);
  auto hidden = input_at(primals, form_.hidden());
  std::optional<mx::array> source;
  std::optional<mx::array> first;
  auto add = [&](const mx::array& term) {
    source = source ? mx::add(*source, term, s) : term;
  };
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    mx::array d = matched(tangents[k], primals[i], s);
    if (i == form_.x) {
      add(form_.projected ? d : matmul(d, primals[form_.Wxh()], {}, s));
    } else if (i == form_.Whh) {
      if (y.shape(-2) > 0) {
        add(matmul(step_before(y, hidden, false, s), d, {}, s));
      }
    } else if (i == form_.Wxh()) {
      add(matmul(primals[form_.x], d, {}, s));
    } else if (i == form_.bias()) {
      add(mx::broadcast_to(d, y.shape(), s));
    } else {
      first = d;
    }
  }
  auto g = slope(form_.activation, y, s);
  mx::array driven = source ? scaled(g, *source, s) : mx::zeros_like(y, s);
  mx::array dy =
      linear_scan({driven, primals[form_.Whh], g, {}, first}, false, s);
  return {kept(dy, form_.keep_every, s)};
}

std::pair<Arrays, Ints> Recurrence::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(form_.inputs(), false);
  joins[form_.x] = true;
  if (form_.has_hidden) {
    joins[form_.hidden()] = true;
  }
  return vectorize(
      [this](const Arrays& in) {
        return Arrays{states_of(form_, in, form_.keep_every, stream())};
      },
      joins,
      true,
      inputs,
      axes,
      stream());
}

void RecurrenceVJP::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  auto operands = std::make_shared<Operands>();
  kernels::BackwardArgs args{};
  args.layer = arguments(form_, inputs, *operands);
  args.states = operands->sequence(inputs[form_.inputs()]);
  args.dstates = operands->sequence(inputs[form_.inputs() + 1]);
  for (size_t k = 0; k < wanted_.size(); ++k) {
    mx::array& out = outputs[k];
    allocate(out);
    int i = wanted_[k];
    void*& target = i == form_.x ? args.dx
        : i == form_.Whh         ? args.dWhh
        : i == form_.Wxh()       ? args.dWxh
        : i == form_.bias()      ? args.dbias
                                 : args.dhidden;
    target = out.size() > 0 ? out.data<char>() : nullptr;
  }
  launch(
      stream(),
      kernels_for(inputs[form_.x]).backward,
      args,
      partition_of(args.layer, inputs[form_.x]),
      operands);
}

std::vector<mx::Shape> RecurrenceVJP::output_shapes(const Arrays& inputs) {
  mx::Shape states = states_shape(form_, inputs, name());
  for (int i : {form_.inputs(), form_.inputs() + 1}) {
    expect(
        inputs[i].shape() == states && inputs[i].dtype() == inputs[0].dtype(),
        name());
  }
  std::vector<mx::Shape> shapes;
  for (int i : wanted_) {
    shapes.push_back(inputs[i].shape());
  }
  return shapes;
}

bool RecurrenceVJP::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const RecurrenceVJP&>(other);
  return form_ == o.form_ && wanted_ == o.wanted_;
}

// lambda_t = c_t + Whh^T (g_{t+1} lambda_{t+1}), delta = g lambda.
Arrays RecurrenceVJP::composed(const Arrays& inputs) const {
  const mx::Stream& s = const_cast<RecurrenceVJP*>(this)->stream();
  const mx::array& x = inputs[form_.x];
  int L = x.shape(-2);
  if (L == 0) {
    Arrays zeros;
    for (int i : wanted_) {
      zeros.push_back(mx::zeros_like(inputs[i], s));
    }
    return zeros;
  }
  // Kept states are not enough: the others follow from the inputs again.
  mx::array y = form_.keep_every == 0 ? inputs[form_.inputs()]
                                      : states_of(form_, inputs, 0, s);
  mx::array cotangent =
      spread(inputs[form_.inputs() + 1], L, form_.keep_every, s);
  mx::array transposed = mx::transpose(inputs[form_.Whh], s);
  auto g = slope(form_.activation, y, s);
  mx::array lambda = linear_scan({cotangent, transposed, {}, g, {}}, true, s);
  mx::array delta = scaled(g, lambda, s);
  Arrays outputs;
  for (int i : wanted_) {
    if (i == form_.x) {
      outputs.push_back(
          form_.projected
              ? delta
              : matmul(delta, mx::transpose(inputs[form_.Wxh()], s), {}, s));
    } else if (i == form_.Whh) {
      auto hidden = input_at(inputs, form_.hidden());
      outputs.push_back(outer_sum(delta, step_before(y, hidden, false, s), s));
    } else if (i == form_.Wxh()) {
      outputs.push_back(outer_sum(delta, x, s));
    } else if (i == form_.bias()) {
      outputs.push_back(sum_leading(delta, s));
    } else {
      outputs.push_back(matmul(step_at(delta, 0, s), transposed, {}, s));
    }
  }
  return outputs;
}

Arrays RecurrenceVJP::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  Arrays matching;
  for (size_t k = 0; k < wanted_.size(); ++k) {
    matching.push_back(matched(cotangents[k], outputs[k], stream()));
  }
  auto all = mx::vjp(
      [this](const Arrays& inputs) { return composed(inputs); },
      primals,
      matching);
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(all.second[i]);
  }
  return grads;
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
               Arrays inputs = primals;
               for (size_t k = 0; k < argnums.size(); ++k) {
                 inputs[argnums[k]] = at[k];
               }
               return composed(inputs);
             },
             moving,
             matching)
      .second;
}

std::pair<Arrays, Ints> RecurrenceVJP::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  std::vector<bool> joins(inputs.size(), true);
  bool outputs_join = true;
  for (int i = 0; i < form_.inputs(); ++i) {
    joins[i] = i == form_.x || i == form_.hidden();
  }
  for (int i : wanted_) {
    outputs_join = outputs_join && joins[i];
  }
  return vectorize(
      [this](const Arrays& in) {
        auto primitive =
            std::make_shared<RecurrenceVJP>(stream(), form_, wanted_);
        return mx::array::make_arrays(
            primitive->output_shapes(in),
            std::vector<mx::Dtype>(wanted_.size(), in[0].dtype()),
            primitive,
            in);
      },
      joins,
      outputs_join,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
