#include "primitives/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

#include "mlx_faults/allocation.h"

namespace mlx_recurrent {

namespace {

// Large memory that is new at each call costs more to touch a small page at a
// time than to compute: ask for huge pages before the first write.
void ask_for_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes >= 2 * kHugePage) {
    uintptr_t first = reinterpret_cast<uintptr_t>(memory);
    uintptr_t last = (first + bytes) & ~(kHugePage - 1);
    first = (first + kHugePage - 1) & ~(kHugePage - 1);
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)memory, (void)bytes;
#endif
}

struct Block {
  mx::allocator::Buffer buffer{nullptr};
  size_t bytes = 0;
};

// Scratch memory that no call uses now. A few blocks: the passes of a layer and
// of its neighbours are prepared before the first of them has run.
class Shelf {
 public:
  // The smallest block that has room for `bytes` and is no giant beside it; no
  // bytes where there is none.
  Block take(size_t bytes) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    Block* found = nullptr;
    if (lock) {
      for (Block& block : blocks_) {
        if (block.bytes >= bytes && block.bytes / 16 <= bytes + kSmall &&
            (!found || block.bytes < found->bytes)) {
          found = &block;
        }
      }
    }
    return found ? std::exchange(*found, Block{}) : Block{};
  }

  void clear() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) {
      return;
    }
    for (Block& block : blocks_) {
      if (block.bytes > 0) {
        mx::allocator::allocator().free(block.buffer);
      }
      block = Block{};
    }
  }

  // Keeps the block if it is larger than the smallest, and frees what it does
  // not keep.
  void put(Block block) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) {
      Block* smallest = &blocks_[0];
      size_t total = block.bytes;
      for (Block& other : blocks_) {
        smallest = other.bytes < smallest->bytes ? &other : smallest;
        total += other.bytes;
      }
      if (smallest->bytes < block.bytes &&
          total - smallest->bytes <= kMostBytes) {
        std::swap(block, *smallest);
      }
      lock.unlock();
    }
    if (block.bytes > 0) {
      mx::allocator::allocator().free(block.buffer);
    }
  }

 private:
  static constexpr size_t kSmall = size_t{1} << 20;
  static constexpr size_t kMostBytes = size_t{128} << 20;
  // A call only tries it and never waits: a child forked while it is held goes
  // on without the shelf.
  std::mutex mutex_;
  Block blocks_[4];
};

// Never destroyed: a stream's thread may outlive the static objects.
Shelf& shelf() {
  static Shelf* the_shelf = new Shelf;
  return *the_shelf;
}

} // namespace

void allocate(mx::array& out) {
  take_memory(out);
  ask_for_huge_pages(out.data<char>(), out.nbytes());
}

void allocate_over(mx::array& out, const mx::array& input) {
  if (input.is_donatable() && input.flags().row_contiguous &&
      input.nbytes() == out.nbytes() && input.size() == input.data_size()) {
    out.copy_shared_buffer(input);
  } else {
    allocate(out);
  }
}

void leave_empty(mx::array& out) {
  out.set_data(mx::allocator::malloc(0), 0, out.strides(), out.flags());
}

bool is_empty(const mx::array& a) {
  return a.size() > 0 && a.data_size() == 0;
}

void release_scratch() {
  shelf().clear();
}

Scratch::Scratch(size_t bytes) {
  Block block = shelf().take(bytes);
  if (block.bytes == 0) {
    block = Block{mx::allocator::allocator().malloc(bytes), bytes};
    if (!block.buffer.raw_ptr()) {
      throw std::bad_alloc();
    }
    ask_for_huge_pages(block.buffer.raw_ptr(), bytes);
  }
  buffer_ = block.buffer;
  bytes_ = block.bytes;
}

Scratch::~Scratch() {
  shelf().put(Block{buffer_, bytes_});
}

char* Scratch::data() {
  return static_cast<char*>(buffer_.raw_ptr());
}

} // namespace mlx_recurrent
