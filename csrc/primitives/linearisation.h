// What the derivatives of a recurrence are made of, as arrays along time.

#pragma once

#include "primitives/cell_factors.h"
#include "primitives/recurrence.h"

namespace mlx_recurrent {

// Each is made when it is first asked for. An absent factor is 1. In the
// padding of rows, and at skipped steps, x and the states before are taken for
// zero; a skipped step is one that keeps all units.
class Linearisation {
 public:
  // `inputs` begin with those of the form, `states` are all that it gives, of
  // each state.
  Linearisation(
      const RecurrenceForm& form,
      const Arrays& inputs,
      Arrays states,
      const mx::Stream& stream);

  // m_x x: what Wxh sees, or z where the input is projected.
  const mx::array& input();
  // m_h q, of the first of the states q before: what Whh sees.
  const mx::array& seen();
  // f(a) - q, of an Elman cell.
  const mx::array& change();
  const CellFactors& factors();
  // m_h.
  const std::optional<mx::array>& seen_factors();

  // x or its tangent, with zeros where no step is taken.
  mx::array valid(const mx::array& a) const;
  // m_x a, and a where zoneout does not keep the unit.
  mx::array with_input_factors(const mx::array& a);
  mx::array updated(const mx::array& a);

  // What each pre-activation gets of cotangents of the states after, and what
  // all of Wxh or of Whh get: the rows of their results.
  StateArrays to_slabs(const Arrays& states);
  mx::array of_input(const StateArrays& slabs) const;
  // Blocks of H features; zeros where none is there.
  mx::array side_by_side(StateArrays blocks) const;
  std::optional<mx::array> of_state(const StateArrays& slabs) const;
  // What the parameters get of the same, summed over all rows but `sets` axes.
  mx::array to_parameters(const Arrays& states, int sets);
  // Adds to the states what tangents of the parameters make of them.
  void add_parameters(StateArrays& states, const mx::array& parameters);
  // Adds to the states what tangents of these results are there.
  void add_slabs(
      StateArrays& states,
      const std::optional<mx::array>& of_input,
      const std::optional<mx::array>& of_state);

  // The linear scan, or its transpose, with these factors.
  Arrays scan(
      StateArrays source,
      bool transposed,
      const StateArrays& hidden = {},
      const StateArrays& hidden0 = {});

 private:
  const mx::array& input_in(RecurrenceSlot slot) const {
    return form_.inputs.in(inputs_, slot);
  }
  std::optional<mx::array> find(RecurrenceSlot slot) const {
    return form_.inputs.find(inputs_, slot);
  }
  std::optional<mx::array> mask(kernels::Drawn what, const mx::array& like)
      const;
  const std::optional<mx::array>& input_factors();
  // 1 where a unit is updated, 0 where it keeps its state, and of a gated cell
  // between them how much of it is new.
  const StateArrays& updates();
  const Arrays& before();
  const Arrays& pre_activations();
  // a with zeros at skipped steps.
  mx::array taken(const mx::array& a) const;
  mx::array usual_elsewhere(const mx::array& a) const;
  // Of an Elman cell f(a), f'(a) where that is not 1, and the factors.
  const mx::array& activations();
  std::optional<mx::array> slope();
  CellFactors elman_factors();

  const RecurrenceForm& form_;
  const Arrays& inputs_;
  Arrays states_;
  mx::Stream s_;
  Course course_;
  kernels::CellShape shape_;

  // Made so far; of optional terms, whether they are there too.
  template <class Value>
  using Once = std::optional<Value>;
  Once<mx::array> input_, seen_, change_, activations_;
  Once<Arrays> before_, pre_activations_;
  Once<CellFactors> factors_;
  Once<std::optional<mx::array>> seen_factors_, input_factors_;
  Once<StateArrays> updates_;
};

} // namespace mlx_recurrent
