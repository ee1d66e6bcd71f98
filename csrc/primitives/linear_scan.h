// The linear scan, which every derivative of a recurrence is made of.

#pragma once

#include "kernels/kernels.h"
#include "primitives/course.h"

namespace mlx_recurrent {

// The inputs; of the last five there is one for each state or path.
enum class ScanSlot : int {
  V,
  gamma,
  lengths,
  reset,
  s,
  hidden = s + kernels::kMostScanStates,
  hidden0 = hidden + kernels::kMostScanStates,
  A = hidden0 + kernels::kMostScanStates,
  B = A + kernels::kMostScanPaths
};

template <>
inline constexpr size_t most_slots<ScanSlot> =
    static_cast<size_t>(ScanSlot::B) + kernels::kMostScanPaths;

const SlotKind& kind_of(ScanSlot slot);

// From one place to another: from a state to a state, or from a slab of V to a
// state.
struct ScanLink {
  int to, from;

  bool operator==(const ScanLink&) const = default;
};

// One with a factor, which is 1 where it is absent.
struct ScanPath {
  ScanLink link;
  std::optional<mx::array> factor;
};

using StateArrays = std::vector<std::optional<mx::array>>;

// The operands of, with u the results before step t in the run, `hidden` at
// first and `hidden0` where an episode starts,
//   y_t[i] = s_t[i] + sum of A_t u[j] over the paths of A from j to i
//                   + sum of B_t V_k (gamma_t u[0]) over those of B from k to i
// or transposed, with n the step after t in the run,
//   y_t[j] = s_t[j] + sum of A_n y_n[i] over the paths of A from j to i
// where y_t[0] also gets gamma_n sum of V_k^T (B_n y_n[i]) over those of B.
// Nothing passes where the course truncates; a term whose factor is 0 is
// absent; in the padding nothing is read, and y is zero. With any number of
// leading axes of sets (S...): s and the factors are (S..., ..., L, H), V is
// (S..., slabs * H, H), hidden (S..., ..., H), hidden0 (S..., H). An absent
// gamma is 1; s, hidden and hidden0, which only the first form has, have an
// entry for each state, absent where it is 0, but s[0] is there. B has a path.
// An axis along which the course flips is one of the sets.
struct ScanOperands {
  mx::array V;
  std::optional<mx::array> gamma;
  std::vector<ScanPath> A, B;
  StateArrays s, hidden, hidden0;

  int states() const {
    return static_cast<int>(s.size());
  }
};

// The results, of each state.
Arrays linear_scan(
    const ScanOperands& operands,
    int slabs,
    const Course& course,
    bool transposed,
    const mx::Stream& stream);

// What a linear scan has beside its arrays.
struct LinearScanForm {
  bool transposed;
  int states, slabs;
  std::vector<ScanLink> A, B;
  Slots<ScanSlot> inputs;
  CourseForm course;

  bool operator==(const LinearScanForm&) const = default;
};

class LinearScan : public CpuPrimitive {
 public:
  LinearScan(const mx::Stream& stream, LinearScanForm form)
      : CpuPrimitive(stream), form_(std::move(form)) {
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override;
  bool is_equivalent(const mx::Primitive& other) const override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_OWN_NAME(LinearScan)

 private:
  ScanOperands operands(const Arrays& inputs) const;
  // The same for products, which read all places: factors that are zero in the
  // padding.
  ScanOperands outside(const Arrays& inputs);
  Arrays scan(const ScanOperands& in, const Course& course, bool transposed);

  LinearScanForm form_;
};

// factor * a, where an absent factor is 1.
mx::array scaled(
    const std::optional<mx::array>& factor,
    const mx::array& a,
    const mx::Stream& stream);

// The sum of terms that may be absent.
std::optional<mx::array> sum(
    const std::optional<mx::array>& a,
    const std::optional<mx::array>& b,
    const mx::Stream& stream);

// What paths bring to each of so many places from others, any of which may be
// absent, and its transpose.
StateArrays carried_along(
    const std::vector<ScanPath>& paths,
    const StateArrays& from,
    int places,
    const mx::Stream& stream);
StateArrays carried_back(
    const std::vector<ScanPath>& paths,
    const StateArrays& to,
    int places,
    const mx::Stream& stream);

} // namespace mlx_recurrent
