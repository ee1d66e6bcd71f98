// The kernels under libFuzzer: its bytes choose a case, which is checked as any
// other. A build with -DFUZZ=ON, by Clang, makes it.

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "checks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kernel_tests;
  static const auto* table = mlx_recurrent::kernels::table();
  static Largest largest[kEntries];
  if (!table) {
    std::fprintf(
        stderr, "MLX_RECURRENT_ISA is no instruction set of this machine\n");
    std::exit(2);
  }
  Case c = case_of_bytes(data, size);
  std::string fault = check_case(*table, c, largest);
  if (!fault.empty()) {
    std::fprintf(
        stderr,
        "FAILED: %s\n  MLX_RECURRENT_ISA=%s check_kernels --case \"%s\"\n",
        fault.c_str(),
        table->isa,
        c.text().c_str());
    std::abort();
  }
  return 0;
}
