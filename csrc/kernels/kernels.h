// The boundary between the graph and the arithmetic: plain structs of pointers
// and sizes, and one table of functions for each instruction set. Nothing here
// knows MLX, allocates memory or throws.
//
// Letters: N rows of the batch, L steps, D input features, H hidden features.
// Offsets and strides count elements.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include "blas.h"

namespace mlx_recurrent::kernels {

enum class Type : int { float32, float64, float16, bfloat16 };

// What happens to one unit at one step; files of these names have the formulas,
// or a program has them.
enum class CellKind : int { elman, gru, lstm, program };

// What a cell has at most.
constexpr int kMostStates = 4;
constexpr int kMostSlabs = 8;
constexpr int kMostParameters = 8;

// Slabs are pre-activations of all units. Those that Whh alone gives come first
// in scratch memory, then those of both, then those of Wxh alone, so that each
// weight's are together. In the weights those of both come first.
struct CellShape {
  int state_only, shared, input_only;
  int states;         // the first is the output, and what Whh sees
  int saved;          // what the derivative starts from, of each unit
  int parameters = 0; // vectors that a step has beside these

  constexpr bool operator==(const CellShape&) const = default;

  constexpr int state_slabs() const {
    return state_only + shared;
  }
  constexpr int input_slabs() const {
    return shared + input_only;
  }
  constexpr int slabs() const {
    return state_only + shared + input_only;
  }
  // Which H rows of Whh a slab is.
  constexpr int state_block(int slab) const {
    return slab < state_only ? shared + slab : slab - state_only;
  }
};

// Of an Elman cell.
enum class Activation : int { tanh, relu, sigmoid, identity, traced };

// What an instruction of a program does to each element. Comparisons and
// logical operations give 1 or 0, and take everything but 0 for true.
enum class Op : uint8_t {
  copy,
  negative,
  abs,
  square,
  sqrt,
  rsqrt,
  exp,
  expm1,
  log,
  log2,
  log10,
  log1p,
  sigmoid,
  tanh,
  erf,
  sin,
  cos,
  tan,
  sinh,
  cosh,
  asin,
  acos,
  atan,
  asinh,
  acosh,
  atanh,
  floor,
  ceil,
  round, // to the nearest, ties to even
  sign,  // 0 of NaN
  logical_not,
  add,
  subtract,
  multiply,
  divide,
  maximum, // NaN where either is
  minimum,
  power,
  atan2,
  logaddexp,
  remainder, // of the divisor's sign
  greater,
  greater_equal,
  less,
  less_equal,
  equal,
  not_equal,
  logical_and,
  logical_or,
  select // a != 0 ? b : c
};

// to = op(a, b, c). An operand is an input, a constant or a slot, numbered in
// that order: slot k is operand inputs + constant_count + k. `to` is a slot,
// which may be one of those read; operands that an operation lacks are 0.
struct Instruction {
  Op op;
  int16_t to, a, b, c;
};

// Elementwise operations, run in order. Computed as the type computes: half
// types in float32, rounded once at the end.
struct Program {
  const Instruction* code;
  int32_t count;
  const double* constants;
  int32_t constant_count;
  int32_t inputs;
  int32_t slots;          // blocks for what is computed on the way
  const int32_t* results; // the operands that are results: of any kind
  int32_t result_count;
};

// A cell as programs. A step makes the states of the slabs, the states before
// and the parameters, in this order; its pullback, of these and of cotangents
// of the states, those of all three.
struct CellPrograms {
  CellShape shape;
  Program step;
  Program pullback;
};

// An (N, L, features) operand, read where it lies. Element (n, t, i) is at
// data[row_offsets[n] + t * step_stride + i * feature_stride].
struct Sequence {
  const void* data;
  const int64_t* row_offsets;
  int64_t step_stride;
  int64_t feature_stride;
};

// A matrix, read where it lies. Element (i, j) is at
// data[i * row_stride + j * column_stride].
struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
};

// A vector, read where it lies; data is null where the term is absent.
struct Vector {
  const void* data;
  int64_t stride;
};

// How one call is shared out. `batch` gives each slice its own rows; `units`
// gives each thread its own output columns of every step. `sets` is for several
// calls of one shape: each thread makes whole calls, alone; no kernel sees it.
enum class Split : int { none, batch, units, sets };

struct Partition {
  Split split;
  int threads; // at most this many threads take part
  int slices;  // the batch's slices; their number fixes the order of summation
};

// One thread's place in the team that runs a call. A barrier is passed by all
// members together.
struct Member {
  int index;
  int count;
  void (*wait)(void* barrier, int index);
  void* barrier;
};

// out (N, L, M) = x (N, L, K) w^T + bias, w (M, K).
struct MatmulArgs {
  int64_t N, L, K, M;
  Sequence x;
  Matrix w;
  Vector bias;
  void* out;
  Sgemm sgemm = nullptr; // for large products; null: the kernels' own
};

// out (M, K) = sum over n and t of a[n, t, :] (outer) b[n, t, :].
struct OuterSumArgs {
  int64_t N, L, M, K;
  Sequence a; // (N, L, M)
  Sequence b; // (N, L, K)
  void* out;
  Sgemm sgemm = nullptr;
};

