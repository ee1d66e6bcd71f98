// Preloaded by test_allocation.py: makes the k-th allocation fail that the
// native module asks for, or MLX on its behalf. Counting begins where
// fail_allocation(k) is called, on any thread.

#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

// From this size on MLX's allocations are arrays' and scratch memory: an
// object of a graph is smaller, and MLX ends where it cannot have one.
constexpr std::size_t kLeastBuffer = 16384;

std::atomic<long> left{0}; // until one fails; 0: none will
std::atomic<long> counted{0};

bool called_from(void* address, const char* library) {
  Dl_info info;
  return dladdr(address, &info) && info.dli_fname &&
      std::strstr(info.dli_fname, library);
}

// MLX does not look whether its own operations got their memory.
bool for_native_module() {
  void* frames[8];
  int count = backtrace(frames, 8);
  for (int i = 0; i < count; ++i) {
    if (called_from(frames[i], "_native")) {
      return true;
    }
  }
  return false;
}

bool fails() {
  ++counted;
  long before = left.load();
  return before > 0 && left.fetch_sub(1) == 1;
}

std::atomic<bool> counting{false};

} // namespace

extern "C" {

void fail_allocation(long k) {
  counted = 0;
  left = k;
  counting = true;
}

// Stops; returns how many allocations there were.
long stop_failing() {
  counting = false;
  left = 0;
  return counted;
}

void* malloc(std::size_t bytes) {
  using Malloc = void* (*)(std::size_t);
  static Malloc real = reinterpret_cast<Malloc>(dlsym(RTLD_NEXT, "malloc"));
  if (bytes >= kLeastBuffer && counting &&
      called_from(__builtin_return_address(0), "libmlx") &&
      for_native_module() && fails()) {
    return nullptr;
  }
  return real(bytes);
}

} // extern "C"

void* operator new(std::size_t bytes) {
  if (counting && called_from(__builtin_return_address(0), "_native") &&
      fails()) {
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(bytes)) {
    return memory;
  }
  throw std::bad_alloc();
}

void* operator new[](std::size_t bytes) {
  if (counting && called_from(__builtin_return_address(0), "_native") &&
      fails()) {
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(bytes)) {
    return memory;
  }
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
