// Products of f32 on vector registers: the engine of any CPU.
#pragma once

#include "vector.h"

namespace rec_jax {

// What `multiply` multiplies: one number a lane.
struct Singles {
  using Element = float;
  using Lanes = Vec;
  static Vec load(const float* p) { return rec_jax::load(p); }
  static Vec add(Vec sum, float a, Vec b) { return sum + a * b; }
};

// C[r][32] (+)= sum_k a(r, k) * B[k][32] for `rows` rows, a multiple of 8.
template <bool kAdd, class Of = Singles>
inline void multiply(float* c, int64_t c_row, const typename Of::Element* a, int64_t a_row,
                     int64_t a_k, const typename Of::Element* b, int64_t b_k, int64_t rows,
                     int64_t depth) {
  constexpr int kRows = 8;
  for (int64_t r = 0; r < rows; r += kRows) {
    Vec left[kRows], right[kRows];
    for (int i = 0; i < kRows; ++i) {
      left[i] = kAdd ? load(c + (r + i) * c_row) : Vec{};
      right[i] = kAdd ? load(c + (r + i) * c_row + 16) : Vec{};
    }
    const typename Of::Element* x = a + r * a_row;
    for (int64_t k = 0; k < depth; ++k) {
      const typename Of::Lanes b0 = Of::load(b + k * b_k), b1 = Of::load(b + k * b_k + 16);
      for (int i = 0; i < kRows; ++i) {
        const typename Of::Element factor = x[i * a_row + k * a_k];
        left[i] = Of::add(left[i], factor, b0);
        right[i] = Of::add(right[i], factor, b1);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      store(c + (r + i) * c_row, left[i]);
      store(c + (r + i) * c_row + 16, right[i]);
    }
  }
}

// Rows of 32 queries as [steps * 16][32] lanes; lanes(q, step): sixteen of query q, q < count.
template <class Lanes>
inline void pack_by_lane(int64_t count, int64_t steps, int32_t* out, const Lanes& lanes) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int half = 0; half < 2; ++half) {
      Ints block[16];
      for (int q = 0; q < 16; ++q)
        block[q] = half * 16 + q < count ? lanes(half * 16 + q, step) : Ints{};
      transpose(block);
      for (int i = 0; i < 16; ++i) store_int(out + (step * 16 + i) * 32 + half * 16, block[i]);
    }
  }
}

// See `fold.h` for what an engine has to offer.
template <class Query, class Item>
struct VectorEngine {
  static void enter() {}
  static void leave() {}

  static int64_t query_bytes(int64_t width) { return width * 32 * 4; }

  // [width][32 queries]
  static void pack_queries(Rows<Query> rows, int64_t count, int64_t width,
                           void* packed) {
    pack_by_lane(count, width / 16, static_cast<int32_t*>(packed), [&](int q, int64_t step) {
      return (Ints)load_row(rows.at(q), step * 16, rows.dim);
    });
  }

  static int64_t side_bytes(int64_t width) { return width * 32 * 4; }

  // [32 queries][width]
  static void pack_side(Rows<Query> rows, int64_t count, int64_t width, void* packed) {
    copy_rows(rows, count, 32, width, static_cast<float*>(packed));
  }

  static int64_t tile_bytes(int64_t size, int64_t width) { return size * width * 4; }

  // [size][width]
  static void pack_tile(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                        void* packed) {
    copy_rows(rows, count, size, width, static_cast<float*>(packed));
  }

  static int64_t values_bytes(int64_t size, int64_t width) { return size * width * 4; }

  // [size][width]
  static void pack_values(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                          void* packed) {
    copy_rows(rows, count, size, width, static_cast<float*>(packed));
  }

  static void score(const void* queries, const void* tile, int64_t size, int64_t width, Span span,
                    float* scores) {
    (void)size;
    multiply<false>(scores + span.begin * 32, 32, static_cast<const float*>(tile) + span.begin * width,
                    width, 1, static_cast<const float*>(queries), 32, span.end - span.begin, width);
  }

  static int64_t weights_bytes(int64_t size, int64_t steps) { return size * steps * 32 * 4; }

  template <class Weight>
  static void fold_items(const void* values, int64_t size, int64_t width, Span span,
                         const float* scores, void* weights, float* expected,
                         const Weight& weight) {
    (void)size;
    float* p = static_cast<float*>(weights);
    for (int64_t j = span.begin; j < span.end; ++j)
      for (int half = 0; half < 2; ++half)
        store(p + j * 32 + half * 16, weight(j, half, load(scores + j * 32 + half * 16)));
    multiply<true>(expected, 32, static_cast<const float*>(values) + span.begin * width, 1, width,
                   p + span.begin * 32, 32, width, span.end - span.begin);
  }

  template <class Weight>
  static void pack_weights(const float* scores, int64_t size, Span span, int64_t step, int64_t room,
                           void* weights, const Weight& weight) {
    (void)size;
    float* p = static_cast<float*>(weights) + step * 32;
    for (int64_t j = span.begin; j < span.end; ++j)
      for (int half = 0; half < 2; ++half)
        store(p + j * room * 32 + half * 16, weight(j, half, load(scores + j * 32 + half * 16)));
  }

  static void fold_queries(const void* weights, const void* side, int64_t size, Span span,
                           int64_t steps, int64_t room, int64_t width, float* grad) {
    (void)size;
    for (int64_t column = 0; column < width; column += 32)
      multiply<true>(grad + span.begin * width + column, width,
                     static_cast<const float*>(weights) + span.begin * room * 32, room * 32, 1,
                     static_cast<const float*>(side) + column, width, span.end - span.begin,
                     steps * 32);
  }

 private:
  template <class T>
  static void copy_rows(Rows<T> rows, int64_t count, int64_t size, int64_t width, float* out) {
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < width; k += 16)
        store(out + j * width + k, j < count ? load_row(rows.at(j), k, rows.dim) : Vec{});
  }
};

}  // namespace rec_jax