// out[i] = program(inputs[0][i], inputs[1][i], ...) over contiguous elements;
// the program has one result.
struct PointwiseArgs {
  int64_t count;
  const Program* program;
  const void* const* inputs; // as many as the program has
  void* out;
};

// Which steps each row runs, in which order, and what passes between them. Step
// i of a row's run is at place i in time or, in `reverse`, counted back from
// the row's last place. Where a row has no step, results are zero, and nothing
// is read.
struct Course {
  bool reverse;
  // int32, one element a row: how many steps it has, taken into 0 to L. Null
  // data: every row has L.
  Sequence lengths;
  // bool (N, L): an episode starts at this place; nothing passes between it and
  // the place before, in either direction. Null data: nowhere.
  Sequence reset;
  // k >= 1: a derivative is cut before steps k, 2k, ... of each row's run.
  int64_t truncate_every;
};

// What is drawn with one key: the last word of a counter.
enum class Drawn : uint32_t {
  zoneout, // of the first state
  recurrent_dropout,
  input_dropout,
  zoneout_of_second // and of those behind it
};
constexpr int kMostDrawn = 2 + kMostStates;

// What zoneout of a state draws.
constexpr Drawn zoneout_of(int state) {
  constexpr int before = static_cast<int>(Drawn::input_dropout);
  return state == 0 ? Drawn::zoneout : static_cast<Drawn>(before + state);
}

// Whether it is drawn anew at each step, and keeps units; else it drops them.
constexpr bool keeps_units(Drawn what) {
  return what == Drawn::zoneout || what >= Drawn::zoneout_of_second;
}

// How probable a hit is, by what is drawn: that a unit keeps its state at a
// step; that Whh does not see it, at any step; that Wxh does not see a feature,
// at any step; as the first, of a cell's other states.
struct Probabilities {
  double of[kMostDrawn];

  bool operator==(const Probabilities&) const = default;
};

// Random factors, from two words of a key; null: there are none. Row n of the
// call draws as row n % rows.
struct Draws {
  const uint32_t* key;
  int64_t key_stride;
  int64_t rows;
  Probabilities probabilities;
};

// z_t = Wxh (m_x x_t) + bias or, where `projected` is set, x_t itself (then
// D == H). With q_t the state before step t of the run, `hidden` at first and
// `hidden0` where an episode starts:
//   h_t = (1 - k_t) q_t + k_t f(z_t + Whh (m_h q_t)).
// m are the factors of dropout; k is `leak`, or 0 where zoneout keeps a unit. A
// term whose factor is 0 is absent.
//
// So an Elman cell. Others have several pre-activations of each unit, slabs of
// H rows of the weights, in the order of gru.h and lstm.h, a bias `bhn` of what
// Whh alone gives, and several states. Each state is then blended with what it
// was for itself, after the cell has made all new ones.
struct RecurrenceArgs {
  int64_t N, L, D, H;
  CellKind kind;
  Activation activation;
  bool projected;
  const CellPrograms* programs; // of a cell that is some
  Sequence x;
  Matrix Wxh;        // (input slabs * H, D)
  Vector bias;       // (input slabs * H,)
  Matrix Whh;        // (state slabs * H, H)
  Vector bhn;        // (slabs of the state alone * H,); null data: zero
  Vector parameters; // (parameters * H,)
  // Of each state.
  Sequence hidden[kMostStates]; // (N, 1, H); data is null where there is none
  Vector hidden0[kMostStates];  // (H,); null data: zero
  Vector leak[kMostStates];     // (H,); null data: 1
  // bool (N, L): where it does not hold a step is skipped: all states stay as
  // they are, and nothing of x is seen. Null data: nowhere.
  Sequence mask;
  Course course;
  Draws draws;
  // 0: every state is kept, at its place in time. k >= 1: those after steps k,
  // 2k, ... of each row's run and after its last, in the order of the run.
  int64_t checkpoint_every;
  // Of those only the one that the last block of a row's run starts from, which
  // is all that a derivative truncated to blocks of k = `checkpoint_every`
  // needs.
  bool latest_checkpoint;
  // Where every first state is kept: the same of the second, which a derivative
  // computes again from those.
  int64_t cells_every = 0;
  // Of a traced activation: f(a), and c f'(a) of the inputs (a, c).
  const Program* function = nullptr;
  const Program* derivative = nullptr; // read by the backward pass only
  Sgemm sgemm = nullptr;

  // Every so many of a state are kept; 0: all.
  int64_t kept_every(int state) const {
    return state == 0 || checkpoint_every > 0 ? checkpoint_every : cells_every;
  }
};

struct ForwardArgs {
  RecurrenceArgs layer;
  // Of each state.
  void* states[kMostStates]; // (N, kept states, H); null: not wanted
  void* state[kMostStates];  // (N, H): after the last step; null: not wanted
  // (N, L, what a cell saves * H), of the type that is computed with: what the
  // derivative starts from beside the states; of an Elman cell the
  // or a program's pre-activations. Null: not wanted. Only where all states are
  // kept.
  void* saved = nullptr;
  // The scratch memory holds the weights already: as a run of the same layer
  // left it, with N rows on as many threads, and at least as many steps.
  bool prepared = false;
};

