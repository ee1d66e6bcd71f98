// Matrix products on packed panels: the one micro-kernel that the projection,
// the recurrence's step and the weight gradients share.
//
// A matrix B (K, M) is packed into panels of kPanel columns, each laid out
// [K][kPanel] and padded with zeros. A tile is up to kRows rows by one panel.

#pragma once

#include "elementary.h"
#include "kernels.h"

namespace {

using mlx_recurrent::kernels::Sequence;

#if MLX_RECURRENT_REGISTERS >= 32
constexpr int kPanelVectors = 4;
#else
constexpr int kPanelVectors = 2;
#endif
constexpr int kRows = 6;
constexpr int64_t kLine = 64; // bytes of a cache line

template <class C>
constexpr int kPanel = kPanelVectors * Simd<C>::lanes;

INLINE int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}

INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class C>
INLINE int64_t panel_count(int64_t columns) {
  return ceil_div(columns, kPanel<C>);
}

template <class C>
INLINE int64_t packed_size(int64_t K, int64_t columns) {
  return K * panel_count<C>(columns) * kPanel<C>;
}

// The distance between rows of scratch matrices: whole cache lines, an odd
// number of them, so that rows do not fall on the same cache sets.
template <class C>
INLINE int64_t leading_dimension(int64_t columns) {
  constexpr int64_t line = kLine / sizeof(C);
  int64_t padded = panel_count<C>(columns) * kPanel<C>;
  int64_t lines = ceil_div(padded, line);
  return (lines | 1) * line;
}

// A packed matrix; `stored`: of the storage type T, else of what T is computed
// with.
template <class T>
struct Panels {
  char* data;
  bool stored;
  // Not null: it is multiplied by this, and packed whole in rows `ld` apart.
  mlx_recurrent::kernels::Sgemm sgemm = nullptr;
  int64_t ld = 0;

  INLINE_MEMBER int64_t bytes(int64_t K, int64_t columns) const {
    return packed_size<Compute<T>>(K, columns) *
        static_cast<int64_t>(stored ? sizeof(Element<T>) : sizeof(Compute<T>));
  }
};

// Where panels of a part of a matrix stand in those of the whole: the part's
// panel p is number p * every + index, its rows begin at row `from` of `depth`,
// and `padding` rows of zeros follow.
struct PanelPlace {
  int64_t every, index;
  int64_t depth, from, padding;
};

// Packs panels [first, last) of B (K, M), B(k, j) = data[k * k_stride + j *
// j_stride], as storage type S.
template <class T, class S>
static void pack_as(
    Element<S>* panels,
    const PanelPlace& place,
    const Element<T>* data,
    int64_t k_stride,
    int64_t j_stride,
    int64_t K,
    int64_t M,
    int64_t first,
    int64_t last) {
  typedef Compute<T> C;
  constexpr int width = kPanel<C>;
  constexpr int lanes = Simd<C>::lanes;
  for (int64_t p = first; p < last; ++p) {
    Element<S>* panel = panels +
        ((p * place.every + place.index) * place.depth + place.from) * width;
    for (int64_t i = K * width; i < (K + place.padding) * width; i += lanes) {
      S::store(panel + i, Vec<C>{});
    }
    int64_t j0 = p * width;
    int64_t columns = minimum(width, M - j0);
    const Element<T>* source = data + j0 * j_stride;
    if (j_stride == 1) {
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t j = 0; j < width; j += lanes) {
          Vec<C> v = {};
          if (j < columns) {
            v = load_some<T>(source + k * k_stride + j, columns - j);
          }
          S::store(panel + k * width + j, v);
        }
      }
      continue;
    }
    if (k_stride == 1) {
      for (int64_t k0 = 0; k0 < K; k0 += lanes) {
        int64_t depth = minimum(lanes, K - k0);
        for (int64_t column = 0; column < width; column += lanes) {
          Vec<C> block[lanes];
#pragma GCC unroll 16
          for (int j = 0; j < lanes; ++j) {
            block[j] = Vec<C>{};
            if (column + j < columns) {
              block[j] =
                  load_some<T>(source + (column + j) * j_stride + k0, depth);
            }
          }
          transpose<C>(block);
          for (int64_t k = 0; k < depth; ++k) {
            S::store(panel + (k0 + k) * width + column, block[k]);
          }
        }
      }
      continue;
    }
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < width; ++j) {
        C value = j < columns
            ? load_one<T>(source + k * k_stride + j * j_stride)
            : C(0);
        store_some<S>(panel + k * width + j, splat<C>(value), 1);
      }
    }
  }
}

