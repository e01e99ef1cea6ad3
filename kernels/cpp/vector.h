// Sixteen floats at a time, in GCC's vector extensions: any CPU, one source.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace rec_jax {

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

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
#else
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
#endif

inline float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < 16; ++i) total += v[i];
  return total;
#endif
}

// As `xla_exp.py`: within 2e-7 + 8e-8 |x|, relative; 0 below -88, inf from 89 on; NaN stays.
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

// Lane i is lane from[i] of a, or lane from[i] - 16 of b.
inline Ints pick(Ints a, Ints b, Ints from) {
#if defined(__AVX512F__)
  return (Ints)_mm512_permutex2var_epi32((__m512i)a, (__m512i)from, (__m512i)b);
#else
  Ints out;
  for (int i = 0; i < 16; ++i) out[i] = from[i] < 16 ? a[from[i]] : b[from[i] - 16];
  return out;
#endif
}

template <int kStep>
inline void transpose_step(Ints (&rows)[16]) {
  Ints low, high;
  for (int lane = 0; lane < 16; ++lane) {
    low[lane] = lane & kStep ? 16 + lane - kStep : lane;
    high[lane] = lane & kStep ? 16 + lane : lane + kStep;
  }
  for (int i = 0; i < 16; ++i) {
    if (i & kStep) continue;
    Ints a = rows[i], b = rows[i + kStep];
    rows[i] = pick(a, b, low);
    rows[i + kStep] = pick(a, b, high);
  }
}

inline void transpose(Ints (&rows)[16]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  transpose_step<8>(rows);
}

// Sixteen floats to a row, of which `count` exist.
inline void store_row(float* row, Vec v, int64_t count) {
  if (count >= 16) {
    store(row, v);
    return;
  }
  for (int i = 0; i < count; ++i) row[i] = v[i];
}

// The same to a row of bf16, rounded to nearest even.
inline void store_row(uint16_t* row, Vec v, int64_t count) {
  Ints bits = (Ints)v;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  for (int i = 0; i < std::min<int64_t>(count, 16); ++i) row[i] = uint16_t(bits[i]);
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

// Sixteen elements of a row from `column` on, 0 from `dim` on.
template <class T>
inline Vec load_row(const T* row, int64_t column, int64_t dim) {
  Vec v;
  if (column + 16 <= dim) {
    for (int i = 0; i < 16; ++i) v[i] = to_float(row[column + i]);
  } else {
    v = Vec{};
    for (int i = 0; column + i < dim; ++i) v[i] = to_float(row[column + i]);
  }
  return v;
}

#if defined(__AVX512F__)
template <>
inline Vec load_row<uint16_t>(const uint16_t* row, int64_t column, int64_t dim) {
  if (column + 16 <= dim) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + column));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  }
  Vec v{};
  for (int i = 0; column + i < dim; ++i) v[i] = from_bf16(row[column + i]);
  return v;
}
#endif

template <>
inline Vec load_row<float>(const float* row, int64_t column, int64_t dim) {
  if (column + 16 <= dim) return load(row + column);
  Vec v{};
  for (int i = 0; column + i < dim; ++i) v[i] = row[column + i];
  return v;
}

}  // namespace rec_jax
