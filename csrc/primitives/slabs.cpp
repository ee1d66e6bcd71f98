#include "primitives/slabs.h"

#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "primitives/batching.h"
#include "primitives/memory.h"
#include "primitives/operand.h"
#include "primitives/row_copy.h"

namespace mlx_recurrent {

namespace {

// Of the input of Joined that is at this place.
mx::array only_slab(
    const mx::array& a,
    int k,
    int slabs,
    const mx::Stream& stream) {
  std::vector<std::optional<mx::array>> all(slabs);
  all[k] = a;
  return joined(all, stream);
}

} // namespace

mx::array slab(const mx::array& a, int k, int slabs, const mx::Stream& stream) {
  if (slabs == 1) {
    return a;
  }
  auto primitive = std::make_shared<Slab>(stream, k, slabs);
  mx::Shape shape = primitive->output_shapes({a})[0];
  return mx::array(
      std::move(shape), a.dtype(), std::move(primitive), Arrays{a});
}

std::vector<std::optional<mx::array>> parted(
    const mx::array& a,
    int slabs,
    const mx::Stream& stream) {
  std::vector<std::optional<mx::array>> all;
  for (int k = 0; k < slabs; ++k) {
    all.push_back(slab(a, k, slabs, stream));
  }
  return all;
}

mx::array joined(
    const std::vector<std::optional<mx::array>>& slabs,
    const mx::Stream& stream) {
  Ints places;
  Arrays there;
  for (size_t k = 0; k < slabs.size(); ++k) {
    if (slabs[k]) {
      places.push_back(static_cast<int>(k));
      there.push_back(*slabs[k]);
    }
  }
  if (slabs.size() == 1) {
    return there.at(0);
  }
  mx::Dtype dtype = there.at(0).dtype();
  auto primitive = std::make_shared<Joined>(
      stream, std::move(places), static_cast<int>(slabs.size()));
  mx::Shape shape = primitive->output_shapes(there)[0];
  return mx::array(
      std::move(shape), dtype, std::move(primitive), std::move(there));
}

void Slab::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  const mx::array& a = inputs[0];
  mx::array& out = outputs[0];
  if (out.size() == 0) {
    allocate(out);
    return;
  }
  int64_t offset = k_ * static_cast<int64_t>(out.shape(-1)) * a.strides(-1);
  // A single row of features, or rows with others between them.
  bool row =
      static_cast<int64_t>(out.size()) == out.shape(-1) && a.strides(-1) == 1;
  out.copy_shared_buffer(
      a,
      a.strides(),
      {row, row, row},
      row ? out.size() : a.data_size() - std::max<int64_t>(offset, 0),
      offset);
}

std::vector<mx::Shape> Slab::output_shapes(const Arrays& inputs) {
  const mx::array& a = inputs[0];
  expect(a.ndim() > 0 && a.shape(-1) % slabs_ == 0, name());
  return {with_tail(a, 1, {a.shape(-1) / slabs_})};
}

bool Slab::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Slab&>(other);
  return k_ == o.k_ && slabs_ == o.slabs_;
}

Arrays Slab::vjp(
    const Arrays&,
    const Arrays& cotangents,
    const Ints&,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  return {only_slab(matched(cotangents[0], outputs[0], s), k_, slabs_, s)};
}

Arrays Slab::jvp(const Arrays& primals, const Arrays& tangents, const Ints&) {
  const mx::Stream& s = stream();
  return {slab(matched(tangents[0], primals[0], s), k_, slabs_, s)};
}

std::pair<Arrays, Ints> Slab::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        return Arrays{slab(in[0], k_, slabs_, stream())};
      },
      {true},
      true,
      0,
      inputs,
      axes,
      stream());
}

void Joined::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  mx::array& out = outputs[0];
  allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  std::vector<kernels::Sequence> from(
      slabs_, kernels::Sequence{nullptr, nullptr, 0, 0});
  for (size_t i = 0; i < inputs.size(); ++i) {
    from[places_[i]] = operands->rows(inputs[i]);
  }
  int64_t H = inputs[0].shape(-1);
  int64_t rows = static_cast<int64_t>(inputs[0].size()) / H;
  auto item = static_cast<int64_t>(out.itemsize());
  mx::cpu::get_command_encoder(stream()).dispatch(
      [from = std::move(from), operands, H, rows, item, to = out.data<char>()] {
        char* next = to;
        for (int64_t n = 0; n < rows; ++n) {
          for (const kernels::Sequence& slab : from) {
            copy_row(
                next,
                slab.data ? features_at(slab, n, 0, item) : nullptr,
                slab.feature_stride,
                H,
                item);
            next += H * item;
          }
        }
      });
}

std::vector<mx::Shape> Joined::output_shapes(const Arrays& inputs) {
  const mx::array& a = inputs[0];
  bool fit = a.ndim() > 0;
  for (const mx::array& other : inputs) {
    fit = fit && other.shape() == a.shape() && other.dtype() == a.dtype();
  }
  expect(fit, name());
  return {with_tail(a, 1, {a.shape(-1) * slabs_})};
}

bool Joined::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Joined&>(other);
  return places_ == o.places_ && slabs_ == o.slabs_;
}

Arrays Joined::vjp(
    const Arrays&,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  mx::array c = matched(cotangents[0], outputs[0], s);
  Arrays grads;
  for (int i : argnums) {
    grads.push_back(slab(c, places_[i], slabs_, s));
  }
  return grads;
}

Arrays Joined::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  std::vector<std::optional<mx::array>> moved(slabs_);
  for (size_t k = 0; k < argnums.size(); ++k) {
    int i = argnums[k];
    moved[places_[i]] = matched(tangents[k], primals[i], s);
  }
  return {joined(moved, s)};
}

std::pair<Arrays, Ints> Joined::vmap(const Arrays& inputs, const Ints& axes) {
  return vectorize(
      [this](const Arrays& in, int) {
        std::vector<std::optional<mx::array>> all(slabs_);
        for (size_t i = 0; i < in.size(); ++i) {
          all[places_[i]] = in[i];
        }
        return Arrays{joined(all, stream())};
      },
      std::vector<bool>(inputs.size(), true),
      true,
      0,
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