// Of blas_product.h.
template <class T>
static void pack_whole(
    const Panels<T>& to,
    const PanelPlace& place,
    const Element<T>* data,
    int64_t k_stride,
    int64_t j_stride,
    int64_t K,
    int64_t M,
    int64_t first,
    int64_t last);

template <class T>
INLINE void pack(
    const Panels<T>& to,
    const PanelPlace& place,
    const void* data,
    int64_t k_stride,
    int64_t j_stride,
    int64_t K,
    int64_t M,
    int64_t first,
    int64_t last) {
  typedef AsComputed<Compute<T>> S;
  const Element<T>* from = static_cast<const Element<T>*>(data);
  if (to.sgemm) {
    pack_whole<T>(to, place, from, k_stride, j_stride, K, M, first, last);
  } else if (to.stored) {
    pack_as<T, T>(
        reinterpret_cast<Element<T>*>(to.data),
        place,
        from,
        k_stride,
        j_stride,
        K,
        M,
        first,
        last);
  } else {
    pack_as<T, S>(
        reinterpret_cast<Element<S>*>(to.data),
        place,
        from,
        k_stride,
        j_stride,
        K,
        M,
        first,
        last);
  }
}

// A whole matrix.
template <class T>
INLINE void pack(
    const Panels<T>& to,
    const void* data,
    int64_t k_stride,
    int64_t j_stride,
    int64_t K,
    int64_t M,
    int64_t first,
    int64_t last) {
  pack<T>(
      to,
      PanelPlace{1, 0, K, 0, 0},
      data,
      k_stride,
      j_stride,
      K,
      M,
      first,
      last);
}

// Where the sums of a product begin and end, in rows `stride` apart: result =
// start + product. Null `start`: zero; a `start_stride` of 0: one row for all.
// Both have room for the whole vector that the last column falls into.
template <class C>
struct Sums {
  const C* start;
  int64_t start_stride;
  C* result;
  int64_t stride;

  INLINE_MEMBER Sums at(int64_t row, int64_t column) const {
    return Sums{
        start ? start + row * start_stride + column : nullptr,
        start_stride,
        result ? result + row * stride + column : nullptr,
        stride};
  }
};

// sums[m][:] gets the sum over k of a(m, k) * panel[k][:]. With `unit_k`
// a(m, k) is a[m * stride + k] (rows of a matrix), else a[k * stride + m] (its
// columns). `Chains` sums are kept side by side, to hide the latency of the
// additions where there are few rows. S is the panel's storage type. On the way
// a line of `ahead` for each term comes nearer.
template <class S, int Rows, int Vectors, int Chains, bool unit_k>
static void micro_kernel(
    int64_t K,
    const Compute<S>* a,
    int64_t stride,
    const void* panel_data,
    const Sums<Compute<S>>& sums,
    const char* ahead) {
  typedef Compute<S> C;
  const Element<S>* panel = static_cast<const Element<S>*>(panel_data);
  constexpr int lanes = Simd<C>::lanes;
  constexpr int width = kPanel<C>;
  Vec<C> sum[Chains][Rows][Vectors] = {};
  int64_t k = 0;
  for (; k + Chains <= K; k += Chains) {
#pragma GCC unroll 8
    for (int c = 0; c < Chains; ++c) {
      Vec<C> w[Vectors];
      if constexpr (Chains == 1 && unit_k) {
        __builtin_prefetch(ahead + k * kLine, 0, 2);
      }
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        w[j] = S::load(panel + (k + c) * width + j * lanes);
      }
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        C value = unit_k ? a[m * stride + k + c] : a[(k + c) * stride + m];
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) {
          sum[c][m][j] += w[j] * value;
        }
      }
    }
  }
  if constexpr (Chains > 1) {
    for (; k < K; ++k) {
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        C value = unit_k ? a[m * stride + k] : a[k * stride + m];
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) {
          sum[0][m][j] += S::load(panel + k * width + j * lanes) * value;
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 1; c < Chains; ++c) {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        sum[0][m][j] += sum[c][m][j];
      }
    }
  }
  if (sums.start) {
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        sum[0][m][j] +=
            load_as<Vec<C>>(sums.start + m * sums.start_stride + j * lanes);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      store_as(sums.result + m * sums.stride + j * lanes, sum[0][m][j]);
    }
  }
}

