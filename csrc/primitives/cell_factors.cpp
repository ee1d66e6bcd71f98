#include "primitives/cell_factors.h"

#include "primitives/arithmetic.h"
#include "primitives/elementwise.h"
#include "primitives/graph_value.h"
#include "primitives/matmul.h"
#include "primitives/pointwise.h"
#include "primitives/slabs.h"

namespace mlx_recurrent {

namespace {

// A path with a factor of a state that may keep units; none where it is zero.
void add_path(
    std::vector<ScanPath>& paths,
    const ScanLink& link,
    const GraphValue& factor,
    const std::optional<mx::array>& updated,
    bool keeps,
    const mx::Stream& s) {
  std::optional<mx::array> total;
  if (!factor.is_zero() && updated) {
    total = factor.is_one() ? *updated : gate(*updated, *factor.array(), s);
  } else {
    total = factor.array();
  }
  if (keeps && updated) {
    total = sum(total, complement(*updated, s), s);
  }
  if (total || factor.is_one()) {
    paths.push_back({link, total});
  }
}

template <class Cell>
CellFactors factors_as(
    const Arrays& slabs,
    const Arrays& before,
    const StateArrays& updated,
    const mx::Stream& s) {
  constexpr kernels::CellShape shape = kernels::shape_as<Cell>();
  GraphValue a[shape.slabs()], q[shape.states], y[shape.states];
  GraphValue saved[shape.saved];
  const GraphValue one = GraphValue::one();
  for (int k = 0; k < shape.slabs(); ++k) {
    a[k] = {slabs[k], s};
  }
  for (int i = 0; i < shape.states; ++i) {
    q[i] = {before[i], s};
  }
  Cell::template step<GraphOps>(a, q, one, y, saved);
  CellFactors factors;
  for (int to = 0; to < shape.states; ++to) {
    GraphValue lambda[shape.states], da[shape.slabs()], dq[shape.states];
    lambda[to] = one;
    Cell::template pullback<GraphOps>(saved, q, one, lambda, da, dq);
    for (int i = 0; i < shape.states; ++i) {
      add_path(factors.states, {to, i}, dq[i], updated[to], i == to, s);
    }
    for (int k = 0; k < shape.slabs(); ++k) {
      add_path(factors.slabs, {to, k}, da[k], updated[to], false, s);
    }
  }
  return factors;
}

} // namespace

CellFactors factors_of(
    kernels::CellKind kind,
    const Arrays& slabs,
    const Arrays& before,
    const StateArrays& updated,
    const mx::Stream& s) {
  switch (kind) {
    case kernels::CellKind::gru:
      return factors_as<Gru>(slabs, before, updated, s);
    case kernels::CellKind::lstm:
      return factors_as<Lstm>(slabs, before, updated, s);
    case kernels::CellKind::elman:
    case kernels::CellKind::program:
      break;
  }
  throw std::invalid_argument("[mlx_recurrent] no gated cell");
}

CellFactors factors_of(
    const CellProgram& program,
    const Arrays& slabs,
    const Arrays& before,
    const std::optional<mx::array>& parameters,
    const StateArrays& updated,
    const mx::Stream& s) {
  const kernels::CellShape& shape = program.shape();
  Arrays arguments = slabs;
  arguments.insert(arguments.end(), before.begin(), before.end());
  for (int k = 0; k < shape.parameters; ++k) {
    mx::array row = slab(parameters.value(), k, shape.parameters, s);
    arguments.push_back(repeated_row(row, before[0], s));
  }
  CellFactors factors;
  auto factor = [&](int to, int argument) -> GraphValue {
    const auto& slope = program.slope(to, argument);
    if (!slope) {
      return {};
    }
    if (slope->expression().constant_result() == 1) {
      return GraphValue::one();
    }
    return {pointwise(arguments, slope, s), s};
  };
  for (int to = 0; to < shape.states; ++to) {
    const auto& updates = updated[to];
    int next = 0;
    for (int k = 0; k < shape.slabs(); ++k) {
      add_path(factors.slabs, {to, k}, factor(to, next++), updates, false, s);
    }
    for (int i = 0; i < shape.states; ++i) {
      add_path(
          factors.states, {to, i}, factor(to, next++), updates, i == to, s);
    }
    for (int k = 0; k < shape.parameters; ++k) {
      add_path(
          factors.parameters, {to, k}, factor(to, next++), updates, false, s);
    }
  }
  return factors;
}

} // namespace mlx_recurrent
