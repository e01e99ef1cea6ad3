// A register of floats at a time, in GCC's vector extensions: any CPU, one source.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "machine.h"

namespace rec_jax {

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

constexpr int64_t kGroup = 32;               // queries whose scores are computed together
constexpr int kPieces = kGroup / kLanes;     // registers of a group

constexpr float kLowest = -3.4028234663852886e38f;
constexpr float kInfinity = __builtin_inff();

inline Vec splat(float x) { return Vec{} + x; }
inline Ints splat_int(int32_t x) { return Ints{} + x; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline void store_int(int32_t* p, Ints v) { std::memcpy(p, &v, sizeof v); }

// A NaN in `a` gives `b`, in both of them and on every CPU.
#if defined(__AVX512F__)
inline Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__) && !defined(REC_JAX_WIDE)
inline Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
#endif

inline float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  // Halves are added to halves, as the instructions above do.
  float part[kLanes];
  store(part, v);
  for (int count = kLanes / 2; count > 0; count /= 2)
    for (int i = 0; i < count; ++i) part[i] += part[i + count];
  return part[0];
#endif
}

// As `xla/exp.py`: within 2e-7 + 8e-8 |x|, relative; 0 below -88, inf from 89 on; NaN stays.
inline Vec exp(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the low bits of r + magic are the integer r
  Vec t = max(splat(-127.0f), min(splat(128.0f), x * 1.44269504088896341f));
  Vec shifted = t + kMagic;
  Vec f = t - (shifted - kMagic);
  Vec p = splat(1.326472731307149e-3f);
  p = p * f + 9.671512991189957e-3f;
  p = p * f + 5.550733581185341e-2f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  return (Vec)((Ints)p + ((Ints)shifted << 23));
}

// tanh, within 3e-7 absolute.
inline Vec tanh(Vec x) {
  Vec y = max(splat(-10.0f), min(splat(10.0f), x));
  Vec y2 = y * y;
  // Taylor to x^7 where the other form would cancel; both are cheap next to a matrix product.
  Vec small = y * (1.0f + y2 * (-0.333333333f + y2 * (0.133333333f + y2 * -0.0539682540f)));
  Vec large = 1.0f - 2.0f / (exp(2.0f * y) + 1.0f);
  return y2 < 0.02f ? small : large;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A bf16 is the upper half of a float.
inline float from_bf16(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) { return from_bf16(x); }

// Lane i of the result is lane kFrom[i] of a, or lane kFrom[i] - kLanes of b.
template <int... kFrom>
inline Ints pick(Ints a, Ints b) {
#if defined(__AVX512F__)
  const Ints from = {kFrom...};
  return (Ints)_mm512_permutex2var_epi32((__m512i)a, (__m512i)from, (__m512i)b);
#elif defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, kFrom...);
#else
  return __builtin_shuffle(a, b, Ints{kFrom...});
#endif
}

// Lanes whose number lacks the bit kStep come from a, the others from b: of each, those that lack it
// (kHigh 0) or have it (kHigh 1).
template <int kStep, int kHigh, int... kLane>
inline Ints merge(Ints a, Ints b, std::integer_sequence<int, kLane...>) {
  return pick<(kLane & kStep ? kLanes + kLane - kStep : kLane) + kHigh * kStep...>(a, b);
}

template <int kStep>
inline void transpose_step(Ints (&rows)[kLanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Ints a = rows[i], b = rows[i + kStep];
    rows[i] = merge<kStep, 0>(a, b, lanes);
    rows[i + kStep] = merge<kStep, 1>(a, b, lanes);
  }
}

inline void transpose(Ints (&rows)[kLanes]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  if constexpr (kLanes >= 8) transpose_step<4>(rows);
  if constexpr (kLanes >= 16) transpose_step<8>(rows);
}

// A register of floats to a row, of which `count` exist.
inline void store_row(float* row, Vec v, int64_t count) {
  if (count >= kLanes) {
    store(row, v);
    return;
  }
  for (int i = 0; i < count; ++i) row[i] = v[i];
}

// The same to a row of bf16, rounded to nearest even.
inline void store_row(uint16_t* row, Vec v, int64_t count) {
  Unsigned bits = (Unsigned)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(bits, Halves);
  if (count >= kLanes) {
    std::memcpy(row, &halves, sizeof halves);
    return;
  }
  for (int i = 0; i < count; ++i) row[i] = halves[i];
}

// Rows of `dim` elements, `stride` elements apart.
template <class T>
struct Rows {
  const T* data;
  int64_t stride, dim;
  const T* at(int64_t row) const { return data + row * stride; }
};

// Items [begin, end) of a tile, multiples of 32.
struct Span {
  int64_t begin, end;
};

inline Vec load_whole(const float* p) { return load(p); }

inline Vec load_whole(const uint16_t* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  return (Vec)(__builtin_convertvector(halves, Unsigned) << 16);
}

// A register of elements of a row from `column` on, 0 from `dim` on.
template <class T>
inline Vec load_row(const T* row, int64_t column, int64_t dim) {
  if (column + kLanes <= dim) return load_whole(row + column);
  Vec v{};
  for (int i = 0; column + i < dim; ++i) v[i] = to_float(row[column + i]);
  return v;
}

}  // namespace rec_jax