template <class C>
using MicroKernel = void (*)(
    int64_t,
    const C*,
    int64_t,
    const void*,
    const Sums<C>&,
    const char*);

// The kernels for 1 to Rows rows and 1 to kPanelVectors vectors.
template <
    class S,
    int Chains,
    bool unit_k,
    int Rows,
    int Vectors = kPanelVectors>
static MicroKernel<Compute<S>> micro_kernel_for(int rows, int vectors) {
  if constexpr (Vectors > 1) {
    if (vectors < Vectors) {
      return micro_kernel_for<S, Chains, unit_k, Rows, Vectors - 1>(
          rows, vectors);
    }
  }
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      return micro_kernel_for<S, Chains, unit_k, Rows - 1, Vectors>(
          rows, vectors);
    }
  }
  return micro_kernel<S, Rows, Vectors, Chains, unit_k>;
}

// How many sums stand side by side: a function of the whole call's rows, never
// of one thread's, because it decides the order of summation.
INLINE int chains_for(int64_t rows) {
  return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

// Weights that every step of a single row reads whole: their bytes are its
// price, so they keep their storage type.
template <class T>
INLINE bool stays_stored(int chains) {
  return T::widens_fast && chains == 4;
}

template <class T>
static MicroKernel<Compute<T>> row_kernel(
    bool stored,
    int chains,
    int rows,
    int vectors) {
  typedef AsComputed<Compute<T>> S;
  if (chains == 4) {
    return stored ? micro_kernel_for<T, 4, true, 1>(1, vectors)
                  : micro_kernel_for<S, 4, true, 1>(1, vectors);
  }
  if (chains == 2) {
    return micro_kernel_for<S, 2, true, 2>(rows, vectors);
  }
  return micro_kernel_for<S, 1, true, kRows>(rows, vectors);
}

INLINE int most_rows(int chains) {
  return chains == 4 ? 1 : chains == 2 ? 2 : kRows;
}

// A finished tile of a product: `rows` rows from `row`, and `columns` columns
// from `column`; value(m, j) is at values[m * stride + j].
template <class C>
struct Tile {
  C* values;
  int64_t stride;
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;

  // Calls consume(row, column, its values, lanes in use) for each vector.
  template <class Consume>
  INLINE_MEMBER void each(Consume consume) const {
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t j = 0; j < columns; j += Simd<C>::lanes) {
        consume(row + m, column + j, values + m * stride + j, columns - j);
      }
    }
  }
};

// Terms that one sum adds up before it is added to the whole: a running sum
// over thousands of terms would lose what each adds.
constexpr int64_t kTerms = 256;

// A matrix of more bytes leaves a level-2 cache from one product to the next:
// while a panel is in use, the next one is fetched.
constexpr int64_t kFarBytes = 512 * 1024;

// Of blas_product.h.
template <class T, class Consume>
static void multiply_whole(
    int slabs,
    int64_t rows,
    int64_t K,
    const float* a,
    int64_t lda,
    const Panels<T>& panels,
    int64_t M,
    int64_t first,
    int64_t last,
    const Sums<float>& sums,
    int64_t slab_stride,
    Consume consume);

