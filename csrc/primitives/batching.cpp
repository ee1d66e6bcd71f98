#include "primitives/batching.h"

#include "primitives/broadcast.h"

namespace mlx_recurrent {

Arrays with_axis(
    const Arrays& inputs,
    const Ints& axes,
    const std::vector<bool>& takes_part,
    int at,
    const mx::Stream& stream) {
  std::optional<mx::array> mapped;
  for (size_t i = 0; i < inputs.size() && !mapped; ++i) {
    if (axes[i] >= 0) {
      mapped = mx::moveaxis(inputs[i], axes[i], at, stream);
    }
  }
  Arrays moved;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const mx::array& a = inputs[i];
    if (!takes_part[i]) {
      moved.push_back(a);
    } else if (axes[i] >= 0) {
      moved.push_back(mx::moveaxis(a, axes[i], at, stream));
    } else {
      moved.push_back(widen(
          mx::expand_dims(a, at, stream),
          static_cast<int>(a.ndim()) - at,
          *mapped,
          static_cast<int>(mapped->ndim()) - at - 1,
          stream));
    }
  }
  return moved;
}

std::pair<Arrays, Ints> vectorize(
    const Function& function,
    const std::vector<bool>& joins,
    bool outputs_join,
    int sets,
    const Arrays& inputs,
    const Ints& axes,
    const mx::Stream& stream) {
  bool join = outputs_join;
  for (size_t i = 0; i < inputs.size(); ++i) {
    join = join && (axes[i] < 0 || joins[i]);
  }
  int at = join ? sets : 0;
  std::vector<bool> all(inputs.size(), true);
  Arrays outputs = function(
      with_axis(inputs, axes, join ? joins : all, at, stream), join ? 0 : 1);
  return {outputs, Ints(outputs.size(), at)};
}

} // namespace mlx_recurrent
