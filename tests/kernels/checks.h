// The checks, and what they find.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "case.h"
#include "kernels/kernels.h"

namespace kernel_tests {

// The largest error so far of each entry point, of what is allowed, and where.
struct Largest {
  double error = 0;
  Case where;
};

// Runs a case and says what is wrong; empty where nothing is.
std::string check_case(
    const mlx_recurrent::kernels::KernelTable& table,
    const Case& c,
    Largest (&largest)[kEntries]);

// The cases that every run takes, one at random, and one of a fuzzer's.
std::vector<Case> listed_cases();
Case random_case(uint64_t seed);
Case case_of_bytes(const unsigned char* data, size_t size);

// The activations and the conversions of elements; one line for each fault.
std::vector<std::string> check_elementary(
    const mlx_recurrent::kernels::KernelTable& table);

// The operations of programs; one line for each fault.
std::vector<std::string> check_operations(
    const mlx_recurrent::kernels::KernelTable& table);

// The reference itself; one line for each fault.
std::vector<std::string> check_reference();

} // namespace kernel_tests
