// What is rare enough to be left to the C library, lane by lane.

#pragma once

#include "lanes.h"

namespace {

#define LIBRARY(name)                             \
  template <class C>                              \
  INLINE Vec<C> library_##name(Vec<C> x) {        \
    return by_lanes<C>(x, [](C a) {               \
      if constexpr (sizeof(C) == sizeof(float)) { \
        return __builtin_##name##f(a);            \
      } else {                                    \
        return __builtin_##name(a);               \
      }                                           \
    });                                           \
  }
LIBRARY(sin)
LIBRARY(cos)
LIBRARY(tan)
LIBRARY(sinh)
LIBRARY(cosh)
LIBRARY(asin)
LIBRARY(acos)
LIBRARY(atan)
LIBRARY(asinh)
LIBRARY(acosh)
LIBRARY(atanh)
#undef LIBRARY

#define LIBRARY(name)                                \
  template <class C>                                 \
  INLINE Vec<C> library_##name(Vec<C> x, Vec<C> y) { \
    return by_lanes<C>(x, y, [](C a, C b) {          \
      if constexpr (sizeof(C) == sizeof(float)) {    \
        return __builtin_##name##f(a, b);            \
      } else {                                       \
        return __builtin_##name(a, b);               \
      }                                              \
    });                                              \
  }
LIBRARY(atan2)
LIBRARY(fmod)
LIBRARY(pow)
#undef LIBRARY

} // namespace
