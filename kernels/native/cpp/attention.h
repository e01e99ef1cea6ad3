// Softmax attention within segments, forward and backward, without an array of queries x keys.
//
// Rows are packed with several histories; a query sees the keys of its own segment, and if
// `causal` none behind its place. Blocks of keys that a group of queries cannot see cost nothing.
// Forward and backward are those of flash attention (Dao et al., 2022) with all keys in one tile:
//   p = exp(scale q.k - log_total)      dv = p^T g            ds = p (g.v - g.out)
//   dq = scale ds k                     dk = scale ds^T q
#pragma once

#include <cmath>

#include "fold.h"

namespace rec_jax {

constexpr int64_t kFew = 4;  // queries of a row that attend one by one

struct AttentionShape {
  int64_t batch, heads, queries, keys, dim;
  bool causal;
  float scale;
  template <class Engine>
  int64_t width() const { return round_up(dim, Engine::kUnit); }
  int64_t size() const { return round_up(keys, 32); }
  int64_t groups() const { return ceil_div(queries, kGroup); }
};

// own, places `[B, C]` of the queries, segments `[B, L]` of the keys.
struct Segments {
  const int32_t *own, *segments, *places;
};

// An array `[B, length, width]` whose columns from `column` on are heads `[heads, dim]`, so that
// queries, keys and values may lie side by side in one.
template <class T>
struct Wide {
  T* data;
  int64_t length, width, column;
  T* at(int64_t b, int64_t row, int64_t head, int64_t dim) const {
    return data + (b * length + row) * width + column + head * dim;
  }
  Rows<std::remove_const_t<T>> rows(int64_t b, int64_t first, int64_t head, int64_t dim) const {
    return {at(b, first, head, dim), width, dim};
  }
};

// What a group of 32 queries of one batch row may see, by blocks of 32 keys. Lanes behind the last
// query see what it sees, and nobody asks for what they get.
class View {
 public:
  View(const AttentionShape& a, const Segments& s, int64_t b, int64_t group)
      : segments_(s.segments + b * a.keys), keys_(a.keys), causal_(a.causal) {
    for (int64_t q = 0; q < kGroup; ++q) {
      const int64_t i = b * a.queries + std::min(group * kGroup + q, a.queries - 1);
      own_[q / kLanes][q % kLanes] = s.own[i];
      places_[q / kLanes][q % kLanes] = s.places[i];
      first_place_ = std::min(first_place_, s.places[i]);
      last_place_ = std::max(last_place_, s.places[i]);
      of_one_ = of_one_ && s.own[i] == own_[0][0];
    }
  }

  // The blocks from the first to the last of which any key is seen.
  Span span() const {
    Span found = {0, 0};
    for (int64_t start = 0; start < keys_; start += 32) {
      if (!sees_any(start)) continue;
      if (found.end == 0) found.begin = start;
      found.end = start + 32;
    }
    return found;
  }

  // scores [size][32] of raw products, in place: -inf where the key is not seen. Their maxima, of
  // which the backward pass has no need.
  void hide(Span span, float* scores, Vec (&most)[kPieces]) const {
    for (int piece = 0; piece < kPieces; ++piece) most[piece] = splat(kLowest);
    for (int64_t start = span.begin; start < span.end; start += 32) {
      const bool all = sees_all(start);
      for (int64_t j = start; j < start + 32; ++j) {
        for (int piece = 0; piece < kPieces; ++piece) {
          float* at = scores + j * kGroup + piece * kLanes;
          Vec s = load(at);
          if (!all) {
            s = (j < keys_ ? sees(j, piece) : Ints{}) ? s : splat(-kInfinity);
            store(at, s);
          }
          most[piece] = max(s, most[piece]);
        }
      }
    }
  }

 private:
  // All bits of a lane are set if its query sees key j < keys.
  Ints sees(int64_t j, int piece) const {
    Ints seen = own_[piece] == segments_[j];
    return causal_ ? seen & (places_[piece] >= int32_t(j)) : seen;
  }

  bool sees_any(int64_t start) const {
    if (causal_ && start > last_place_) return false;
    const Ints none{};
    for (int64_t j = start; j < std::min(start + 32, keys_); ++j) {
      Ints any{};
      for (int piece = 0; piece < kPieces; ++piece) any |= sees(j, piece);
      if (std::memcmp(&any, &none, sizeof none) != 0) return true;
    }
    return false;
  }

  bool sees_all(int64_t start) const {
    if (!of_one_ || start + 32 > keys_ || (causal_ && first_place_ < start + 31)) return false;
    bool all = true;
    for (int64_t j = start; j < start + 32; ++j) all &= segments_[j] == own_[0][0];
    return all;
  }

