#include "primitives/recurrence.h"

#include "mlx_faults/references.h"
#include "mlx_faults/stream_threads.h"
#include "mlx_faults/zero_cotangent.h"
#include "primitives/arithmetic.h"
#include "primitives/batching.h"
#include "primitives/broadcast.h"
#include "primitives/launch.h"
#include "primitives/linear_scan.h"
#include "primitives/linearisation.h"
#include "primitives/matmul.h"
#include "primitives/recurrence_slots.h"
#include "primitives/recurrence_vjp.h"
#include "primitives/slabs.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = RecurrenceSlot;

// Second states that nobody asked for are kept where a derivative's chunks
// begin: fewer steps than were allowed where the rows alone fill a chunk.
int cells_every(int allowed, const mx::array& x, int leading_axes) {
  constexpr int64_t kRowsOfChunk = 256;
  int64_t rows = std::max<int64_t>(
      size_between(x, leading_axes, static_cast<int>(x.ndim()) - 2), 1);
  int64_t steps = (kRowsOfChunk + rows - 1) / rows;
  return static_cast<int>(std::min<int64_t>(allowed, steps));
}

} // namespace

Arrays recurrence(
    const Slotted<Slot>& in,
    RecurrenceForm form,
    Returned returned,
    const mx::Stream& stream) {
  expect_blas();
  form.inputs = in.slots();
  kernels::CellShape cell = form.shape();
  for (int k = 0; k < cell.states; ++k) {
    form.outputs.add(nth(Slot::states, k));
    if (returned != Returned::states) {
      form.outputs.add(nth(Slot::state, k));
    }
  }
  // What the derivative needs where it does not follow from the states.
  bool needs = form.kind != kernels::CellKind::elman || form.function ||
      form.inputs.has(Slot::leak);
  if (needs && returned != Returned::state && form.keeps_all_states()) {
    form.outputs.add(Slot::saved);
  }
  if (returned != Returned::state) {
    if (form.kind == kernels::CellKind::lstm && returned == Returned::both &&
        !form.keeps_all_states()) {
      const mx::array& Whh = in.get(Slot::Whh);
      form.cells_every = cells_every(
          form.checkpoint_every,
          in.get(Slot::x),
          static_cast<int>(Whh.ndim()) - 2);
    }
    form.checkpoint_every = all_states; // all that are returned are there
  } else if (form.keeps_all_states()) {
    // A derivative that is cut to blocks needs the states at their borders.
    int block = form.course.truncate_every;
    form.latest_checkpoint = block > 0;
    form.checkpoint_every = block > 0 ? block : checkpoint_square_root;
  }
  Arrays inputs = in.in_order();
  expect_operands(inputs, stream);
  Arrays outputs = outputs_of(form, std::move(inputs), stream);
  Arrays asked;
  asked.reserve(2 * cell.states);
  auto give = [&](Slot first, int count) {
    for (int k = 0; k < count; ++k) {
      asked.push_back(form.outputs.in(outputs, nth(first, k)));
    }
  };
  if (returned != Returned::state) {
    give(Slot::states, returned == Returned::states ? cell.states : 1);
  }
  if (returned != Returned::states) {
    give(Slot::state, cell.states);
  }
  return asked;
}

Arrays outputs_of(
    const RecurrenceForm& form,
    Arrays inputs,
    const mx::Stream& s) {
  inputs.erase(inputs.begin() + form.inputs.size(), inputs.end());
  auto primitive = std::make_shared<Recurrence>(s, form);
  std::vector<mx::Shape> shapes = primitive->output_shapes(inputs);
  mx::Dtype dtype = inputs[0].dtype();
  if (shapes.size() == 1) {
    return {mx::array(
        std::move(shapes[0]), dtype, std::move(primitive), std::move(inputs))};
  }
  std::vector<mx::Dtype> dtypes;
  for (int i = 0; i < form.outputs.size(); ++i) {
    dtypes.push_back(dtype_of(kind_of(form.outputs.at(i)), dtype));
  }
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), inputs);
}

Arrays states_of(
    RecurrenceForm form,
    const Arrays& inputs,
    const mx::Stream& s) {
  form.checkpoint_every = all_states;
  form.cells_every = all_states;
  form.latest_checkpoint = false;
  form.outputs = {};
  for (int k = 0; k < form.shape().states; ++k) {
    form.outputs.add(nth(Slot::states, k));
  }
  return outputs_of(form, inputs, s);
}

