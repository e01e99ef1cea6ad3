// Products of bf16 on vector registers that multiply pairs of them (AVX512-BF16), twice as many at
// once as of f32. Sums are f32.
#pragma once

#include "engine_vector.h"

#if defined(__AVX512BF16__)

namespace rec_jax {

// What `multiply` multiplies: two bf16 a lane, whose products are added.
struct Doubles {
  using Element = int32_t;
  using Lanes = __m512bh;
  static __m512bh load(const int32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Vec add(Vec sum, int32_t a, __m512bh b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), b);
  }
};

// A left side, `[depth][rows]`; see ByRow.
struct ByColumn {
  const int32_t* data;
  int64_t depth_step;
  static constexpr int64_t row = 1;
  template <int>
  const int32_t* strip(int64_t first) const { return data + first; }
  template <int>
  int64_t step() const { return depth_step; }
};

// 32 elements of a row from `column` on, 0 from `dim` on, as 16 pairs.
inline Ints load_pairs(const uint16_t* row, int64_t column, int64_t dim) {
  const int64_t count = std::clamp<int64_t>(dim - column, 0, 32);
  const __mmask32 mask = count == 32 ? ~__mmask32{} : (__mmask32{1} << count) - 1;
  return (Ints)_mm512_maskz_loadu_epi16(mask, row + column);
}

// Sixteen floats, rounded to nearest even, in the lower halves of the lanes.
inline Ints to_bf16(Vec v) {
  return (Ints)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
}

// Queries and items are multiplied as they are; the other products are those of f32.
struct PairScores : VectorEngine<uint16_t, uint16_t> {
  static int64_t query_bytes(int64_t width) { return width * 32 * 2; }

  // [width / 2][32 queries] of pairs
  static void pack_queries(Rows<uint16_t> rows, int64_t count, int64_t width, void* packed) {
    pack_by_lane(count, width / 32, static_cast<int32_t*>(packed), [&](int q, int64_t step) {
      return load_pairs(rows.at(q), step * 32, rows.dim);
    });
  }

  static int64_t tile_bytes(int64_t size, int64_t width) { return size * width * 2; }

  // [size][width / 2] of pairs
  static void pack_tile(Rows<uint16_t> rows, int64_t count, int64_t size, int64_t width,
                        void* packed) {
    int32_t* out = static_cast<int32_t*>(packed);
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < width; k += 32)
        store_int(out + (j * width + k) / 2,
                  j < count ? load_pairs(rows.at(j), k, rows.dim) : Ints{});
  }

  static void score(const void* queries, const void* tile, int64_t, int64_t width, Span span,
                    float* scores) {
    multiply<false, Doubles>(
        scores + span.begin * 32, 32,
        ByRow<int32_t>{static_cast<const int32_t*>(tile) + span.begin * width / 2, width / 2},
        span.end - span.begin, {static_cast<const int32_t*>(queries), 32, width / 2}, 1, 0);
  }
};

// Weights are rounded to bf16, too.
struct PairEngine : PairScores {
  static int64_t values_bytes(int64_t size, int64_t width) { return size * width * 2; }

  // [size / 2][width] of pairs of rows
  static void pack_values(Rows<uint16_t> rows, int64_t count, int64_t size, int64_t width,
                          void* packed) {
    int32_t* out = static_cast<int32_t*>(packed);
    const auto bits = [&](int64_t j, int64_t k) {
      return j < count ? (Ints)load_row(rows.at(j), k, rows.dim) : Ints{};
    };
    for (int64_t j = 0; j < size; j += 2)
      for (int64_t k = 0; k < width; k += 16)
        store_int(out + j / 2 * width + k,
                  (Ints)_mm512_srli_epi32((__m512i)bits(j, k), 16) | bits(j + 1, k));
  }

  static int64_t side_bytes(int64_t width) { return values_bytes(32, width); }

  static void pack_side(Rows<uint16_t> rows, int64_t count, int64_t width, void* packed) {
    pack_values(rows, count, 32, width, packed);
  }

  static int64_t weights_bytes(int64_t size, int64_t steps) { return size * steps * 32 * 2; }

  template <class Weight>
  static void fold_items(const void* values, int64_t, int64_t width, Span span,
                         const float* scores, void* weights, float* expected,
                         const Weight& weight) {
    int32_t* p = static_cast<int32_t*>(weights);  // [size / 2][32] of pairs of items
    for (int64_t j = span.begin; j < span.end; j += 2) {
      for (int half = 0; half < 2; ++half) {
        const float* at = scores + j * 32 + half * 16;
        const Ints low = to_bf16(weight(j, half, load(at)));
        const Ints high = to_bf16(weight(j + 1, half, load(at + 32)));
        store_int(p + j / 2 * 32 + half * 16, low | (high << 16));
      }
    }
    multiply<true, Doubles>(
        expected, 32, ByColumn{static_cast<const int32_t*>(values) + span.begin / 2 * width, width},
        width, {p + span.begin / 2 * 32, 32, (span.end - span.begin) / 2}, 1, 0);
  }

  // [size][room * 16] of pairs of queries
  template <class Weight>
  static void pack_weights(const float* scores, int64_t, Span span, int64_t step, int64_t room,
                           void* weights, const Weight& weight) {
    uint16_t* p = static_cast<uint16_t*>(weights) + step * 32;
    for (int64_t j = span.begin; j < span.end; ++j) {
      for (int half = 0; half < 2; ++half) {
        const Vec w = weight(j, half, load(scores + j * 32 + half * 16));
        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)w);
        std::memcpy(p + j * room * 32 + half * 16, &rounded, sizeof rounded);
      }
    }
  }

  static void fold_queries(const void* weights, const void* side, int64_t, Span span,
                           int64_t steps, int64_t room, int64_t width, float* grad) {
    const int64_t row = room * 16;
    multiply<true, Doubles>(
        grad + span.begin * width, width,
        ByRow<int32_t>{static_cast<const int32_t*>(weights) + span.begin * row, row},
        span.end - span.begin, {static_cast<const int32_t*>(side), width, steps * 16}, width / 32,
        32);
  }
};

}  // namespace rec_jax

#endif
