// What the derivatives of a recurrence are made of, as arrays along time.

#pragma once

#include "primitives/recurrence.h"

namespace mlx_recurrent {

// Each is made when it is first asked for. Where a factor is absent it is 1, or
// for `passed` 0. In the padding of rows x is taken for zero.
class Linearisation {
 public:
  // `inputs` begin with those of the form, `states` are all that it gives.
  Linearisation(
      const RecurrenceForm& form,
      const Arrays& inputs,
      const mx::array& states,
      const mx::Stream& stream);

  // m_x x: what Wxh sees, or z where the input is projected.
  const mx::array& input();
  // q: the states before.
  const mx::array& before();
  // m_h q: what Whh sees.
  const mx::array& seen();
  // f(a) - q.
  const mx::array& change();
  // k f'(a), k, 1 - k and m_h.
  const std::optional<mx::array>& slope();
  const std::optional<mx::array>& rate();
  const std::optional<mx::array>& passed();
  const std::optional<mx::array>& seen_factors();

  // x or its tangent, with zeros where no step is.
  mx::array valid(const mx::array& a) const;
  // m_x a, and a where zoneout does not keep the unit.
  mx::array with_input_factors(const mx::array& a);
  mx::array updated(const mx::array& a);

  // The linear scan, or its transpose, with these factors.
  mx::array scan(
      const mx::array& source,
      bool transposed,
      const std::optional<mx::array>& hidden = {},
      const std::optional<mx::array>& hidden0 = {});

 private:
  const mx::array& input_in(RecurrenceSlot slot) const {
    return form_.inputs.in(inputs_, slot);
  }
  std::optional<mx::array> find(RecurrenceSlot slot) const {
    return form_.inputs.find(inputs_, slot);
  }
  std::optional<mx::array> mask(kernels::Drawn what, const mx::array& like)
      const;
  const std::optional<mx::array>& kept();
  const std::optional<mx::array>& input_factors();
  const mx::array& pre_activations();
  // f(a), and f'(a) where that is not 1.
  const mx::array& activations();
  std::optional<mx::array> activation_slope();

  const RecurrenceForm& form_;
  const Arrays& inputs_;
  mx::array states_;
  mx::Stream s_;
  Course course_;

  // Made so far; of optional terms, whether they are there too.
  template <class Value>
  using Once = std::optional<Value>;
  Once<mx::array> input_, before_, seen_, change_, pre_activations_,
      activations_;
  Once<std::optional<mx::array>> slope_, rate_, passed_, seen_factors_, kept_,
      input_factors_;
};

} // namespace mlx_recurrent
