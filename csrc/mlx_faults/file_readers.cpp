#include "mlx_faults/file_readers.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "mlx/io.h"
#include "mlx/io/load.h"
#include "mlx/primitives.h"
#include "mlx_faults/stream_threads.h"

namespace mlx_recurrent {

namespace {

// A file with one number, in NumPy's format.
class OneNumber : public mx::io::Reader {
 public:
  OneNumber() {
    std::string header =
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }";
    header.resize(117, ' '); // so that the number stands at a multiple of 64
    bytes_ = std::string("\x93NUMPY\x01\x00", 8) + char(118) + '\0' + header +
        "\n" + '\0';
  }

  bool is_open() const override {
    return true;
  }
  bool good() const override {
    return true;
  }
  size_t tell() override {
    return place_;
  }
  void seek(int64_t offset, std::ios_base::seekdir way) override {
    int64_t from = way == std::ios_base::beg ? 0
        : way == std::ios_base::cur ? static_cast<int64_t>(place_)
                                    : static_cast<int64_t>(bytes_.size());
    place_ = static_cast<size_t>(from + offset);
  }
  void read(char* data, size_t n) override {
    read(data, n, place_);
    place_ += n;
  }
  void read(char* data, size_t n, size_t offset) override {
    offset = std::min(offset, bytes_.size());
    bytes_.copy(data, n, offset);
  }
  std::string label() const override {
    return "one number";
  }

 private:
  std::string bytes_;
  size_t place_ = 0;
};

// How many threads this process has; 0 where the system does not tell.
int64_t count_threads() {
  std::error_code error;
  std::filesystem::directory_iterator tasks("/proc/self/task", error);
  return error ? 0 : std::distance(begin(tasks), end(tasks));
}

// MLX does not tell whether it has started its readers before the fork, and
// then nothing starts them again. Otherwise the first to read starts them. What
// waits for the number stands in the queue of a stream that nobody runs.
bool start_file_readers(const mx::Stream& lost) {
  mx::array number = mx::load(std::make_shared<OneNumber>(), lost);
  std::vector<mx::array> outputs{number};
  int64_t before = count_threads();
  number.primitive().eval_cpu({}, outputs);
  return count_threads() > before + 1; // one may be somebody else's
}

} // namespace

bool reads_file(const mx::Primitive& primitive) {
  return std::strcmp(primitive.name(), "Load") == 0;
}

void expect_file_readers() {
  std::optional<mx::Stream> lost = lost_stream();
  if (!lost) {
    return;
  }
  static int asked_after = 0; // so many forks
  static bool found = false;
  if (asked_after != forks()) {
    asked_after = forks();
    found = start_file_readers(*lost);
  }
  if (!found) {
    throw std::runtime_error(
        "[mlx_recurrent] An array is still to be read from a file, and this "
        "process was forked after MLX had read one: it would wait for ever. "
        "Load and mx.eval before the fork what the child needs, or read it "
        "without MLX, such as by mx.array(numpy.load(file)), or start "
        "processes by multiprocessing.set_start_method(\"spawn\").");
  }
}

} // namespace mlx_recurrent
