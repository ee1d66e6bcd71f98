// Vectors of one instruction set, in the GCC and Clang vector extensions.
// MLX_RECURRENT_VECTOR_BYTES is their width. Included by one translation unit
// for each instruction set; all of it has internal linkage, so that the linker
// never shares code between them.

#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX2__)
// Only intrinsics, which are always inlined: nothing for the linker to share.
// GCC 12 takes the header's undefined vectors for mistakes of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace {

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))

template <class C>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int lanes = MLX_RECURRENT_VECTOR_BYTES / 4;
  typedef float vec __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef int32_t ints __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef uint32_t bits
      __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef uint16_t half
      __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES / 2)));
  typedef bits words; // a 32-bit word for each lane
};

template <>
struct Simd<double> {
  static constexpr int lanes = MLX_RECURRENT_VECTOR_BYTES / 8;
  typedef double vec __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef int64_t ints __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef uint64_t bits
      __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES)));
  typedef uint32_t words
      __attribute__((vector_size(MLX_RECURRENT_VECTOR_BYTES / 2)));
};

template <class C>
using Vec = typename Simd<C>::vec;

// A difference, not a sum, keeps -0.
template <class C>
INLINE Vec<C> splat(C value) {
  return value - Vec<C>{};
}

template <class V, class P>
INLINE V load_as(const P* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class P>
INLINE void store_as(P* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// A storage type: what lies in memory (`element`), what is computed with
// (`compute`), and how a vector of one becomes the other.
struct Float32 {
  typedef float element;
  typedef float compute;
  static constexpr bool widens_fast = false;
  INLINE_MEMBER static Vec<float> load(const element* p) {
    return load_as<Vec<float>>(p);
  }
  INLINE_MEMBER static void store(element* p, Vec<float> v) {
    store_as(p, v);
  }
  INLINE_MEMBER static Vec<float> round(Vec<float> v) {
    return v;
  }
};

struct Float64 {
  typedef double element;
  typedef double compute;
  static constexpr bool widens_fast = false;
  INLINE_MEMBER static Vec<double> load(const element* p) {
    return load_as<Vec<double>>(p);
  }
  INLINE_MEMBER static void store(element* p, Vec<double> v) {
    store_as(p, v);
  }
  INLINE_MEMBER static Vec<double> round(Vec<double> v) {
    return v;
  }
};

typedef Simd<float>::bits Bits;
typedef Simd<float>::ints Ints;
typedef Simd<float>::half Half;

// 16-bit lanes to 32 bits and back. GCC 12 would do it in halves of a vector.
INLINE Bits extend(Half h) {
#if defined(__AVX512F__)
  return (Bits)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (Bits)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Bits);
#endif
}

INLINE Half truncate(Bits x) {
#if defined(__AVX512F__)
  return (Half)_mm512_cvtepi32_epi16((__m512i)x);
#else
  return __builtin_convertvector(x, Half);
#endif
}

// Half types are kept as their bits. Conversions round to the nearest even, by
// the processor's instruction or by integer arithmetic, so that every
// instruction set gives the same numbers, subnormals included.
struct Float16 {
  typedef uint16_t element;
  typedef float compute;

#if defined(__AVX512F__)
  static constexpr bool widens_fast = true;
  INLINE_MEMBER static Vec<float> widen(Half h) {
    return (Vec<float>)_mm512_cvtph_ps((__m256i)h);
  }
  INLINE_MEMBER static Half narrow(Vec<float> v) {
    return (Half)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  }
#elif defined(__F16C__)
  static constexpr bool widens_fast = true;
  INLINE_MEMBER static Vec<float> widen(Half h) {
    return (Vec<float>)_mm256_cvtph_ps((__m128i)h);
  }
  INLINE_MEMBER static Half narrow(Vec<float> v) {
    return (Half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  static constexpr bool widens_fast = false;
  INLINE_MEMBER static Vec<float> widen(Half h) {
    Bits x = extend(h);
    Bits sign = (x & 0x8000u) << 16;
    Bits magnitude = x & 0x7fffu;
    Bits normal = (magnitude << 13) + (112u << 23);
    Bits special = (magnitude << 13) | 0x7f800000u;
    // Subnormals: the mantissa times 2^-24, exact.
    Vec<float> tiny =
        __builtin_convertvector((Ints)magnitude, Vec<float>) * 0x1p-24f;
    Bits out = (Ints)magnitude >= 0x7c00 ? special : normal;
    out = (Ints)magnitude < 0x400 ? (Bits)tiny : out;
    return (Vec<float>)(out | sign);
  }

  INLINE_MEMBER static Half narrow(Vec<float> v) {
    Bits x = (Bits)v;
    Bits sign = (x >> 16) & 0x8000u;
    Bits magnitude = x & 0x7fffffffu;
    Bits normal =
        (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding one half lines the mantissa up with that of a subnormal.
    Bits tiny = (Bits)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
    Bits out = (Ints)magnitude < 0x38800000 ? tiny : normal;
    out = (Ints)magnitude >= 0x477ff000 ? (Bits{} + 0x7c00u) : out;
    out = (Ints)magnitude > 0x7f800000 ? (Bits{} + 0x7e00u) : out;
    return truncate(out | sign);
  }
#endif

  INLINE_MEMBER static Vec<float> load(const element* p) {
    return widen(load_as<Half>(p));
  }
  INLINE_MEMBER static void store(element* p, Vec<float> v) {
    store_as(p, narrow(v));
  }
  INLINE_MEMBER static Vec<float> round(Vec<float> v) {
    return widen(narrow(v));
  }
};

struct BFloat16 {
  typedef uint16_t element;
  typedef float compute;
  static constexpr bool widens_fast = true;

  INLINE_MEMBER static Vec<float> widen(Half h) {
    return (Vec<float>)(extend(h) << 16);
  }

  // The rounded value in the upper half of each lane; what is below is noise.
  INLINE_MEMBER static Bits rounded(Vec<float> v) {
    Bits x = (Bits)v;
    Bits out = x + 0x7fffu + ((x >> 16) & 1u);
    return (Ints)(x & 0x7fffffffu) > 0x7f800000 ? x | 0x400000u : out;
  }

  INLINE_MEMBER static Half narrow(Vec<float> v) {
    return truncate(rounded(v) >> 16);
  }

  INLINE_MEMBER static Vec<float> load(const element* p) {
    return widen(load_as<Half>(p));
  }
  INLINE_MEMBER static void store(element* p, Vec<float> v) {
    store_as(p, narrow(v));
  }
  INLINE_MEMBER static Vec<float> round(Vec<float> v) {
    return (Vec<float>)(rounded(v) & 0xffff0000u);
  }
};

// T where the values are rounded already, so that storing them is exact.
template <class T>
struct Rounded : T {};
template <>
struct Rounded<BFloat16> : BFloat16 {
  INLINE_MEMBER static void store(element* p, Vec<float> v) {
    store_as(p, truncate((Bits)v >> 16));
  }
};

// The storage type of scratch memory, which holds what is computed with.
template <class C>
struct AsComputed;
template <>
struct AsComputed<float> : Float32 {};
template <>
struct AsComputed<double> : Float64 {};

template <class T>
using Compute = typename T::compute;

template <class T>
using Element = typename T::element;

// The first `count` elements, fewer than a whole vector of `lanes`, between
// memory that ends there and a buffer; without a loop where the processor
// masks.
#if defined(__AVX512F__)
#define MASKED_COPIES(E, bits, lanes, vector, width)                      \
  INLINE void load_lanes(E* buffer, const E* p, int64_t count) {          \
    auto mask = static_cast<__mmask##lanes>((uint32_t{1} << count) - 1);  \
    store_as(buffer, _mm##width##_maskz_loadu_epi##bits(mask, p));        \
  }                                                                       \
  INLINE void store_lanes(E* p, const E* buffer, int64_t count) {         \
    auto mask = static_cast<__mmask##lanes>((uint32_t{1} << count) - 1);  \
    _mm##width##_mask_storeu_epi##bits(p, mask, load_as<vector>(buffer)); \
  }
MASKED_COPIES(uint16_t, 16, 16, __m256i, 256)
MASKED_COPIES(float, 32, 16, __m512i, 512)
MASKED_COPIES(double, 64, 8, __m512i, 512)
#undef MASKED_COPIES
#else
template <class E>
INLINE void load_lanes(E* buffer, const E* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = p[i];
  }
}
template <class E>
INLINE void store_lanes(E* p, const E* buffer, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    p[i] = buffer[i];
  }
}
#endif

// The first `count` lanes only; the others are zero, or left alone.
template <class T>
INLINE Vec<Compute<T>> load_some(const Element<T>* p, int64_t count) {
  constexpr int lanes = Simd<Compute<T>>::lanes;
  if (count >= lanes) {
    return T::load(p);
  }
  Element<T> buffer[lanes] = {};
  load_lanes(buffer, p, count);
  return T::load(buffer);
}

template <class T>
INLINE void store_some(Element<T>* p, Vec<Compute<T>> v, int64_t count) {
  constexpr int lanes = Simd<Compute<T>>::lanes;
  if (count >= lanes) {
    T::store(p, v);
    return;
  }
  Element<T> buffer[lanes];
  T::store(buffer, v);
  store_lanes(p, buffer, count);
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) \
  __builtin_shuffle(a, b, typename Simd<C>::ints{__VA_ARGS__})
#endif

// a and b interleaved, element by element: the first vector and the second.
template <class C>
INLINE void interleave(Vec<C> a, Vec<C> b, Vec<C>& first, Vec<C>& second) {
  constexpr int lanes = Simd<C>::lanes;
  static_assert(lanes == 2 || lanes == 4 || lanes == 8 || lanes == 16);
  if constexpr (lanes == 2) {
    first = SHUFFLE(a, b, 0, 2);
    second = SHUFFLE(a, b, 1, 3);
  } else if constexpr (lanes == 4) {
    first = SHUFFLE(a, b, 0, 4, 1, 5);
    second = SHUFFLE(a, b, 2, 6, 3, 7);
  } else if constexpr (lanes == 8) {
    first = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    second = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    first =
        SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    second = SHUFFLE(
        a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

// The transpose of a square of vectors: each round interleaves the first half
// of the rows with the second, which moves one bit of the row's number to the
// column's.
template <class C>
INLINE void transpose(Vec<C> (&rows)[Simd<C>::lanes]) {
  constexpr int lanes = Simd<C>::lanes;
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    Vec<C> mixed[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      interleave<C>(
          rows[i], rows[i + lanes / 2], mixed[2 * i], mixed[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      rows[i] = mixed[i];
    }
  }
}

// One element, through the same conversion.
template <class T>
INLINE Compute<T> load_one(const Element<T>* p) {
  return load_some<T>(p, 1)[0];
}

template <>
INLINE_MEMBER float load_one<Float32>(const float* p) {
  return *p;
}

template <>
INLINE_MEMBER double load_one<Float64>(const double* p) {
  return *p;
}

} // namespace
