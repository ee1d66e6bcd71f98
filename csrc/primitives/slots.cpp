#include "primitives/slots.h"

#include <algorithm>

namespace mlx_recurrent {

mx::Shape Shapes::of(const SlotKind& kind) const {
  mx::Shape shape(lead_.begin(), lead_.begin() + leading(kind));
  for (int i = 0; i < kind.axes(); ++i) {
    shape.push_back(sizes_[static_cast<int>(kind.tail[i])]);
  }
  return shape;
}

mx::Dtype dtype_of(const SlotKind& kind, mx::Dtype numbers) {
  switch (kind.holds) {
    case Holds::numbers:
    case Holds::constants:
      return numbers;
    case Holds::computed_numbers:
      return compute_dtype(numbers);
    case Holds::words:
      return mx::uint32;
    case Holds::counts:
      return mx::int32;
    case Holds::flags:
      return mx::bool_;
  }
  throw std::out_of_range("[mlx_recurrent] no such elements");
}

bool Shapes::fit(const SlotKind& kind, const mx::array& a) const {
  return a.dtype() == dtype_of(kind, dtype_) && a.shape() == of(kind);
}

} // namespace mlx_recurrent
