#include "mlx_faults/interpreter.h"

#include <cxxabi.h>
#include <unistd.h>

#include <optional>

#include "mlx/compile_impl.h"

namespace mlx_recurrent {

namespace nb = nanobind;
namespace mx = mlx::core;

namespace {

[[noreturn]] void wait_for_ever() {
  for (;;) {
    pause();
  }
}

// Calls what asks for the interpreter, and comes back only with it.
template <class Ask>
void come_back_with(Ask ask) {
#if defined(__GLIBCXX__)
  try {
    ask();
  } catch (abi::__forced_unwind&) {
    wait_for_ever();
  }
#else
  ask();
#endif
}

nb::handle random_state;

// A thread's own variables are destroyed in reverse order: the last one made
// takes the interpreter, then MLX's go, then the first one made gives the
// interpreter back.
thread_local std::optional<PyGILState_STATE> interpreter;

struct Taken {
  ~Taken() {
    if (!Py_IsInitialized()) {
      wait_for_ever();
    }
    come_back_with([] { interpreter = PyGILState_Ensure(); });
  }
};

struct GivenBack {
  ~GivenBack() {
    if (interpreter) {
      PyGILState_Release(*interpreter);
    }
  }
};

// The main thread ends after the interpreter, and MLX's variables before.
bool is_main_thread() {
  nb::module_ threading = nb::module_::import_("threading");
  return threading.attr("get_ident")().equal(
      threading.attr("main_thread")().attr("ident"));
}

} // namespace

Released::~Released() {
  come_back_with([this] { PyEval_RestoreThread(state_); });
}

void find_random_state() {
  random_state =
      nb::object(nb::module_::import_("mlx.core").attr("random").attr("state"))
          .release();
}

nb::object random_key() {
  thread_local const bool is_main = is_main_thread();
  if (is_main) {
    return random_state[0];
  }
  thread_local GivenBack first;
#if defined(MLX_HAS_COMPILE_CACHE)
  mx::detail::compile_cache(); // makes it
#endif
  nb::object key = random_state[0];
  thread_local Taken last;
  return key;
}

} // namespace mlx_recurrent
