// Python's interpreter, on threads that may outlive it.
//
// Python before 3.14 ends a thread that asks for the interpreter when it is
// closing down, by unwinding the thread's stack; in C++ that ends the process.
// Here such a thread waits for ever, as it does in Python 3.14; the end of the
// process, a moment later, ends it.
//
// Fault: MLX keeps Python's objects for each thread, its random key and what it
// has compiled, and frees them when the thread ends: after Python has taken it
// for joined, so perhaps while the interpreter closes down.
// MLX: 0.32.1 to 0.32.4.
// Shown by: test_python_ends_after_threads_that_read_a_callable

#pragma once

#include <nanobind/nanobind.h>

namespace mlx_recurrent {

// Leaves the interpreter to other threads while it lives.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {
  }
  ~Released();
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

// MLX's random key of this thread: another object after each draw. The thread
// ends safely if it asks here before MLX makes the first of its objects.
nanobind::object random_key();
void find_random_state(); // before that, once

} // namespace mlx_recurrent
