// What XLA calls has in common: its types, its threads, and the engine for the types of its arrays.
#pragma once

#include "engine_amx.h"
#include "engine_pairs.h"
#include "engine_vector.h"
#include "fold.h"
#include "xla/ffi/api/ffi.h"

namespace rec_jax {

namespace ffi = xla::ffi;

// The threads of XLA's own pool.
class Lent : public Threads {
 public:
  explicit Lent(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t count() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> work) override { pool_.Schedule(std::move(work)); }

 private:
  ffi::ThreadPool& pool_;
};

using Floats = ffi::Buffer<ffi::F32>;
using Ids = ffi::Buffer<ffi::S32>;
using Scalar = ffi::BufferR0<ffi::F32>;
using Integer = ffi::BufferR0<ffi::S32>;

inline bool amx() {
#ifdef REC_JAX_AMX
  return amx_permitted();
#else
  return false;
#endif
}

// Calls run(engine, query pointer, item pointer) with the types of the buffers. kParts: of weights
// of f32, see `engine_amx.h`.
template <int kParts, class Run>
ffi::Error dispatch(bool use_amx, const ffi::AnyBuffer& queries, const ffi::AnyBuffer& items,
                    const Run& run) {
  auto with_types = [&](auto* query, auto* item) {
    using Query = std::remove_pointer_t<decltype(query)>;
    using Item = std::remove_pointer_t<decltype(item)>;
    const Query* q = static_cast<const Query*>(queries.untyped_data());
    const Item* w = static_cast<const Item*>(items.untyped_data());
    // Of bf16 alone, what is not a catalogue's sum is asked for no more exactly than bf16.
    constexpr bool of_bf16 = sizeof(Query) == 2 && sizeof(Item) == 2;
    [[maybe_unused]] constexpr bool coarse = of_bf16 && kParts == 3;
#ifdef REC_JAX_AMX
    if (use_amx) {
      run(AmxEngine<Query, Item, coarse ? 1 : kParts>{}, q, w);
      return;
    }
#endif
#ifdef __AVX512BF16__
    if constexpr (of_bf16) {
      run(std::conditional_t<coarse, PairEngine, PairScores>{}, q, w);
      return;
    }
#endif
    run(VectorEngine<Query, Item>{}, q, w);
  };
  if (use_amx && !amx()) return ffi::Error::InvalidArgument("this CPU has no AMX");
  const bool query_f32 = queries.element_type() == ffi::F32;
  const bool item_f32 = items.element_type() == ffi::F32;
  float* f = nullptr;
  uint16_t* b = nullptr;
  if (query_f32 && item_f32) with_types(f, f);
  if (query_f32 && !item_f32) with_types(f, b);
  if (!query_f32 && item_f32) with_types(b, f);
  if (!query_f32 && !item_f32) with_types(b, b);
  return ffi::Error::Success();
}

inline Rule rule_of(float softcap, const Scalar& scale, const Floats& bias, const Integer& num_items,
             const Integer& offset, int64_t num_rows) {
  Rule rule;
  rule.scale = *scale.typed_data();
  rule.bias = bias.element_count() ? bias.typed_data() : nullptr;
  rule.softcap = softcap;
  rule.offset = *offset.typed_data();
  rule.items = std::clamp<int64_t>(int64_t(*num_items.typed_data()) - rule.offset, 0, num_rows);
  return rule;
}

template <class Query, class Item>
Arguments<Query, Item> arguments(const Query* q, const Item* w, const ffi::AnyBuffer& queries,
                                 const ffi::AnyBuffer& items, const int32_t* targets, Rule rule) {
  return {q, w, targets, queries.dimensions()[0], items.dimensions()[0],
          items.dimensions()[1], rule};
}

// What is empty was not asked for.
inline float* or_null(ffi::Result<Floats>& buffer) {
  return buffer->element_count() ? buffer->typed_data() : nullptr;
}

}  // namespace rec_jax

#define REC_JAX_RULE                                                                           \
  Ctx<xla::ffi::ThreadPool>()                                                                  \
      .Attr<bool>("amx")                                                                       \
      .Attr<float>("softcap")                                                                  \
      .Arg<xla::ffi::AnyBuffer>()                                                              \
      .Arg<xla::ffi::AnyBuffer>()                                                              \
      .Arg<rec_jax::Scalar>()                                                                  \
      .Arg<rec_jax::Floats>()                                                                  \
      .Arg<rec_jax::Integer>()                                                                 \
      .Arg<rec_jax::Integer>()
