#include "primitives/broadcast.h"

#include <algorithm>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "primitives/batching.h"
#include "primitives/memory.h"
#include "primitives/operand.h"

namespace mlx_recurrent {

namespace {

mx::array narrow(
    const mx::array& x,
    const mx::array& like,
    const mx::Stream& stream) {
  return mx::array(
      like.shape(),
      x.dtype(),
      std::make_shared<Narrow>(stream),
      Arrays{x, like});
}

mx::array widened(
    const mx::array& x,
    int x_tail,
    const mx::array& like,
    int like_tail,
    const mx::Stream& stream) {
  auto primitive = std::make_shared<Widen>(stream, x_tail, like_tail);
  mx::Shape shape = primitive->output_shapes({x, like})[0];
  return mx::array(
      std::move(shape), x.dtype(), std::move(primitive), Arrays{x, like});
}

// With axes of size 1 in front, so that it has `ndim`.
mx::array padded(const mx::array& a, int ndim, const mx::Stream& s) {
  Ints front;
  for (int i = 0; i < ndim - static_cast<int>(a.ndim()); ++i) {
    front.push_back(i);
  }
  return front.empty() ? a : mx::expand_dims(a, front, s);
}

// The strides of `a` in an array of this shape: 0 where `a` is repeated.
mx::Strides repeated_strides(const mx::array& a, const mx::Shape& shape) {
  mx::Strides strides = a.strides();
  for (size_t i = 0; i < shape.size(); ++i) {
    if (a.shape(i) != shape[i]) {
      strides[i] = 0;
    }
  }
  return strides;
}

// Adds elements of one array to those of another, at their own strides.
template <class Element, class Sum>
void add_up(
    const Element* from,
    const mx::Strides& from_strides,
    Sum* to,
    const mx::Strides& to_strides,
    const mx::Shape& shape,
    size_t axis = 0) {
  if (axis == shape.size()) {
    *to += static_cast<Sum>(*from);
    return;
  }
  for (int i = 0; i < shape[axis]; ++i) {
    add_up(from, from_strides, to, to_strides, shape, axis + 1);
    from += from_strides[axis];
    to += to_strides[axis];
  }
}

template <class Element, class Sum>
void launch_sum(const mx::array& x, mx::array& out, const mx::Stream& stream) {
  mx::cpu::get_command_encoder(stream).dispatch(
      [from = x.data<Element>(),
       from_strides = x.strides(),
       to = out.data<Element>(),
       size = out.size(),
       to_strides = repeated_strides(out, x.shape()),
       shape = x.shape()] {
        std::vector<Sum> sums(size);
        add_up(from, from_strides, sums.data(), to_strides, shape);
        for (size_t i = 0; i < size; ++i) {
          to[i] = static_cast<Element>(sums[i]);
        }
      });
}

} // namespace

mx::array filled(
    const mx::array& like,
    float value,
    const mx::Stream& stream,
    int features) {
  auto primitive = std::make_shared<Filled>(stream, value, features);
  mx::Shape shape = primitive->output_shapes({like})[0];
  return mx::array(
      std::move(shape), like.dtype(), std::move(primitive), Arrays{like});
}

mx::array widen(
    const mx::array& x,
    int x_tail,
    const mx::array& like,
    int like_tail,
    const mx::Stream& stream) {
  int x_ndim = static_cast<int>(x.ndim());
  int like_ndim = static_cast<int>(like.ndim());
  int lead = std::max(x_ndim - x_tail, like_ndim - like_tail);
  return widened(
      padded(x, lead + x_tail, stream),
      x_tail,
      padded(like, lead + like_tail, stream),
      like_tail,
      stream);
}

void Filled::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  // Nothing else knows this memory yet: it may be written at once.
  mx::array one(value_, out.dtype());
  mx::Strides strides(out.ndim(), 0);
  bool row = out.size() <= 1;
  out.copy_shared_buffer(
      one, strides, {true, row, row}, std::min<size_t>(out.size(), 1));
}