// The vector-Jacobian product of the recurrence. Outputs that are null are not
// wanted. `states` is what the forward pass left. A cotangent with null data is
// zero.
struct BackwardArgs {
  RecurrenceArgs layer;
  // Of each state.
  Sequence states[kMostStates];
  Sequence dstates[kMostStates]; // of all steps, (N, L, H)
  Sequence dstate[kMostStates];  // after the last step, (N, 1, H)
  // As the forward pass left it; null data: it is computed again.
  Sequence saved;
  // Of the operands, in their shapes.
  void* dx;
  void* dWxh;
  void* dbias;
  void* dWhh;
  void* dbhn;
  void* dparameters;
  void* dhidden[kMostStates];
  void* dhidden0[kMostStates];
  void* dleak; // of the first state
};

// What a linear scan has at most.
constexpr int kMostScanStates = kMostStates;
constexpr int kMostScanSlabs = kMostSlabs;
constexpr int kMostScanPaths = 24; // of each kind

// A factor by which something passes from one place to another; null data: one.
struct ScanPath {
  int to, from;
  Sequence factor;
};

// The block-linear scan and its transpose, along the course of the recurrence
// that it is the derivative of: truncation cuts. Each unit has some states; of
// the first one a product with the slabs of V is made. Factors belong to the
// passage between two steps, and have the place of that passage's later step in
// the run. With u the results before step t in the run, `hidden` at first,
// `hidden0` where an episode starts, absent where the passage is cut:
//   y_t[i] = s_t[i] + sum of A_t u[j] over the paths of A from j to i
//                   + sum of B_t V_k (gamma_t u[0]) over those of B from k to i
// and transposed, with n the step after t in the run:
//   y_t[j] = s_t[j] + sum of A_n y_n[i] over the paths of A from j to i
//   y_t[0] also gets gamma_n sum of V_k^T (B_n y_n[i]) over those of B,
// without `hidden` and `hidden0`. A term whose factor is 0 is absent.
struct LinearScanArgs {
  int64_t N, L, H;
  int states, slabs;
  bool transposed;
  Course course;
  Matrix V; // (slabs * H, H)
  int A_count, B_count;
  ScanPath A[kMostScanPaths]; // from a state to a state
  ScanPath B[kMostScanPaths]; // from a slab to a state
  Sequence gamma;             // null data: ones
  // Of each state.
  Sequence s[kMostScanStates];      // null data: zero
  Sequence hidden[kMostScanStates]; // (N, 1, H); null data: zero
  Vector hidden0[kMostScanStates];  // (H,); null data: zero
  void* out[kMostScanStates];       // (N, L, H)
};

// The factors that steps draw, as an array (N, steps, features): of zoneout 1
// where a unit is updated and 0 where it keeps its state, of a dropout, whose
// only step is 0, what is multiplied with.
struct MaskArgs {
  int64_t N, steps, features;
  Drawn what;
  Draws draws;
  void* out;
};

template <class Args>
struct Kernel {
  // Bytes of scratch memory that `run` needs.
  size_t (*scratch)(const Args&, const Partition&);
  // Called once by every member of the team, with the same scratch memory.
  void (*run)(const Args&, const Partition&, const Member&, char* scratch);
};

struct TypedKernels {
  Kernel<MatmulArgs> matmul;
  Kernel<OuterSumArgs> outer_sum;
  Kernel<ForwardArgs> forward;
  Kernel<BackwardArgs> backward;
  Kernel<LinearScanArgs> linear_scan;
  Kernel<PointwiseArgs> pointwise;
  Kernel<MaskArgs> mask;
};

// Loops whose time is a figure of the machine, by the number of their rounds.
struct MeasureLoops {
  // Returns the float32 operations it did; `operands` are a factor, an
  // addend, a start, and the place of the result.
  double (*multiply_add)(int64_t rounds, float* operands);
  // Reads `count` floats, a multiple of 256.
  void (*read)(int64_t rounds, const float* data, int64_t count, float* sink);
  // out = tanh(data), `count` a multiple of 16.
  void (*tanh)(int64_t rounds, const float* data, int64_t count, float* out);
};

struct KernelTable {
  const char* isa;
  TypedKernels types[4]; // by Type
  MeasureLoops measure;
};

// States of a row that the forward pass leaves.
inline int64_t kept_states(
    int64_t L,
    int64_t checkpoint_every,
    bool latest_checkpoint = false) {
  return checkpoint_every == 0 ? L
      : latest_checkpoint      ? 1
                               : (L + checkpoint_every - 1) / checkpoint_every;
}

// The table for this processor, or for the instruction set that the environment
// variable MLX_RECURRENT_ISA names; null where that name is not one of
// `available_isas()` (a comma-separated list).
const KernelTable* table();
const char* available_isas();

} // namespace mlx_recurrent::kernels
