// The kernels of one instruction set. Compiled once for each, with
// MLX_RECURRENT_ISA its name, MLX_RECURRENT_VECTOR_BYTES the width of its
// vectors and MLX_RECURRENT_REGISTERS their number.

#include "backward.h"
#include "forward.h"
#include "linear_scan.h"
#include "mask.h"
#include "matmul.h"
#include "measure.h"
#include "pointwise.h"

namespace {

// Denormal numbers are zero while a kernel runs: states and gradients that
// vanish would otherwise cost a hundred times their price on some processors.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(__builtin_ia32_stmxcsr()) {
    __builtin_ia32_ldmxcsr(before_ | 0x8040); // FTZ and DAZ
  }
  ~FlushDenormals() {
    __builtin_ia32_ldmxcsr(before_);
  }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24))); // FZ
  }
  ~FlushDenormals() {
    asm volatile("msr fpcr, %0" : : "r"(before_));
  }

 private:
  uint64_t before_;
#else
  FlushDenormals() {
  }
  ~FlushDenormals() {
  }
#endif
};

template <
    class Args,
    void (*run)(const Args&, const Partition&, const Member&, char*)>
static void flushed(
    const Args& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  FlushDenormals guard;
  run(args, p, member, scratch);
}

// Calls use(cell) with one of the type of the layer's cell.
template <class Use>
INLINE void with_cell(const RecurrenceArgs& layer, Use use) {
  switch (layer.kind) {
    case CellKind::gru:
      return use(mlx_recurrent::Gru{});
    case CellKind::lstm:
      return use(mlx_recurrent::Lstm{});
    case CellKind::program:
      return use(ProgramCell{});
    case CellKind::elman:
      break;
  }
  switch (layer.activation) {
    case Activation::tanh:
      return use(mlx_recurrent::Elman<Activation::tanh>{});
    case Activation::relu:
      return use(mlx_recurrent::Elman<Activation::relu>{});
    case Activation::sigmoid:
      return use(mlx_recurrent::Elman<Activation::sigmoid>{});
    case Activation::identity:
      return use(mlx_recurrent::Elman<Activation::identity>{});
    case Activation::traced:
      return use(mlx_recurrent::Elman<Activation::traced>{});
  }
}

template <class T>
static void run_forward_any(
    const ForwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  with_cell(args.layer, [&](auto cell) {
    run_forward<T, decltype(cell)>(args, p, member, scratch);
  });
}

template <class T>
static void run_backward_any(
    const BackwardArgs& args,
    const Partition& p,
    const Member& member,
    char* scratch) {
  with_cell(args.layer, [&](auto cell) {
    run_backward<T, decltype(cell)>(args, p, member, scratch);
  });
}

template <class T>
constexpr TypedKernels kernels_of() {
  return TypedKernels{
      {matmul_scratch<T>, flushed<MatmulArgs, run_matmul<T>>},
      {outer_sum_scratch<T>, flushed<OuterSumArgs, run_outer_sum<T>>},
      {forward_scratch<T>, flushed<ForwardArgs, run_forward_any<T>>},
      {backward_scratch<T>, flushed<BackwardArgs, run_backward_any<T>>},
      {linear_scan_scratch<T>, flushed<LinearScanArgs, run_linear_scan<T>>},
      {pointwise_scratch<T>, flushed<PointwiseArgs, run_pointwise<T>>},
      {mask_scratch, flushed<MaskArgs, run_mask<T>>}};
}

} // namespace

#define TEXT(name) #name
#define NAME(name) TEXT(name)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const KernelTable JOIN(mlx_recurrent_kernels_, MLX_RECURRENT_ISA);
const KernelTable JOIN(mlx_recurrent_kernels_, MLX_RECURRENT_ISA) = {
    NAME(MLX_RECURRENT_ISA),
    {kernels_of<Float32>(),
     kernels_of<Float64>(),
     kernels_of<Float16>(),
     kernels_of<BFloat16>()},
    {run_multiply_add, run_read, run_tanh}};
