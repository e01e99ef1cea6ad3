// The feed-forward layer of a transformer: activation(x W1 + b1) W2 + b2. With swiglu, W1 is twice
// as wide: the first half, activated by silu, times the second.
//
// The columns of W1 are to a place what keys are to a query, and the rows of W2 what values are, with
// an activation in place of the softmax: the hidden layer of a group of places stays in the cache.
#pragma once

#include "attention.h"

namespace rec_jax {

enum class Activation : int32_t { kGelu = 0, kRelu = 1, kSilu = 2, kSwiglu = 3 };

// 1 / x, within 2e-7 of it.
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec near = (Vec)_mm512_rcp14_ps((__m512)x);
  return near * (2.0f - x * near);
#elif defined(__AVX__) && !defined(REC_JAX_WIDE)
  const Vec near = (Vec)_mm256_rcp_ps((__m256)x);
  return near * (2.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// x times the logistic function of y. Where exp(-y) would be inf the product is 0 in any case.
inline Vec gated(Vec x, Vec y) { return x * reciprocal(1.0f + exp(min(splat(88.0f), -y))); }

inline Vec activate(Activation kind, Vec x) {
  if (kind == Activation::kRelu) return x > 0 ? x : Vec{};
  if (kind == Activation::kSilu || kind == Activation::kSwiglu) return gated(x, x);
  // As jax.nn.gelu: x/2 (1 + tanh y) is x times the logistic function of 2 y.
  return gated(x, 1.5957691216057308f * (x + 0.044715f * x * x * x));
}

struct FeedForwardShape {
  int64_t places, dim, hidden;
};

// x `[N, d]`, up `[e, d]` (W1 transposed), up_bias `[e]`, down `[e, d]`, down_bias `[d]`;
// out `[N, d]`; before: what is activated, `[N, e]`, or null. With swiglu, `2 e` of up, its bias and
// `before`.
template <class Engine, class T>
void feed_forward(Threads& pool, FeedForwardShape s, Activation kind, const T* x,
                  const T* up, const float* up_bias, const T* down, const float* down_bias, T* out,
                  T* before) {
  const int64_t width = round_up(s.dim, Engine::kUnit), size = round_up(s.hidden, 32);
  const int64_t groups = ceil_div(s.places, kGroup), together = 2;
  const int64_t parts = kind == Activation::kSwiglu ? 2 : 1, stride = parts * s.hidden;
  const int64_t tile = Engine::tile_bytes(size, width);
  Buffer keys(parts * tile), values(Engine::values_bytes(size, width));
  // Added before what is kept, or while it is activated; columns that pad the hidden layer get 0.
  Buffer biases(2 * parts * size * 4);
  float *now = biases.at<float>(), *late = now + parts * size;
  std::fill_n(now, 2 * parts * size, 0.0f);
  for (int64_t part = 0; part < parts; ++part) {
    Engine::pack_tile({up + part * s.hidden * s.dim, s.dim, s.dim}, s.hidden, size, width,
                      keys.at(part * tile));
    std::copy_n(up_bias + part * s.hidden, s.hidden, (before ? now : late) + part * size);
  }
  Engine::pack_values({down, s.dim, s.dim}, s.hidden, size, width, values.at());
  parallel_for(pool, ceil_div(groups, together), [&](int64_t unit) {
    Buffer places(Engine::query_bytes(width)), sums(width * kGroup * 4);
    Buffer scores_buffer(parts * size * kGroup * 4), weights(Engine::weights_bytes(size, 1));
    float *scores = scores_buffer.at<float>(), *o = sums.at<float>();
    const float* other = scores + size * kGroup;  // the second half's, with swiglu
    const Span all = {0, size};
    Vec ones[kPieces];
    std::fill_n(ones, kPieces, splat(1));
    Engine::enter();
    for (int64_t g = unit * together; g < std::min(groups, (unit + 1) * together); ++g) {
      const int64_t first = g * kGroup, count = std::min(kGroup, s.places - first);
      Engine::pack_queries({x + first * s.dim, s.dim, s.dim}, count, width, places.at());
      for (int64_t part = 0; part < parts; ++part) {
        float* own = scores + part * size * kGroup;
        Engine::score(places.at(), keys.at(part * tile), size, width, all, own);
        if (before == nullptr) continue;
        for (int64_t j = 0; j < s.hidden; ++j)
          for (int piece = 0; piece < kPieces; ++piece) {
            float* at = own + j * kGroup + piece * kLanes;
            store(at, load(at) + now[part * size + j]);
          }
        store_group(own, size, ones, count, s.hidden, before + first * stride + part * s.hidden,
                    stride);
      }
      for (int64_t k = 0; k < width; ++k)
        for (int piece = 0; piece < kPieces; ++piece)
          store(o + k * kGroup + piece * kLanes, splat(k < s.dim ? down_bias[k] : 0));
      if (parts == 1)
        Engine::fold_items(values.at(), size, width, all, scores, weights.at(), o,
                           [&](int64_t j, int, Vec h) { return activate(kind, h + late[j]); });
      else
        Engine::fold_items(values.at(), size, width, all, scores, weights.at(), o,
                           [&](int64_t j, int piece, Vec h) {
                             const Vec times = load(other + j * kGroup + piece * kLanes) + late[size + j];
                             return activate(kind, h + late[j]) * times;
                           });
      store_group(o, width, ones, count, s.dim, out + first * s.dim, s.dim);
    }
    Engine::leave();
  });
}

}  // namespace rec_jax