// Rows a (rows, K) times panels [first, last) of a packed (K, M) matrix. Each
// finished tile goes to `consume`; without a `result` of the sums, in a buffer
// that the next tile overwrites. With `backward` from the last panel to the
// first: where the panels exceed a cache, products that go over them in turn
// forward and backward find some of them there.
//
// With several `slabs` the matrix is as many of M columns, packed panel by
// panel in turn; the results of each are `slab_stride` behind those of the one
// before, and a tile, that of the first, is consumed when all its slabs are
// there. `first` and `last` count the panels of one slab. 0 stands for
// `count_of_slabs`.
template <class T, int known_slabs = 1, class Consume>
INLINE void multiply(
    int64_t rows,
    int64_t K,
    const Compute<T>* a,
    int64_t lda,
    const Panels<T>& panels,
    int64_t M,
    int64_t first,
    int64_t last,
    int chains,
    const Sums<Compute<T>>& sums,
    bool backward,
    Consume consume,
    int64_t slab_stride = 0,
    int count_of_slabs = known_slabs) {
  typedef Compute<T> C;
  const int slabs = known_slabs > 0 ? known_slabs : count_of_slabs;
  if constexpr (sizeof(C) == sizeof(float)) {
    if (panels.sgemm) {
      multiply_whole<T>(
          slabs,
          rows,
          K,
          a,
          lda,
          panels,
          M,
          first,
          last,
          sums,
          slab_stride,
          consume);
      return;
    }
  }
  alignas(64) C buffer[kRows * kPanel<C>];
  if (rows == 0) {
    return;
  }
  // Blocks of nearly equal height: 7 rows are 4 and 3, not 6 and 1.
  int64_t blocks = ceil_div(rows, most_rows(chains));
  int height = static_cast<int>(rows / blocks);
  int64_t taller = rows % blocks;
  int64_t parts = ceil_div(K, kTerms * chains);
  parts = parts > 0 ? parts : 1;
  MicroKernel<C> high = nullptr;
  MicroKernel<C> low = nullptr;
  int chosen_for = 0;
  for (int64_t i = first; i < last; ++i) {
    int64_t p = backward ? first + last - 1 - i : i;
    int64_t column = p * kPanel<C>;
    int64_t columns = minimum(kPanel<C>, M - column);
    int vectors = static_cast<int>(ceil_div(columns, Simd<C>::lanes));
    if (vectors != chosen_for) {
      low = row_kernel<T>(panels.stored, chains, height, vectors);
      high = taller ? row_kernel<T>(panels.stored, chains, height + 1, vectors)
                    : low;
      chosen_for = vectors;
    }
    int64_t row_bytes = panels.bytes(1, 1);
    bool far = (last - first) * slabs * K * row_bytes > kFarBytes;
    for (int slab = 0; slab < slabs; ++slab) {
      auto panel_at = [&](int64_t number) {
        return panels.data + panels.bytes(K, number * kPanel<C>);
      };
      int64_t number = p * slabs + slab;
      bool ends = slab == slabs - 1;
      int64_t following = ends && backward ? (p - 1) * slabs : number + 1;
      const char* panel = panel_at(number);
      const char* next =
          far && !(ends && i + 1 == last) ? panel_at(following) : panel;
      int64_t row = 0;
      for (int64_t b = 0; b < blocks; ++b) {
        int count = height + (b < taller);
        Sums<C> to = sums.at(row, column + slab * slab_stride);
        if (!sums.result) {
          to.result = buffer;
          to.stride = kPanel<C>;
        }
        MicroKernel<C> kernel = b < taller ? high : low;
        // A part of the next panel for each block of rows, while there is any.
        const char* ahead =
            b * kLine < row_bytes ? next + b * K * kLine : panel;
        Sums<C> from = to;
        for (int64_t part = 0; part < parts; ++part) {
          // Whole rounds of the chains in all parts but the last.
          int64_t k = K * part / parts & ~int64_t{3};
          int64_t end =
              part + 1 == parts ? K : K * (part + 1) / parts & ~int64_t{3};
          kernel(
              end - k,
              a + row * lda + k,
              lda,
              panel + k * row_bytes,
              from,
              ahead + k * kLine);
          from.start = from.result;
          from.start_stride = from.stride;
        }
        if (ends) {
          C* values = to.result - slab * slab_stride;
          consume(Tile<C>{values, to.stride, row, count, column, columns});
        }
        row += count;
      }
    }
  }
}

// Terms of a sum of outer products whose panel stays in the level-1 cache.
constexpr int64_t kOuterTerms = 64;

// Rows [first, last) of sums += a^T b.
template <class C>
struct OuterPart {
  const C* a;
  C* sums;
  int64_t first, last;
};

