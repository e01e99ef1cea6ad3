// The instructions of AMX that `engine_amx.h` uses, on any CPU: eight tiles a thread, in memory.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>  // before its names are taken away below
#endif

namespace emulated {

struct Tile {
  unsigned char rows[16][64];
};

inline Tile& tile(int number) {
  static thread_local Tile tiles[8];
  return tiles[number];
}

inline float from_upper_half(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// to[m][n] += sum over k of a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1]
inline void multiply(Tile& to, const Tile& left, const Tile& right) {
  float sums[16][16];
  uint16_t a[16][32], b[16][32];
  std::memcpy(sums, to.rows, sizeof sums);
  std::memcpy(a, left.rows, sizeof a);
  std::memcpy(b, right.rows, sizeof b);
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 16; ++n)
        for (int i = 0; i < 2; ++i)
          sums[m][n] += from_upper_half(a[m][2 * k + i]) * from_upper_half(b[k][2 * n + i]);
  std::memcpy(to.rows, sums, sizeof sums);
}

inline void load(Tile& to, const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(to.rows[row], static_cast<const char*>(from) + row * stride, 64);
}

inline void store(const Tile& from, void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, from.rows[row], 64);
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) static_cast<void>(from)
#define _tile_storeconfig(to) std::memset(to, 0, 64)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(to) emulated::tile(to) = {}
#define _tile_loadd(to, from, stride) emulated::load(emulated::tile(to), from, stride)
#define _tile_stored(from, to, stride) emulated::store(emulated::tile(from), to, stride)
#define _tile_dpbf16ps(to, left, right) \
  emulated::multiply(emulated::tile(to), emulated::tile(left), emulated::tile(right))
