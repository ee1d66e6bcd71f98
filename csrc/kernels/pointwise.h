// A program over the elements of whole arrays.

#pragma once

#include "team_work.h"

namespace {

template <class T>
static size_t pointwise_scratch(const PointwiseArgs&, const Partition&) {
  return 0;
}

template <class T>
static void run_pointwise(
    const PointwiseArgs&,
    const Partition&,
    const Member&,
    char*) {
}

} // namespace