// Some such sums of one b, of which a panel of `columns` columns is taken; all
// have K rows. stage(to) copies the next row of the panel.
template <class C, class Stage>
INLINE void accumulate_outer(
    int64_t K,
    const OuterPart<C>* parts,
    int count_of_parts,
    int64_t lda,
    C* panel,
    int64_t columns,
    int64_t ld,
    Stage stage) {
  int vectors = static_cast<int>(ceil_div(columns, Simd<C>::lanes));
  for (int64_t k0 = 0; k0 < K; k0 += kOuterTerms) {
    int64_t k1 = minimum(k0 + kOuterTerms, K);
    for (int64_t k = k0; k < k1; ++k) {
      stage(panel + (k - k0) * kPanel<C>);
    }
    for (const OuterPart<C>* part = parts; part < parts + count_of_parts;
         ++part) {
      for (int64_t row = part->first; row < part->last; row += kRows) {
        int count = static_cast<int>(minimum(kRows, part->last - row));
        C* to = part->sums + row * ld;
        // The sums of the next rows, which may be far, while these are formed.
        for (int64_t m = kRows; m < minimum(2 * kRows, part->last - row); ++m) {
          for (int64_t j = 0; j < columns; j += kLine / int64_t{sizeof(C)}) {
            __builtin_prefetch(to + m * ld + j, 1, 2);
          }
        }
        micro_kernel_for<AsComputed<C>, 1, false, kRows>(count, vectors)(
            k1 - k0,
            part->a + k0 * lda + row,
            lda,
            panel,
            Sums<C>{to, ld, to, ld},
            nullptr);
      }
    }
  }
}

template <class C>
INLINE void clear(C* p, int64_t count) {
  __builtin_memset(p, 0, count * sizeof(C));
}

// Copies columns [first, last) of one feature row into compute form; `to` has
// room for the whole vector that the last of them falls into.
template <class T>
INLINE void stage_row(
    Compute<T>* to,
    const Element<T>* from,
    int64_t feature_stride,
    int64_t first,
    int64_t last) {
  typedef Compute<T> C;
  constexpr int lanes = Simd<C>::lanes;
  if (feature_stride == 1) {
    for (int64_t i = first; i < last; i += lanes) {
      store_as(to + i, load_some<T>(from + i, last - i));
    }
  } else {
    for (int64_t i = first; i < last; ++i) {
      to[i] = load_one<T>(from + i * feature_stride);
    }
  }
}

// The same for a panel's row of `width` columns, zero beyond them.
template <class T>
INLINE void stage_panel_row(
    Compute<T>* to,
    const Element<T>* from,
    int64_t feature_stride,
    int64_t width) {
  typedef Compute<T> C;
  if (width < kPanel<C>) {
    clear(to, kPanel<C>);
  }
  stage_row<T>(to, from, feature_stride, 0, width);
}

template <class T>
INLINE const Element<T>* row_of(const Sequence& s, int64_t n, int64_t t) {
  return static_cast<const Element<T>*>(s.data) + s.row_offsets[n] +
      t * s.step_stride;
}

// Up to a whole vector of features that lie `stride` apart.
template <class T>
INLINE Vec<Compute<T>> load_strided(
    const Element<T>* p,
    int64_t stride,
    int64_t left) {
  typedef Compute<T> C;
  if (stride == 1) {
    return load_some<T>(p, left);
  }
  Vec<C> v = {};
  for (int64_t i = 0; i < minimum(left, Simd<C>::lanes); ++i) {
    v[i] = load_one<T>(p + i * stride);
  }
  return v;
}

// Up to a whole vector of row (n, t), from `column` on.
template <class T>
INLINE Vec<Compute<T>> load_from(
    const Sequence& s,
    int64_t n,
    int64_t t,
    int64_t column,
    int64_t left) {
  return load_strided<T>(
      row_of<T>(s, n, t) + column * s.feature_stride, s.feature_stride, left);
}

template <class T>
INLINE void write_row(
    Element<T>* to,
    const Compute<T>* from,
    int64_t first,
    int64_t last) {
  constexpr int lanes = Simd<Compute<T>>::lanes;
  for (int64_t i = first; i < last; i += lanes) {
    store_some<T>(to + i, load_as<Vec<Compute<T>>>(from + i), last - i);
  }
}

} // namespace
