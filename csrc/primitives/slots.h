// The arrays of a primitive by what they are. Each primitive has an enum of its
// slots, whose order is that of its inputs and of its outputs, and a table,
// which `kind_of` reads, that says once what each of them is; its form says
// which of them are there.

#pragma once

#include <array>
#include <bit>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <variant>

#include "primitives/operand.h"
#include "primitives/primitive.h"

namespace mlx_recurrent {

// The leading axes of an array: of sets (S...), or of sets and rows (S...,
// ...).
enum class Lead : int { sets, rows };

// A size that arrays of a call have in common; `kept` are the states of a row,
// `kept_cells` its second states.
// Of a cell with several values of each of H units, as its weights have them.
enum class Size : int {
  none,
  L,
  D,
  H,
  kept,
  kept_cells,
  two,
  input_slabs,
  state_slabs,
  state_only,
  parameters,
  saved
};

// What the elements are. Numbers have the dtype of the call, and derivatives;
// the others have none.
enum class Holds : int {
  numbers,
  constants, // numbers of which there is no derivative
  computed_numbers,
  words,
  counts,
  flags
};

// What a slot is.
struct SlotKind {
  const char* name;
  Lead lead;
  std::array<Size, 2> tail; // the axes behind the leading ones
  Holds holds = Holds::numbers;

  constexpr bool has_derivative() const {
    return holds == Holds::numbers;
  }
  constexpr bool is_of_rows() const {
    return lead == Lead::rows;
  }
  constexpr int axes() const {
    return (tail[0] != Size::none) + (tail[1] != Size::none);
  }
};

// Whether the rows of a table, each of which begins with its slot, are in the
// order of the slots.
template <class Row, size_t n>
constexpr bool in_order(const Row (&rows)[n]) {
  for (size_t i = 0; i < n; ++i) {
    if (static_cast<size_t>(rows[i].slot) != i) {
      return false;
    }
  }
  return true;
}

// Where the kernel's arguments have an array that is of this kind.
template <class Args>
using Place = std::variant<
    std::monostate,
    kernels::Sequence Args::*,
    kernels::Matrix Args::*,
    kernels::Vector Args::*,
    kernels::Sequence (Args::*)[kernels::kMostStates],
    kernels::Vector (Args::*)[kernels::kMostStates]>;

// The same of what is written: of all states, or one.
template <class Args>
using Target = std::variant<
    std::monostate,
    void* Args::*,
    void* (Args::*)[kernels::kMostStates]>;

// How many slots an enum may have; at most 64.
template <class Slot>
inline constexpr size_t most_slots = 32;

// Which slots there are.
template <class Slot>
class Slots {
 public:
  Slots() = default;
  Slots(std::initializer_list<Slot> slots) {
    for (Slot slot : slots) {
      add(slot);
    }
  }

  bool operator==(const Slots&) const = default;

  void add(Slot slot) {
    present_ |= bit(slot);
  }
  void remove(Slot slot) {
    present_ &= ~bit(slot);
  }
  bool has(Slot slot) const {
    return present_ & bit(slot);
  }
  int size() const {
    return std::popcount(present_);
  }

  // Where an array stands among those that are there, and what stands there.
  int index(Slot slot) const {
    if (!has(slot)) {
      throw std::out_of_range(
          std::string("[mlx_recurrent] there is no ") + kind_of(slot).name);
    }
    return std::popcount(present_ & (bit(slot) - 1));
  }
  Slot at(int index) const {
    uint64_t left = present_;
    for (int i = 0; left && i < index; ++i) {
      left &= left - 1;
    }
    if (!left || index < 0) {
      throw std::out_of_range("[mlx_recurrent] there is no such array");
    }
    return static_cast<Slot>(std::countr_zero(left));
  }

  // Of arrays that begin with those of the slots.
  const mx::array& in(const Arrays& arrays, Slot slot) const {
    return arrays[index(slot)];
  }
  std::optional<mx::array> find(const Arrays& arrays, Slot slot) const {
    return has(slot) ? std::optional(in(arrays, slot)) : std::nullopt;
  }

 private:
  static uint64_t bit(Slot slot) {
    return uint64_t{1} << static_cast<int>(slot);
  }

  uint64_t present_ = 0;
};

// Arrays, each in its slot.
template <class Slot>
class Slotted {
 public:
  static constexpr size_t most = most_slots<Slot>;

  Slotted() = default;
  Slotted(const Slots<Slot>& slots, const Arrays& arrays) {
    for (int i = 0; i < slots.size(); ++i) {
      (*this)[slots.at(i)] = arrays[i];
    }
  }

