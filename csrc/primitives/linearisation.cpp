#include "primitives/linearisation.h"

#include <algorithm>

#include "primitives/arithmetic.h"
#include "primitives/broadcast.h"
#include "primitives/elementwise.h"
#include "primitives/linear_scan.h"
#include "primitives/masks.h"
#include "primitives/matmul.h"
#include "primitives/pointwise.h"
#include "primitives/slabs.h"
#include "primitives/steps.h"

namespace mlx_recurrent {

namespace {

using Slot = RecurrenceSlot;

using kernels::Activation;
using kernels::Drawn;

template <class Value, class Make>
const Value& once(std::optional<Value>& made, Make make) {
  if (!made) {
    made.emplace(make());
  }
  return *made;
}

} // namespace

Linearisation::Linearisation(
    const RecurrenceForm& form,
    const Arrays& inputs,
    Arrays states,
    const mx::Stream& stream)
    : form_(form),
      inputs_(inputs),
      states_(std::move(states)),
      s_(stream),
      course_(course_of(form.course, form.inputs, inputs)),
      shape_(form.shape()) {
}

mx::array Linearisation::valid(const mx::array& a) const {
  return taken(
      course_.lengths ? only_places(a, Places::valid, course_, s_) : a);
}

mx::array Linearisation::taken(const mx::array& a) const {
  auto mask = find(Slot::mask);
  return mask ? gate(taken_factors(*mask, a, s_), a, s_) : a;
}

std::optional<mx::array> Linearisation::mask(
    kernels::Drawn what,
    const mx::array& like) const {
  double probability = form_.probabilities.of[static_cast<int>(what)];
  if (probability == 0) {
    return {};
  }
  const mx::array& key = input_in(Slot::key);
  int first =
      static_cast<int>(input_in(Slot::Whh).ndim()) - 2 + form_.repeated_axes;
  int last = static_cast<int>(like.ndim()) - 2;
  auto rows = std::max<int64_t>(size_between(like, first, last), 1);
  return mlx_recurrent::mask(key, like, what, probability, rows, s_);
}

const std::optional<mx::array>& Linearisation::input_factors() {
  return once(input_factors_, [&] {
    return mask(Drawn::input_dropout, input_in(Slot::x));
  });
}

const std::optional<mx::array>& Linearisation::seen_factors() {
  return once(seen_factors_, [&] {
    return mask(Drawn::recurrent_dropout, states_[0]);
  });
}

const StateArrays& Linearisation::updates() {
  return once(updates_, [&] {
    StateArrays all;
    for (const mx::array& y : states_) {
      int k = static_cast<int>(all.size());
      Slot slot = nth(Slot::leak, k);
      auto updated = mask(kernels::zoneout_of(k), y);
      // That of an Elman cell has a derivative: see there.
      bool gated = form_.kind != kernels::CellKind::elman;
      if (auto leak = gated ? find(slot) : std::nullopt) {
        mx::array rows = repeated_row(*leak, y, s_);
        updated = updated ? gate(*updated, rows, s_) : rows;
      }
      // A skipped step keeps all units.
      if (find(Slot::mask)) {
        updated = taken(updated ? *updated : filled(y, 1, s_));
      }
      all.push_back(updated);
    }
    return all;
  });
}

mx::array Linearisation::with_input_factors(const mx::array& a) {
  const auto& factors = input_factors();
  return factors ? gate(*factors, a, s_) : a;
}

mx::array Linearisation::updated(const mx::array& a) {
  const auto& factors = updates()[0];
  return factors ? gate(*factors, a, s_) : a;
}

const mx::array& Linearisation::input() {
  return once(
      input_, [&] { return with_input_factors(valid(input_in(Slot::x))); });
}

const Arrays& Linearisation::before() {
  return once(before_, [&] {
    Arrays all;
    for (const mx::array& y : states_) {
      int k = static_cast<int>(all.size());
      mx::array q = step_before(y, find(nth(Slot::hidden, k)), course_, s_);
      if (auto hidden0 = find(nth(Slot::hidden0, k))) {
        mx::array rows = repeated_row(*hidden0, y, s_);
        q = add(q, only_places(rows, Places::starts, course_, s_), s_);
      }
      all.push_back(taken(q));
    }
    return all;
  });
}

const mx::array& Linearisation::seen() {
  return once(seen_, [&] {
    const mx::array& q = before()[0];
    const auto& factors = seen_factors();
    return factors ? gate(*factors, q, s_) : q;
  });
}

// Wxh m_x x + bias and Whh (m_h q), of all steps that are taken.
const Arrays& Linearisation::pre_activations() {
  return once(pre_activations_, [&] {
    mx::array z = form_.projected()
        ? input()
        : matmul(input(), input_in(Slot::Wxh), find(Slot::bias), s_);
    std::optional<mx::array> u;
    if (shape_.state_slabs() > 0) {
      u = matmul(seen(), input_in(Slot::Whh), {}, s_);
    }
    Arrays all;
    for (int k = 0; k < shape_.slabs(); ++k) {
      std::optional<mx::array> a;
      if (k >= shape_.state_only) {
        a = slab(z, k - shape_.state_only, shape_.input_slabs(), s_);
      } else if (auto bhn = find(Slot::bhn)) {
        a = repeated_row(slab(*bhn, k, shape_.state_only, s_), states_[0], s_);
      }
      if (k < shape_.state_slabs()) {
        a = sum(
            a, slab(*u, shape_.state_block(k), shape_.state_slabs(), s_), s_);
      }
      all.push_back(usual_elsewhere(*a));
    }
    return all;
  });
}

// Where no step is taken a number for which hardly any function or slope is
// singular, as many are for zero.
mx::array Linearisation::usual_elsewhere(const mx::array& a) const {
  bool any = form_.function || form_.program;
  if (!any || !(course_.lengths || find(Slot::mask))) {
    return a;
  }
  mx::array usual = filled(a, 0.3, s_);
  mx::array elsewhere = add(usual, negative(valid(usual), s_), s_);
  return add(valid(a), elsewhere, s_);
}

const mx::array& Linearisation::activations() {
  return once(activations_, [&] {
    if (!form_.inputs.has(Slot::leak)) {
      return states_[0]; // but for units that were kept, whose slope is 0
    }
    const mx::array& a = pre_activations()[0];
    return form_.function ? pointwise({a}, form_.function, s_)
                          : activated(form_.activation, a, s_);
  });
}

const mx::array& Linearisation::change() {
  return once(change_, [&] {
    return add(activations(), negative(before()[0], s_), s_);
  });
}

std::optional<mx::array> Linearisation::slope() {
  return form_.function
      ? pointwise_slope({pre_activations()[0]}, 0, form_.function, s_)
      : activation_slope(form_.activation, activations(), s_);
}

// 1 - k and k f'(a), where k is the leak, or 0 where a unit is kept.
CellFactors Linearisation::elman_factors() {
  const auto& updates = this->updates()[0];
  std::optional<mx::array> g = slope();
  std::optional<mx::array> rate = updates;
  if (auto leak = find(Slot::leak)) {
    mx::array rows = repeated_row(*leak, states_[0], s_);
    rate = updated(rows);
    g = g ? multiply(rows, *g, s_) : rows;
  }
  CellFactors factors;
  if (rate) {
    factors.states.push_back({{0, 0}, complement(*rate, s_)});
  }
  factors.slabs.push_back({{0, 0}, g ? std::optional(updated(*g)) : updates});
  return factors;
}

const CellFactors& Linearisation::factors() {
  return once(factors_, [&] {
    if (form_.program) {
      return factors_of(
          *form_.program,
          pre_activations(),
          before(),
          find(Slot::parameters),
          updates(),
          s_);
    }
    return form_.kind == kernels::CellKind::elman
        ? elman_factors()
        : factors_of(form_.kind, pre_activations(), before(), updates(), s_);
  });
}

StateArrays Linearisation::to_slabs(const Arrays& states) {
  StateArrays all(states.begin(), states.end());
  return carried_back(factors().slabs, all, shape_.slabs(), s_);
}

mx::array Linearisation::to_parameters(const Arrays& states, int sets) {
  StateArrays all(states.begin(), states.end());
  int count = shape_.parameters;
  StateArrays each = carried_back(factors().parameters, all, count, s_);
  return row_sum(side_by_side(each), sets, s_);
}

void Linearisation::add_parameters(
    StateArrays& states,
    const mx::array& parameters) {
  StateArrays rows;
  for (int k = 0; k < shape_.parameters; ++k) {
    mx::array row = slab(parameters, k, shape_.parameters, s_);
    rows.push_back(repeated_row(row, states_[0], s_));
  }
  StateArrays moved =
      carried_along(factors().parameters, rows, shape_.states, s_);
  for (int i = 0; i < shape_.states; ++i) {
    states[i] = sum(states[i], moved[i], s_);
  }
}

mx::array Linearisation::side_by_side(StateArrays blocks) const {
  if (std::none_of(blocks.begin(), blocks.end(), [](const auto& a) {
        return a.has_value();
      })) {
    blocks[0] = filled(states_[0], 0, s_);
  }
  return joined(blocks, s_);
}

mx::array Linearisation::of_input(const StateArrays& slabs) const {
  return side_by_side({slabs.begin() + shape_.state_only, slabs.end()});
}

std::optional<mx::array> Linearisation::of_state(
    const StateArrays& slabs) const {
  if (shape_.state_slabs() == 0) {
    return {};
  }
  StateArrays blocks(shape_.state_slabs());
  for (int k = 0; k < shape_.state_slabs(); ++k) {
    blocks[shape_.state_block(k)] = slabs[k];
  }
  return side_by_side(std::move(blocks));
}

void Linearisation::add_slabs(
    StateArrays& states,
    const std::optional<mx::array>& of_input,
    const std::optional<mx::array>& of_state) {
  StateArrays slabs(shape_.slabs());
  for (int k = 0; k < shape_.slabs(); ++k) {
    auto add = [&](const std::optional<mx::array>& all, int block, int count) {
      if (all) {
        slabs[k] = sum(slabs[k], slab(*all, block, count, s_), s_);
      }
    };
    if (k >= shape_.state_only) {
      add(of_input, k - shape_.state_only, shape_.input_slabs());
    }
    if (k < shape_.state_slabs()) {
      add(of_state, shape_.state_block(k), shape_.state_slabs());
    }
  }
  StateArrays moved = carried_along(factors().slabs, slabs, shape_.states, s_);
  for (int i = 0; i < shape_.states; ++i) {
    states[i] = sum(states[i], moved[i], s_);
  }
}

Arrays Linearisation::scan(
    StateArrays source,
    bool transposed,
    const StateArrays& hidden,
    const StateArrays& hidden0) {
  ScanOperands in{
      input_in(Slot::Whh),
      seen_factors(),
      factors().states,
      {},
      std::move(source),
      hidden,
      hidden0};
  if (!in.s[0]) {
    in.s[0] = filled(states_[0], 0, s_);
  }
  in.hidden.resize(shape_.states);
  in.hidden0.resize(shape_.states);
  if (shape_.state_slabs() == 0) {
    // The scan has a product, of which nothing comes here.
    mx::Shape square = in.V.shape();
    square[square.size() - 2] = square.back();
    in.V = mx::zeros(square, in.V.dtype(), s_);
  }
  for (const auto& [link, factor] : factors().slabs) {
    if (link.from < shape_.state_slabs()) {
      in.B.push_back({{link.to, shape_.state_block(link.from)}, factor});
    }
  }
  if (in.B.empty()) {
    in.B.push_back({{0, 0}, filled(states_[0], 0, s_)});
  }
  int slabs = std::max(shape_.state_slabs(), 1);
  return linear_scan(in, slabs, course_, transposed, s_);
}

} // namespace mlx_recurrent