std::vector<mx::Shape> Filled::output_shapes(const Arrays& inputs) {
  return {
      features_ < 0 ? inputs[0].shape() : with_tail(inputs[0], 1, {features_})};
}

bool Filled::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Filled&>(other);
  return value_ == o.value_ && features_ == o.features_;
}

Arrays Filled::vjp(
    const Arrays& primals,
    const Arrays&,
    const Ints&,
    const Arrays&) {
  return {filled(primals[0], 0, stream())};
}

Arrays Filled::jvp(const Arrays& primals, const Arrays&, const Ints&) {
  return {filled(primals[0], 0, stream(), features_)};
}

std::pair<Arrays, Ints> Filled::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{filled(in[0], value_, stream(), features_)};
      },
      {true},
      true,
      0,
      inputs,
      axes,
      stream());
}

void Widen::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& x = inputs[0];
  mx::array& out = outputs[0];
  mx::array::Flags flags = x.flags();
  if (out.size() != x.size()) {
    flags.row_contiguous = flags.col_contiguous = false;
  }
  if (out.size() == 0) {
    allocate(out);
    return;
  }
  out.copy_shared_buffer(
      x, repeated_strides(x, out.shape()), flags, x.data_size());
}

std::vector<mx::Shape> Widen::output_shapes(const Arrays& inputs) {
  const mx::array& x = inputs[0];
  const mx::array& like = inputs[1];
  size_t lead = x.ndim() - x_tail_;
  bool fits = like.ndim() - like_tail_ == lead;
  mx::Shape shape = x.shape();
  for (size_t i = 0; fits && i < lead; ++i) {
    fits = x.shape(i) == 1 || like.shape(i) == 1 || x.shape(i) == like.shape(i);
    shape[i] = x.shape(i) == 1 ? like.shape(i) : x.shape(i);
  }
  expect(fits, name());
  return {shape};
}

bool Widen::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Widen&>(other);
  return x_tail_ == o.x_tail_ && like_tail_ == o.like_tail_;
}

Arrays Widen::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        i == 0 ? narrow(matched(cotangents[0], outputs[0], s), primals[0], s)
               : filled(primals[1], 0, s));
  }
  return grads;
}

Arrays Widen::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  mx::array d = argnums[0] == 0 ? matched(tangents[0], primals[0], s)
                                : filled(primals[0], 0, s);
  return {widened(d, x_tail_, primals[1], like_tail_, s)};
}

std::pair<Arrays, Ints> Widen::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{widened(in[0], x_tail_, in[1], like_tail_, stream())};
      },
      {true, true},
      true,
      0,
      inputs,
      axes,
      stream());
}

void Narrow::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  allocate(out);
  switch (kernel_type(out.dtype())) {
    case kernels::Type::float32:
      return launch_sum<float, float>(inputs[0], out, stream());
    case kernels::Type::float64:
      return launch_sum<double, double>(inputs[0], out, stream());
    case kernels::Type::float16:
      return launch_sum<mx::float16_t, float>(inputs[0], out, stream());
    case kernels::Type::bfloat16:
      return launch_sum<mx::bfloat16_t, float>(inputs[0], out, stream());
  }
}

std::vector<mx::Shape> Narrow::output_shapes(const Arrays& inputs) {
  const mx::array& x = inputs[0];
  const mx::array& like = inputs[1];
  bool fits = x.ndim() == like.ndim();
  for (size_t i = 0; fits && i < x.ndim(); ++i) {
    fits = like.shape(i) == 1 || like.shape(i) == x.shape(i);
  }
  expect(fits, name());
  return {like.shape()};
}

Arrays Narrow::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(
        i == 0 ? widened(
                     matched(cotangents[0], outputs[0], s), 0, primals[0], 0, s)
               : filled(primals[1], 0, s));
  }
  return grads;
}

Arrays Narrow::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  mx::array d = argnums[0] == 0 ? matched(tangents[0], primals[0], s)
                                : filled(primals[0], 0, s);
  return {narrow(d, primals[1], s)};
}

std::pair<Arrays, Ints> Narrow::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{narrow(in[0], in[1], stream())};
      },
      {true, true},
      true,
      0,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