mx::array pre_activation(
    const Slotted<Slot>& inputs,
    const std::optional<mx::array>& previous,
    int t,
    const mx::Stream& stream) {
  // A slice: what is read, or begins a composed path, has the shapes of a call.
  const mx::array& x = inputs.get(Slot::x);
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  start[x.ndim() - 2] = t;
  stop[x.ndim() - 2] = t + 1;
  mx::array x_t = mx::squeeze(mx::slice(x, start, stop, stream), -2, stream);
  const auto& Wxh = inputs[Slot::Wxh];
  mx::array z = Wxh ? matmul(x_t, *Wxh, inputs[Slot::bias], stream) : x_t;
  if (!previous) {
    return z;
  }
  return mx::add(
      z, matmul(*previous, inputs.get(Slot::Whh), {}, stream), stream);
}

void Recurrence::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  size_t size = 0;
  std::vector<bool> wanted;
  for (int i = 0; i < form_.outputs.size(); ++i) {
    // `outputs` refers to each, and so does every other output.
    Slot slot = form_.outputs.at(i);
    SlotOfState of = parts_of(slot);
    bool may_be_left =
        slot == Slot::saved || (of.first == Slot::states && of.state > 0);
    wanted.push_back(
        !may_be_left ||
        references(outputs[i]) > static_cast<long>(outputs.size()));
    if (wanted[i]) {
      allocate(outputs[i]);
      size += outputs[i].size();
    } else {
      leave_empty(outputs[i]);
    }
  }
  if (size == 0) {
    return;
  }
  auto operands = std::make_shared<Operands>();
  RecurrenceSizes sizes = sizes_of(form_, inputs);
  std::vector<kernels::ForwardArgs> sets;
  for (const auto& layer : arguments(form_, inputs, sizes, *operands)) {
    int64_t set = static_cast<int64_t>(sets.size());
    kernels::ForwardArgs args{layer};
    for (int i = 0; i < form_.outputs.size(); ++i) {
      if (wanted[i]) {
        target(args, row_of(form_.outputs.at(i)).output, form_.outputs.at(i)) =
            of_set(outputs[i], set, sizes.sets);
      }
    }
    sets.push_back(args);
  }
  launch(
      stream(),
      kernels_for(outputs[0]).forward,
      std::move(sets),
      partition_of(sizes, inputs[0].dtype(), form_.projected()),
      operands);
}

std::vector<mx::Shape> Recurrence::output_shapes(const Arrays& inputs) {
  Shapes shapes = shapes_of(form_, inputs, name());
  std::vector<mx::Shape> found;
  for (int i = 0; i < form_.outputs.size(); ++i) {
    found.push_back(shapes.of(kind_of(form_.outputs.at(i))));
  }
  return found;
}

// Only with a single output: where MLX's compile merges primitives of several,
// it may put one after what reads it.
bool Recurrence::is_equivalent(const mx::Primitive& other) const {
  return form_.outputs.size() == 1 &&
      form_ == static_cast<const Recurrence&>(other).form_;
}

Arrays Recurrence::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const Ints& argnums,
    const Arrays& outputs) {
  const mx::Stream& s = stream();
  Slotted<Slot> in(form_.inputs, primals);
  // A derivative's own derivative recomputes states where some are kept:
  // nothing goes through those.
  auto kept = [&](const mx::array& out, bool all) {
    return all ? out : mx::stop_gradient(out, s);
  };
  for (int i = 0; i < form_.outputs.size(); ++i) {
    const mx::array& out = outputs[i];
    auto cotangent = [&]() -> std::optional<mx::array> {
      if (is_unused(cotangents[i])) {
        return std::nullopt;
      }
      return matched(cotangents[i], out, s);
    };
    auto [first, k] = parts_of(form_.outputs.at(i));
    switch (first) {
      case Slot::states:
        in[nth(Slot::states, k)] = kept(out, form_.keeps_all_of(k));
        if (form_.keeps_all_of(k)) {
          in[nth(Slot::dstates, k)] = cotangent();
        }
        break;
      case Slot::state:
        in[nth(Slot::dstate, k)] = cotangent();
        break;
      case Slot::saved:
        // What goes through it goes through the states too.
        in[Slot::saved] = mx::stop_gradient(out, s);
        break;
      default:
        throw std::out_of_range("[mlx_recurrent] no such output");
    }
  }
  BackwardForm form{form_, in.slots(), {}};
  for (int i : argnums) {
    if (kind_of(form_.inputs.at(i)).has_derivative()) {
      form.wanted.push_back(form_.inputs.at(i));
    }
  }
  Arrays found = backward(form, in.in_order(), s);
  Arrays grads;
  size_t next = 0;
  for (int i : argnums) {
    grads.push_back(
        kind_of(form_.inputs.at(i)).has_derivative()
            ? found[next++]
            : mx::zeros_like(primals[i], s));
  }
  return grads;
}

namespace {

// What the inputs' tangents move, of the inputs of one recurrence.
class Moved {
 public:
  Moved(
      const RecurrenceForm& form,
      const Arrays& primals,
      const Arrays& y,
      const mx::Stream& stream)
      : form_(form),
        primals_(primals),
        y_(y),
        s_(stream),
        linear_(form, primals, y, stream),
        source_(y.size()),
        first_(y.size()),
        start_(y.size()) {
  }

