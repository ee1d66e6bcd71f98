// Reads what a callable did to its argument from the graph that MLX made of it.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "primitives/expression.h"

namespace mlx_recurrent {

// What one call of a callable was.
struct Reading {
  Expression expression;
  // Why it is no elementwise function; empty where it is one.
  std::string obstacle;
  // Whether everything that it needed beside its argument was made by the call.
  // Where that is not known, a second call tells: what both share was there
  // before.
  bool own = true;
  // Whether somebody refers to what it made of its argument on the way.
  bool kept = false;
  // The arrays of the graph, without the argument.
  std::vector<std::uintptr_t> arrays;
};

// Results as functions of `arguments`, which are of one dtype and of one shape,
// but for vectors along its last axis. More than so many operations are too
// many.
Reading read(
    const std::vector<mx::array>& results,
    const std::vector<mx::array>& arguments,
    int most_nodes);

// What a callable made of its argument, which was not evaluated before.
Reading read_call(const mx::array& result, const mx::array& argument);

// All arrays that results were made of, without the arguments and what these
// were made of, each once.
std::vector<mx::array> arrays_of(
    const std::vector<mx::array>& results,
    const std::vector<mx::array>& arguments);

// Why two calls of a callable with different arguments do not show that it is
// one function of them alone; empty where they do.
std::string difference(const Reading& first, const Reading& second);

} // namespace mlx_recurrent
