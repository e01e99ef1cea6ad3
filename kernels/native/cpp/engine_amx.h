// Products on AMX tiles: bf16 parts whose sum is the f32 number.
//
// x = x0 + x1 + x2, each a bf16, holds all 24 bits of a float. A score is the sum of the six
// products of parts that are not below its last bit. A weight and what it weighs have kMost parts:
// three, as a score has, or two and three products, with an error of 2^-17 a term that averages
// out over a catalogue. bf16 arguments are one part.
#pragma once

#if defined(REC_JAX_EMULATED_AMX)  // a header with tiles in memory, for tests
#include REC_JAX_EMULATED_AMX
#define REC_JAX_AMX 1
#elif defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define REC_JAX_AMX 1
#endif

#ifdef REC_JAX_AMX

#include "vector.h"

namespace rec_jax {

constexpr int64_t kTileBytes = 1024;  // 16 rows of 64 bytes

#ifdef REC_JAX_EMULATED_AMX
inline bool amx_permitted() { return true; }
#else
inline bool amx_permitted() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return permitted;
}
#endif

// The bf16 nearest to `x`, as a float, taken away from it.
inline Vec split_off(Vec& x) {
  Ints bits = (Ints)x;
  Vec part = (Vec)((bits + 0x7fff + ((bits >> 16) & 1)) & splat_int(int32_t(0xffff0000)));
  x -= part;
  return part;
}

// The same with ties away from zero, for weights: one operation in place of three.
inline Vec split_off_fast(Vec& x) {
  Vec part = (Vec)(((Ints)x + 0x8000) & splat_int(int32_t(0xffff0000)));
  x -= part;
  return part;
}

// Two bf16 a lane: `low` in the lower half.
inline Ints pair(Vec low, Vec high) {
  return (Ints)((Unsigned)low >> 16) | (Ints)high;
}

inline Ints pair_nearest(Vec low, Vec high) {
  return pair((Vec)((Ints)low + 0x8000), (Vec)(((Ints)high + 0x8000) & splat_int(int32_t(0xffff0000))));
}

// Where the tiles of an operand lie: base + part * of_part + block * of_block + k * of_k.
struct Tiles {
  const char* base;
  int64_t of_part, of_block, of_k;
};