  void add(Slot slot, mx::array d) {
    kernels::CellShape shape = form_.shape();
    // Where all slabs are shared, so are their tangents.
    bool shared = shape.slabs() == shape.shared;
    auto& of_state = shared ? of_input_ : of_state_;
    auto [first, k] = parts_of(slot);
    switch (first) {
      case Slot::x:
        d = linear_.with_input_factors(linear_.valid(d));
        if (auto Wxh = form_.inputs.find(primals_, Slot::Wxh)) {
          d = matmul(d, *Wxh, {}, s_);
        }
        of_input_ = sum(of_input_, d, s_);
        break;
      case Slot::Whh:
        if (shape.state_slabs() == 0) {
          break;
        }
        of_state = sum(of_state, matmul(linear_.seen(), d, {}, s_), s_);
        break;
      case Slot::Wxh:
        of_input_ = sum(of_input_, matmul(linear_.input(), d, {}, s_), s_);
        break;
      case Slot::bias:
        of_input_ = sum(of_input_, repeated_row(d, y_[0], s_), s_);
        break;
      case Slot::bhn: {
        StateArrays slabs(shape.slabs());
        for (int i = 0; i < shape.state_only; ++i) {
          mx::array one = slab(d, i, shape.state_only, s_);
          slabs[i] = repeated_row(one, y_[0], s_);
        }
        of_state = sum(of_state, linear_.of_state(slabs), s_);
        break;
      }
      case Slot::parameters:
        linear_.add_parameters(source_, d);
        break;
      case Slot::hidden:
        first_[k] = d;
        break;
      case Slot::hidden0:
        start_[k] = d;
        break;
      case Slot::leak: {
        mx::array dk = linear_.updated(repeated_row(d, y_[0], s_));
        source_[0] = sum(source_[0], multiply(dk, linear_.change(), s_), s_);
        break;
      }
      default:
        throw std::out_of_range("[mlx_recurrent] no such input");
    }
  }

  // The tangents of all states.
  Arrays states() {
    if (of_input_ || of_state_) {
      linear_.add_slabs(source_, of_input_, of_state_);
    }
    return linear_.scan(source_, false, first_, start_);
  }

  // Those of the states after the last step, from those of all.
  mx::array last(const mx::array& dy, int k) const {
    Course course = course_of(form_.course, form_.inputs, primals_);
    return step_at(dy, End::last, first_[k], course, s_);
  }

 private:
  const RecurrenceForm& form_;
  const Arrays& primals_;
  const Arrays& y_;
  mx::Stream s_;
  Linearisation linear_;
  std::optional<mx::array> of_input_, of_state_;
  StateArrays source_, first_, start_;
};

} // namespace

// For an Elman cell dh_t = (1 - k) dq_t + g (dz_t + dWhh p_t + Whh (m_h dq_t))
// + dk (f(a) - q_t), with g = k f'(a) and p = m_h q.
Arrays Recurrence::jvp(
    const Arrays& primals,
    const Arrays& tangents,
    const Ints& argnums) {
  const mx::Stream& s = stream();
  Arrays y = states_of(form_, primals, s);
  Moved moved(form_, primals, y, s);
  for (size_t k = 0; k < argnums.size(); ++k) {
    Slot slot = form_.inputs.at(argnums[k]);
    if (kind_of(slot).has_derivative()) {
      moved.add(slot, matched(tangents[k], primals[argnums[k]], s));
    }
  }
  Arrays dy = moved.states();
  Arrays found;
  for (int i = 0; i < form_.outputs.size(); ++i) {
    Slot slot = form_.outputs.at(i);
    auto [first, k] = parts_of(slot);
    switch (first) {
      case Slot::states:
        // Where only some are kept, nobody sees them or their tangents.
        found.push_back(dy[k]);
        break;
      case Slot::state:
        found.push_back(moved.last(dy[k], k));
        break;
      case Slot::saved: {
        // Nobody asks for theirs.
        StateArrays none(form_.shape().saved, filled(y[0], 0, s));
        mx::Dtype dtype = compute_dtype(y[0].dtype());
        found.push_back(mx::astype(joined(none, s), dtype, s));
        break;
      }
      default:
        throw std::out_of_range("[mlx_recurrent] no such output");
    }
  }
  return found;
}

std::pair<Arrays, Ints> Recurrence::vmap(
    const Arrays& inputs,
    const Ints& axes) {
  expect_operands(inputs, stream()); // the call had their placeholders
  return vectorize(
      [this](const Arrays& in, int more_sets) {
        return outputs_of(form_.mapped(more_sets), in, stream());
      },
      are_of_rows(form_.inputs),
      true,
      form_.sets(inputs, axes),
      inputs,
      axes,
      stream());
}

} // namespace mlx_recurrent