  std::optional<mx::array>& operator[](Slot slot) {
    return arrays_[static_cast<int>(slot)];
  }
  const std::optional<mx::array>& operator[](Slot slot) const {
    return arrays_[static_cast<int>(slot)];
  }
  // Of one that is surely there.
  const mx::array& get(Slot slot) const {
    return arrays_[static_cast<int>(slot)].value();
  }

  Slots<Slot> slots() const {
    Slots<Slot> present;
    for (size_t i = 0; i < arrays_.size(); ++i) {
      if (arrays_[i]) {
        present.add(static_cast<Slot>(i));
      }
    }
    return present;
  }
  Arrays in_order() const {
    Arrays present;
    present.reserve(slots().size());
    for (const auto& a : arrays_) {
      if (a) {
        present.push_back(*a);
      }
    }
    return present;
  }

 private:
  std::array<std::optional<mx::array>, most> arrays_;
};

// Where numbers of the call have this dtype.
mx::Dtype dtype_of(const SlotKind& kind, mx::Dtype numbers);

// The shapes that kinds of arrays have in one call.
class Shapes {
 public:
  // `like` (S..., ..., L, features) has the leading axes and L of the call's
  // rows, and its dtype; the first `sets` of its axes are those of sets.
  Shapes(const mx::array& like, int sets, int H)
      : lead_(like.shape().begin(), like.shape().end() - 2),
        sets_(sets),
        dtype_(like.dtype()) {
    for (Size size : {Size::L, Size::kept, Size::kept_cells}) {
      set(size, like.shape(-2));
    }
    set(Size::D, like.shape(-1));
    set(Size::two, 2);
    for (Size size :
         {Size::H,
          Size::input_slabs,
          Size::state_slabs,
          Size::state_only,
          Size::saved}) {
      set(size, H);
    }
  }

  void set(Size size, int64_t value) {
    sizes_[static_cast<int>(size)] = static_cast<int>(value);
  }

  mx::Shape of(const SlotKind& kind) const;
  bool fit(const SlotKind& kind, const mx::array& a) const;

  // Whether all arrays fit, which begin with those of the slots.
  template <class Slot>
  bool fit(const Slots<Slot>& slots, const Arrays& arrays) const {
    for (int i = 0; i < slots.size(); ++i) {
      if (!fit(kind_of(slots.at(i)), arrays[i])) {
        return false;
      }
    }
    return true;
  }

 private:
  int leading(const SlotKind& kind) const {
    return kind.is_of_rows() ? static_cast<int>(lead_.size()) : sets_;
  }

  mx::Shape lead_;
  int sets_;
  mx::Dtype dtype_;
  std::array<int, static_cast<int>(Size::saved) + 1> sizes_{}; // by Size
};

// For each of the slots, whether its array has axes of rows.
template <class Slot>
std::vector<bool> are_of_rows(const Slots<Slot>& slots) {
  std::vector<bool> all;
  for (int i = 0; i < slots.size(); ++i) {
    all.push_back(kind_of(slots.at(i)).is_of_rows());
  }
  return all;
}

// Puts an array where the arguments of each set of N rows have it, of a state
// where each has one.
template <class Args>
void put(
    std::vector<Args>& sets,
    const Place<Args>& place,
    int state,
    const SlotKind& kind,
    const mx::array& a,
    int64_t N,
    Operands& operands) {
  auto each = [&](auto at, auto of_one) {
    for (size_t i = 0; i < sets.size(); ++i) {
      at(sets[i]) = of_one(static_cast<int64_t>(i));
    }
  };
  auto put_rows = [&](auto at) {
    kernels::Sequence all =
        kind.axes() == 2 ? operands.sequence(a) : operands.rows(a);
    each(at, [&](int64_t i) { return of_set(all, i, N); });
  };
  auto put_vector = [&](auto at) {
    each(at, [&](int64_t i) { return Operands::vector(a, i); });
  };
  using kernels::kMostStates;
  if (auto one = std::get_if<kernels::Sequence Args::*>(&place)) {
    put_rows([&](Args& args) -> auto& { return args.**one; });
  } else if (auto one = std::get_if<kernels::Matrix Args::*>(&place)) {
    each(
        [&](Args& args) -> auto& { return args.**one; },
        [&](int64_t i) { return Operands::matrix(a, i); });
  } else if (auto one = std::get_if<kernels::Vector Args::*>(&place)) {
    put_vector([&](Args& args) -> auto& { return args.**one; });
  } else if (
      auto all = std::get_if<kernels::Sequence(Args::*)[kMostStates]>(&place)) {
    put_rows([&](Args& args) -> auto& { return (args.**all)[state]; });
  } else if (
      auto all = std::get_if<kernels::Vector(Args::*)[kMostStates]>(&place)) {
    put_vector([&](Args& args) -> auto& { return (args.**all)[state]; });
  }
}

} // namespace mlx_recurrent
