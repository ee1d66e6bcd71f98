// A condition that a test needs: where it is false the program says so and
// ends.

#pragma once

#include <cstdio>
#include <cstdlib>

#define EXPECT(condition)                                         \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("FAILED: line %d: %s\n", __LINE__, #condition); \
      std::fflush(stdout);                                        \
      std::_Exit(1);                                              \
    }                                                             \
  } while (false)