// C (2 x 2 tiles of 16 x 16 f32) (+)= sum over k of A (2 blocks of rows) * B (2 blocks of columns).
template <int kPartsA, int kPartsB, bool kAdd>
inline void multiply_tiles(float* c, int64_t c_row, Tiles a, Tiles b, int64_t steps) {
  const int64_t row_bytes = c_row * 4;
  if (kAdd) {
    _tile_loadd(0, c, row_bytes);
    _tile_loadd(1, c + 16, row_bytes);
    _tile_loadd(2, c + 16 * c_row, row_bytes);
    _tile_loadd(3, c + 16 * c_row + 16, row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  constexpr int kMost = kPartsA > kPartsB ? kPartsA : kPartsB;
  // The smallest products first: they would not change a large sum one by one.
  for (int level = kMost - 1; level >= 0; --level) {
    for (int part = 0; part <= level; ++part) {
      if (part >= kPartsA || level - part >= kPartsB) continue;
      const char* left = a.base + part * a.of_part;
      const char* right = b.base + (level - part) * b.of_part;
      for (int64_t k = 0; k < steps; ++k) {
        _tile_loadd(4, left + k * a.of_k, 64);
        _tile_loadd(6, right + k * b.of_k, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + k * b.of_k + b.of_block, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + k * a.of_k + a.of_block, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, c, row_bytes);
  _tile_stored(1, c + 16, row_bytes);
  _tile_stored(2, c + 16 * c_row, row_bytes);
  _tile_stored(3, c + 16 * c_row + 16, row_bytes);
}

template <class T>
constexpr int parts_of() { return sizeof(T) == 4 ? 3 : 1; }

// See `fold.h` for what an engine has to offer. Widths and sizes are multiples of 32.
template <class Query, class Item, int kMost = 2>
struct AmxEngine {
  static constexpr int64_t kUnit = 32;
  static constexpr int kQuery = parts_of<Query>(), kItem = parts_of<Item>();
  static constexpr int kQuerySide = kQuery > kMost ? kMost : kQuery;
  static constexpr int kItemSide = kItem > kMost ? kMost : kItem;

  // A thread's tile configuration belongs to whoever used it before: it is put back.
  struct Saved {
    alignas(64) char bytes[64];
  };
  static Saved& saved() {
    static thread_local Saved config;
    return config;
  }

  static void enter() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = 16;
    }
    _tile_storeconfig(saved().bytes);
    _tile_loadconfig(&config);
  }

  static void leave() {
    if (saved().bytes[0]) {
      _tile_loadconfig(saved().bytes);
    } else {
      _tile_release();
    }
  }

  static int64_t query_bytes(int64_t width) { return kQuery * (width / 32) * 2 * kTileBytes; }

  // [part][k step][2 blocks] tiles of [16 pairs of k][16 queries]
  static void pack_queries(Rows<Query> rows, int64_t count, int64_t width, void* packed) {
    char* out = static_cast<char*>(packed);
    const int64_t steps = width / 32;
    for (int64_t step = 0; step < steps; ++step) {
      for (int block = 0; block < 2; ++block) {
        Ints pairs[kQuery][16];
        for (int q = 0; q < 16; ++q) {
          const int64_t at = block * 16 + q;
          Ints split[kQuery] = {};
          if (at < count) split_row<kQuery>(rows.at(at), step * 32, rows.dim, split);
          for (int part = 0; part < kQuery; ++part) pairs[part][q] = split[part];
        }
        for (int part = 0; part < kQuery; ++part) {
          transpose(pairs[part]);
          put(pairs[part], out + ((part * steps + step) * 2 + block) * kTileBytes);
        }
      }
    }
  }

  static int64_t side_bytes(int64_t width) { return kQuerySide * (width / 16) * kTileBytes; }

  // [part][width / 16] tiles of [16 pairs (q, q + 16)][16 columns]
  static void pack_side(Rows<Query> rows, int64_t count, int64_t width, void* packed) {
    char* out = static_cast<char*>(packed);
    for (int64_t column = 0; column < width; column += 16) {
      for (int q = 0; q < 16; ++q) {
        Vec low = q < count ? load_row(rows.at(q), column, rows.dim) : Vec{};
        Vec high = q + 16 < count ? load_row(rows.at(q + 16), column, rows.dim) : Vec{};
        for (int part = 0; part < kQuerySide; ++part) {
          Vec a = split_off(low), b = split_off(high);
          store_int(reinterpret_cast<int32_t*>(
                        out + (part * (width / 16) + column / 16) * kTileBytes + q * 64),
                    pair(a, b));
        }
      }
    }
  }

  static int64_t tile_bytes(int64_t size, int64_t width) { return kItem * size * width * 2; }

  // [part][size / 16][k step] tiles of [16 items][32 k]
  static void pack_tile(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                        void* packed) {
    char* out = static_cast<char*>(packed);
    const int64_t steps = width / 32;
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t step = 0; step < steps; ++step) {
        Ints split[kItem] = {};
        if (j < count) split_row<kItem>(rows.at(j), step * 32, rows.dim, split);
        for (int part = 0; part < kItem; ++part)
          store_int(reinterpret_cast<int32_t*>(
                        out + ((part * (size / 16) + j / 16) * steps + step) * kTileBytes +
                        j % 16 * 64),
                    split[part]);
      }
    }
  }

  static int64_t values_bytes(int64_t size, int64_t width) { return kItemSide * size * width * 2; }

  // [part][width / 16][size / 32] tiles of [16 columns][32 items]
  static void pack_values(Rows<Item> rows, int64_t count, int64_t size, int64_t width,
                          void* packed) {
    char* out = static_cast<char*>(packed);
    for (int64_t start = 0; start < size; start += 32) {
      for (int64_t column = 0; column < width; column += 16) {
        Ints pairs[kItemSide][16];
        for (int i = 0; i < 16; ++i) {
          const int64_t j = start + 2 * i;
          Vec low = j < count ? load_row(rows.at(j), column, rows.dim) : Vec{};
          Vec high = j + 1 < count ? load_row(rows.at(j + 1), column, rows.dim) : Vec{};
          for (int part = 0; part < kItemSide; ++part) {
            Vec a = split_off(low), b = split_off(high);
            pairs[part][i] = pair(a, b);
          }
        }
        for (int part = 0; part < kItemSide; ++part) {
          transpose(pairs[part]);
          put(pairs[part], out + ((part * (width / 16) + column / 16) * (size / 32) + start / 32) *
                               kTileBytes);
        }
      }
    }
  }

  static void score(const void* queries, const void* tile, int64_t size, int64_t width, Span span,
                    float* scores) {
    const int64_t steps = width / 32;
    const Tiles b = {static_cast<const char*>(queries), steps * 2 * kTileBytes, kTileBytes,
                     2 * kTileBytes};
    for (int64_t j = span.begin; j < span.end; j += 32) {
      const Tiles a = {static_cast<const char*>(tile) + j / 16 * steps * kTileBytes,
                       size / 16 * steps * kTileBytes, steps * kTileBytes, kTileBytes};
      multiply_tiles<kItem, kQuery, false>(scores + j * 32, 32, a, b, steps);
    }
  }

  static int64_t weights_bytes(int64_t size, int64_t steps) { return kMost * size * steps * 32 * 2; }

  // Weights as [part][2 blocks][size / 32] tiles of [16 pairs of items][16 queries].
  template <class Weight>
  static void fold_items(const void* values, int64_t size, int64_t width, Span span,
                         const float* scores, void* weights, float* expected,
                         const Weight& weight) {
    char* p = static_cast<char*>(weights);
    const int64_t of_block = size / 32 * kTileBytes;
    for (int64_t j = span.begin; j < span.end; j += 2) {
      for (int half = 0; half < 2; ++half) {
        Vec low = weight(j, half, load(scores + j * 32 + half * 16));
        Vec high = weight(j + 1, half, load(scores + (j + 1) * 32 + half * 16));
        char* at = p + half * of_block + j / 32 * kTileBytes + j % 32 / 2 * 64;
        put_weights(low, high, at, 2 * of_block);
      }
    }
    const int64_t skipped = span.begin / 32 * kTileBytes;
    const Tiles b = {p + skipped, 2 * of_block, of_block, kTileBytes};
    const char* base = static_cast<const char*>(values) + skipped;
    for (int64_t column = 0; column < width; column += 32) {
      const Tiles a = {base + column / 16 * of_block, width / 16 * of_block, of_block, kTileBytes};
      multiply_tiles<kItemSide, kMost, true>(expected + column * 32, 32, a, b,
                                         (span.end - span.begin) / 32);
    }
  }

  // Weights as [part][size / 16][room] tiles of [16 items][16 pairs (q, q + 16)].
  template <class Weight>
  static void pack_weights(const float* scores, int64_t size, Span span, int64_t step, int64_t room,
                           void* weights, const Weight& weight) {
    char* p = static_cast<char*>(weights);
    for (int64_t j = span.begin; j < span.end; ++j) {
      Vec low = weight(j, 0, load(scores + j * 32));
      Vec high = weight(j, 1, load(scores + j * 32 + 16));
      put_weights(low, high, p + (j / 16 * room + step) * kTileBytes + j % 16 * 64,
                  size / 16 * room * kTileBytes);
    }
  }

  static void fold_queries(const void* weights, const void* side, int64_t size, Span span,
                           int64_t steps, int64_t room, int64_t width, float* grad) {
    const int64_t of_part = size / 16 * room * kTileBytes;
    for (int64_t j = span.begin; j < span.end; j += 32) {
      const Tiles a = {static_cast<const char*>(weights) + j / 16 * room * kTileBytes, of_part,
                       room * kTileBytes, kTileBytes};
      for (int64_t column = 0; column < width; column += 32) {
        const Tiles b = {static_cast<const char*>(side) + column / 16 * kTileBytes,
                         width / 16 * kTileBytes, kTileBytes, side_bytes(width)};
        multiply_tiles<kMost, kQuerySide, true>(grad + j * width + column, width, a, b, steps);
      }
    }
  }

 private:
  // 32 elements of a row from `column` on, in parts; neighbours in one lane.
  template <int kParts, class T>
  static void split_row(const T* row, int64_t column, int64_t dim, Ints (&parts)[kParts]) {
    Vec first = load_row(row, column, dim), second = load_row(row, column + 16, dim);
    const Ints a = (Ints)first, b = (Ints)second;
    Vec low = (Vec)pick<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b);
    Vec high = (Vec)pick<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b);
    for (int part = 0; part < kParts; ++part) {
      Vec a = split_off(low), b = split_off(high);
      parts[part] = pair(a, b);
    }
  }

  static void put(const Ints (&rows)[16], char* out) {
    for (int i = 0; i < 16; ++i) store_int(reinterpret_cast<int32_t*>(out + i * 64), rows[i]);
  }

  static void put_weights(Vec low, Vec high, char* at, int64_t of_part) {
    for (int part = 0; part < kMost - 1; ++part) {
      Vec a = split_off_fast(low), b = split_off_fast(high);
      store_int(reinterpret_cast<int32_t*>(at + part * of_part), pair(a, b));
    }
    store_int(reinterpret_cast<int32_t*>(at + (kMost - 1) * of_part), pair_nearest(low, high));
  }
};

}  // namespace rec_jax

#endif