  const int32_t* segments_;
  int64_t keys_;
  bool causal_;
  Ints own_[kPieces], places_[kPieces];
  int32_t first_place_ = INT32_MAX, last_place_ = INT32_MIN;
  bool of_one_ = true;
};

// [width][32 queries] times `factor` to rows of one head.
template <class T>
void store_group(const float* columns, int64_t width, Vec (&factor)[kPieces], int64_t count, int64_t dim,
                 T* rows, int64_t stride) {
  for (int piece = 0; piece < kPieces; ++piece) {
    for (int64_t k = 0; k < width && k < dim; k += kLanes) {
      Ints block[kLanes];
      for (int i = 0; i < kLanes; ++i)
        block[i] = (Ints)(load(columns + (k + i) * kGroup + piece * kLanes) * factor[piece]);
      transpose(block);
      for (int q = 0; q < kLanes && piece * kLanes + q < count; ++q)
        store_row(rows + (piece * kLanes + q) * stride + k, (Vec)block[q], dim - k);
    }
  }
}

// The same for one query, row by row: to pack all keys for it would cost many times more.
// scores: room for a number a key. Returns the log-normaliser.
template <class T>
float attend_alone(const AttentionShape& a, Rows<T> q, Rows<T> k, Rows<T> v, const int32_t* segments,
                   int32_t own, int32_t place, float* scores, T* out) {
  const int64_t end = a.causal ? std::min<int64_t>(a.keys, int64_t(place) + 1) : a.keys;
  float m = kLowest;
  for (int64_t j = 0; j < end; ++j) {
    Vec products{};
    for (int64_t c = 0; c < a.dim; c += kLanes)
      products += load_row(q.at(0), c, a.dim) * load_row(k.at(j), c, a.dim);
    scores[j] = segments[j] == own ? sum(products) * a.scale : -kInfinity;
    m = std::max(m, scores[j]);
  }
  std::fill(scores + std::max<int64_t>(end, 0), scores + a.size(), -kInfinity);
  Vec totals{};
  for (int64_t j = 0; j < end; j += kLanes) {
    const Vec p = exp(load(scores + j) - m);
    store(scores + j, p);
    totals += p;
  }
  const float total = sum(totals), factor = total > 0 ? 1 / total : 0;
  for (int64_t c = 0; c < a.dim; c += kLanes) {
    Vec mixed{};
    for (int64_t j = 0; j < end; ++j) mixed += scores[j] * load_row(v.at(j), c, a.dim);
    store_row(out + c, mixed * factor, a.dim - c);
  }
  return total > 0 ? m + std::log(total) : kInfinity;
}

// out `[B, C, h c]`, log_total `[B, h, C]`.
template <class Engine, class T>
void attention_forward(Threads& pool, const AttentionShape& a, Wide<const T> q,
                       Wide<const T> k, Wide<const T> v, Segments segments, Wide<T> out,
                       float* log_total) {
  const int64_t width = a.template width<Engine>(), size = a.size();
  parallel_for(pool, a.batch * a.heads, [&](int64_t unit) {
    const int64_t b = unit / a.heads, h = unit % a.heads;
    Buffer keys(Engine::tile_bytes(size, width)), values(Engine::values_bytes(size, width));
    Buffer queries(Engine::query_bytes(width)), sums(width * kGroup * 4);
    Buffer scores_buffer(size * kGroup * 4), weights(Engine::weights_bytes(size, 1));
    float *scores = scores_buffer.at<float>(), *o = sums.at<float>();
    if (a.queries <= kFew) {
      for (int64_t i = 0; i < a.queries; ++i)
        log_total[(b * a.heads + h) * a.queries + i] = attend_alone(
            a, q.rows(b, i, h, a.dim), k.rows(b, 0, h, a.dim), v.rows(b, 0, h, a.dim),
            segments.segments + b * a.keys, segments.own[b * a.queries + i],
            segments.places[b * a.queries + i], scores, out.at(b, i, h, a.dim));
      return;
    }
    Engine::enter();
    Engine::pack_tile(k.rows(b, 0, h, a.dim), a.keys, size, width, keys.at());
    Engine::pack_values(v.rows(b, 0, h, a.dim), a.keys, size, width, values.at());
    for (int64_t g = 0; g < a.groups(); ++g) {
      const int64_t first = g * kGroup, count = std::min(kGroup, a.queries - first);
      const View view(a, segments, b, g);
      const Span span = view.span();
      Engine::pack_queries(q.rows(b, first, h, a.dim), count, width, queries.at());
      Engine::score(queries.at(), keys.at(), size, width, span, scores);
      Vec m[kPieces], total[kPieces] = {};
      view.hide(span, scores, m);
      std::fill_n(o, width * kGroup, 0.0f);
      Engine::fold_items(values.at(), size, width, span, scores, weights.at(), o,
                         [&](int64_t, int piece, Vec s) {
                           Vec p = exp(a.scale * (s - m[piece]));
                           total[piece] += p;
                           return p;
                         });
      Vec factor[kPieces];
      for (int piece = 0; piece < kPieces; ++piece)
        for (int i = 0; i < kLanes; ++i) factor[piece][i] = total[piece][i] > 0 ? 1 / total[piece][i] : 0;
      store_group(o, width, factor, count, a.dim, out.at(b, first, h, a.dim), out.width);
      for (int64_t i = 0; i < count; ++i) {
        const float sum = total[i / kLanes][i % kLanes];
        // A query that sees nothing has weights 0 in the backward pass, too.
        log_total[(b * a.heads + h) * a.queries + first + i] =
            sum > 0 ? a.scale * m[i / kLanes][i % kLanes] + std::log(sum) : kInfinity;
      }
    }
    Engine::leave();
  });
}

// What the backward pass gets. log_total `[B, h, C]`.
template <class T>
struct AttentionKept {
  Wide<const T> q, k, v, out, gradient;
  const float* log_total;
};

template <class Engine, class T>
void attention_backward(Threads& pool, const AttentionShape& a,
                        const AttentionKept<T>& kept, Segments segments, Wide<T> dq, Wide<T> dk,
                        Wide<T> dv) {
  const int64_t width = a.template width<Engine>(), size = a.size();
  parallel_for(pool, a.batch * a.heads, [&](int64_t unit) {
    const int64_t b = unit / a.heads, h = unit % a.heads;
    Buffer keys(Engine::tile_bytes(size, width)), values(Engine::tile_bytes(size, width));
    Buffer key_values(Engine::values_bytes(size, width));
    Buffer queries(Engine::query_bytes(width)), gradients(Engine::query_bytes(width));
    Buffer query_side(Engine::side_bytes(width)), gradient_side(Engine::side_bytes(width));
    Buffer scores_buffer(2 * size * kGroup * 4), weights(Engine::weights_bytes(size, 1));
    Buffer sums((2 * size + kGroup) * width * 4);
    float *p = scores_buffer.at<float>(), *ds = p + size * kGroup;
    float *of_keys = sums.at<float>(), *of_values = of_keys + size * width;
    float* of_queries = of_values + size * width;
    std::fill_n(of_keys, 2 * size * width, 0.0f);
    Engine::enter();
    Engine::pack_tile(kept.k.rows(b, 0, h, a.dim), a.keys, size, width, keys.at());
    Engine::pack_values(kept.k.rows(b, 0, h, a.dim), a.keys, size, width, key_values.at());
    Engine::pack_tile(kept.v.rows(b, 0, h, a.dim), a.keys, size, width, values.at());
    for (int64_t g = 0; g < a.groups(); ++g) {
      const int64_t first = g * kGroup, count = std::min(kGroup, a.queries - first);
      const View view(a, segments, b, g);
      const Span span = view.span();
      const Rows<T> q = kept.q.rows(b, first, h, a.dim), out = kept.out.rows(b, first, h, a.dim);
      const Rows<T> gradient = kept.gradient.rows(b, first, h, a.dim);
      Engine::pack_queries(q, count, width, queries.at());
      Engine::pack_side(q, count, width, query_side.at());
      Engine::pack_queries(gradient, count, width, gradients.at());
      Engine::pack_side(gradient, count, width, gradient_side.at());
      Vec log_total[kPieces], mean[kPieces], most[kPieces];
      for (int64_t i = 0; i < kGroup; ++i) {
        Vec products{};
        for (int64_t c = 0; i < count && c < a.dim; c += kLanes)
          products += load_row(gradient.at(i), c, a.dim) * load_row(out.at(i), c, a.dim);
        mean[i / kLanes][i % kLanes] = sum(products);
        log_total[i / kLanes][i % kLanes] =
            i < count ? kept.log_total[(b * a.heads + h) * a.queries + first + i] : kInfinity;
      }
      Engine::score(queries.at(), keys.at(), size, width, span, p);
      view.hide(span, p, most);
      Engine::score(gradients.at(), values.at(), size, width, span, ds);
      for (int64_t j = span.begin; j < span.end; ++j) {
        for (int piece = 0; piece < kPieces; ++piece) {
          const int64_t at = j * kGroup + piece * kLanes;
          const Vec weight = exp(a.scale * load(p + at) - log_total[piece]);
          store(p + at, weight);
          store(ds + at, weight * (load(ds + at) - mean[piece]));
        }
      }
      const auto as_it_is = [](int64_t, int, Vec s) { return s; };
      Engine::pack_weights(p, size, span, 0, 1, weights.at(), as_it_is);
      Engine::fold_queries(weights.at(), gradient_side.at(), size, span, 1, 1, width, of_values);
      Engine::pack_weights(ds, size, span, 0, 1, weights.at(), as_it_is);
      Engine::fold_queries(weights.at(), query_side.at(), size, span, 1, 1, width, of_keys);
      std::fill_n(of_queries, width * kGroup, 0.0f);
      Engine::fold_items(key_values.at(), size, width, span, ds, weights.at(), of_queries,
                         as_it_is);
      Vec factor[kPieces];
      std::fill_n(factor, kPieces, splat(a.scale));
      store_group(of_queries, width, factor, count, a.dim, dq.at(b, first, h, a.dim), dq.width);
    }
    Engine::leave();
    for (int64_t j = 0; j < a.keys; ++j) {
      for (int64_t c = 0; c < a.dim; c += kLanes) {
        store_row(dk.at(b, j, h, a.dim) + c, load(of_keys + j * width + c) * a.scale, a.dim - c);
        store_row(dv.at(b, j, h, a.dim) + c, load(of_values + j * width + c), a.dim - c);
      }
    }
  });
}

}  // namespace rec_jax
