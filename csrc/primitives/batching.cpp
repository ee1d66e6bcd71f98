#include "primitives/batching.h"

namespace mlx_recurrent {

namespace {

mx::array at_index(
    const mx::array& a,
    int axis,
    int index,
    const mx::Stream& s) {
  mx::Shape start(a.ndim(), 0);
  mx::Shape stop = a.shape();
  start[axis] = index;
  stop[axis] = index + 1;
  return mx::squeeze(mx::slice(a, start, stop, s), axis, s);
}

} // namespace

std::pair<Arrays, Ints> vectorize(
    const Function& function,
    const std::vector<bool>& joins,
    bool outputs_join,
    const Arrays& inputs,
    const Ints& axes,
    const mx::Stream& stream) {
  int size = 0;
  bool join = outputs_join;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0) {
      size = inputs[i].shape(axes[i]);
      join = join && joins[i];
    }
  }
  if (join) {
    Arrays joined;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!joins[i]) {
        joined.push_back(inputs[i]);
      } else if (axes[i] >= 0) {
        joined.push_back(mx::moveaxis(inputs[i], axes[i], 0, stream));
      } else {
        mx::Shape shape = inputs[i].shape();
        shape.insert(shape.begin(), size);
        joined.push_back(mx::broadcast_to(inputs[i], shape, stream));
      }
    }
    Arrays outputs = function(joined);
    return {outputs, Ints(outputs.size(), 0)};
  }
  if (size == 0) {
    // Shapes are all there is: those of one call on zeros.
    Arrays zeros;
    for (size_t i = 0; i < inputs.size(); ++i) {
      mx::Shape shape = inputs[i].shape();
      if (axes[i] >= 0) {
        shape.erase(shape.begin() + axes[i]);
      }
      zeros.push_back(mx::zeros(shape, inputs[i].dtype(), stream));
    }
    Arrays outputs;
    for (const mx::array& one : function(zeros)) {
      mx::Shape shape = one.shape();
      shape.insert(shape.begin(), 0);
      outputs.push_back(mx::zeros(shape, one.dtype(), stream));
    }
    return {outputs, Ints(outputs.size(), 0)};
  }
  std::vector<Arrays> results;
  for (int index = 0; index < size; ++index) {
    Arrays picked;
    for (size_t i = 0; i < inputs.size(); ++i) {
      picked.push_back(
          axes[i] < 0 ? inputs[i]
                      : at_index(inputs[i], axes[i], index, stream));
    }
    Arrays outputs = function(picked);
    results.resize(outputs.size());
    for (size_t o = 0; o < outputs.size(); ++o) {
      results[o].push_back(outputs[o]);
    }
  }
  Arrays outputs;
  for (const Arrays& parts : results) {
    outputs.push_back(mx::stack(parts, 0, stream));
  }
  return {outputs, Ints(outputs.size(), 0)};
}

} // namespace mlx_recurrent
