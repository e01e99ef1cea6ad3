// What XLA calls: types and shapes in, the folds of `fold.h` out.

#include "attention.h"
#include "engine_amx.h"
#include "engine_pairs.h"
#include "engine_vector.h"
#include "feed_forward.h"
#include "fold.h"
#include "id_map.h"
#include "pairs.h"
#include "rank.h"
#include "xla/ffi/api/ffi.h"

namespace rec_jax {
namespace {

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

bool amx() {
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

Rule rule_of(float softcap, const Scalar& scale, const Floats& bias, const Integer& num_items,
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

ffi::Error softmax_forward(ffi::ThreadPool lent, bool use_amx, float softcap,
                           ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale, Floats bias,
                           Integer num_items, Integer offset, Ids targets, ffi::Result<Floats> m,
                           ffi::Result<Floats> sum, ffi::Result<Floats> expected) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    const Sums out = {m->typed_data(), sum->typed_data(),
                      expected->element_count() ? expected->typed_data() : nullptr};
    forward<decltype(engine)>(
        pool, arguments(q, w, queries, items, targets.typed_data(), rule), out);
  });
}

ffi::Error softmax_item_grad(ffi::ThreadPool lent, bool use_amx, float softcap,
                             ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale,
                             Floats bias, Integer num_items, Integer offset, Ids targets,
                             Floats lse, Floats weight, Floats label_weight,
                             ffi::Result<Floats> grad, ffi::Result<Floats> grad_bias) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    const Side side = {lse.typed_data(), weight.typed_data(), label_weight.typed_data()};
    item_grad<decltype(engine)>(
        pool, arguments(q, w, queries, items, targets.typed_data(), rule), side,
        grad->typed_data(),
        grad_bias->element_count() ? grad_bias->typed_data() : nullptr);
  });
}

ffi::Error label_scores_call(ffi::ThreadPool lent, bool use_amx, float softcap,
                             ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale,
                             Floats bias, Integer num_items, Integer offset, Ids targets,
                             ffi::Result<Floats> out) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    label_scores<decltype(engine)>(
        pool, arguments(q, w, queries, items, targets.typed_data(), rule), out->typed_data());
  });
}

ffi::Error rank_count_call(ffi::ThreadPool lent, bool use_amx, float softcap,
                           ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale, Floats bias,
                           Integer num_items, Integer offset, Floats least, Ids pair_queries,
                           Ids pair_items, ffi::Result<Ids> out) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  const Pairs pairs = {pair_queries.typed_data(), pair_items.typed_data(),
                       int64_t(pair_items.element_count())};
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    rank_count<decltype(engine)>(pool, arguments(q, w, queries, items, nullptr, rule),
                                 least.typed_data(), pairs, out->typed_data());
  });
}

AttentionShape shape_of(bool causal, int64_t heads, int64_t dim, const ffi::AnyBuffer& q,
                        const ffi::AnyBuffer& k) {
  return {q.dimensions()[0], heads, q.dimensions()[1], k.dimensions()[1], dim, causal,
          1.0f / std::sqrt(float(dim))};
}

template <class T>
Wide<const T> wide(const ffi::AnyBuffer& buffer, int64_t column) {
  return {static_cast<const T*>(buffer.untyped_data()), buffer.dimensions()[1],
          buffer.dimensions()[2], column};
}

template <class T>
Wide<T> wide(ffi::Result<ffi::AnyBuffer>& buffer, int64_t column) {
  return {static_cast<T*>(buffer->untyped_data()), buffer->dimensions()[1],
          buffer->dimensions()[2], column};
}

ffi::Error attention_forward_call(ffi::ThreadPool lent, bool use_amx, bool causal, int64_t heads,
                                  int64_t dim, int64_t q_at, int64_t k_at, int64_t v_at,
                                  ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ids own,
                                  Ids segments, Ids places, ffi::Result<ffi::AnyBuffer> out,
                                  ffi::Result<Floats> log_total) {
  Lent pool(lent);
  const Segments who = {own.typed_data(), segments.typed_data(), places.typed_data()};
  const AttentionShape shape = shape_of(causal, heads, dim, q, k);
  return dispatch<3>(use_amx, q, q, [&](auto engine, auto* one, auto* other) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(one)>>;
    if constexpr (std::is_same_v<decltype(one), decltype(other)>)
      attention_forward<decltype(engine)>(pool, shape, wide<T>(q, q_at), wide<T>(k, k_at),
                                          wide<T>(v, v_at), who, wide<T>(out, 0),
                                          log_total->typed_data());
  });
}

// With `joint`, dq is `[B, L, width]` of q, k and v side by side, and dk and dv are empty.
ffi::Error attention_backward_call(ffi::ThreadPool lent, bool use_amx, bool causal, int64_t heads,
                                   int64_t dim, int64_t q_at, int64_t k_at, int64_t v_at,
                                   bool joint, ffi::AnyBuffer q, ffi::AnyBuffer k,
                                   ffi::AnyBuffer v, Ids own, Ids segments, Ids places,
                                   ffi::AnyBuffer out, ffi::AnyBuffer gradient, Floats log_total,
                                   ffi::Result<ffi::AnyBuffer> dq, ffi::Result<ffi::AnyBuffer> dk,
                                   ffi::Result<ffi::AnyBuffer> dv) {
  Lent pool(lent);
  const Segments who = {own.typed_data(), segments.typed_data(), places.typed_data()};
  const AttentionShape shape = shape_of(causal, heads, dim, q, k);
  return dispatch<3>(use_amx, q, q, [&](auto engine, auto* one, auto* other) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(one)>>;
    if constexpr (std::is_same_v<decltype(one), decltype(other)>)
      attention_backward<decltype(engine), T>(
          pool, shape,
          {wide<T>(q, q_at), wide<T>(k, k_at), wide<T>(v, v_at), wide<T>(out, 0),
           wide<T>(gradient, 0), log_total.typed_data()},
          who, wide<T>(dq, q_at), wide<T>(joint ? dq : dk, k_at), wide<T>(joint ? dq : dv, v_at));
  });
}

ffi::Error feed_forward_call(ffi::ThreadPool lent, bool use_amx, int32_t activation,
                             ffi::AnyBuffer x, ffi::AnyBuffer up, Floats up_bias,
                             ffi::AnyBuffer down, Floats down_bias,
                             ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> before) {
  Lent pool(lent);
  const FeedForwardShape shape = {x.dimensions()[0], x.dimensions()[1], down.dimensions()[0]};
  return dispatch<3>(use_amx, x, x, [&](auto engine, auto* one, auto* other) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(one)>>;
    if constexpr (std::is_same_v<decltype(one), decltype(other)>)
      feed_forward<decltype(engine), T>(
          pool, shape, Activation(activation), one, static_cast<const T*>(up.untyped_data()),
          up_bias.typed_data(), static_cast<const T*>(down.untyped_data()), down_bias.typed_data(),
          static_cast<T*>(out->untyped_data()),
          before->element_count() ? static_cast<T*>(before->untyped_data()) : nullptr);
  });
}

ffi::Error sorted_pairs_call(int32_t unused, Ids queries, Ids items, ffi::Result<Ids> out_queries,
                             ffi::Result<Ids> out_items) {
  sorted_pairs(queries.typed_data(), items.typed_data(), items.element_count(), unused,
               out_queries->typed_data(), out_items->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rec_jax

extern "C" int rec_jax_has_amx() { return rec_jax::amx(); }

extern "C" int64_t rec_jax_peak_scratch() {
  return rec_jax::Buffer::peak().exchange(rec_jax::Buffer::held());
}

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_softmax_forward, rec_jax::softmax_forward,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_label_scores, rec_jax::label_scores_call,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_rank_count, rec_jax::rank_count_call,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_softmax_item_grad, rec_jax::softmax_item_grad,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>());

#define REC_JAX_ATTENTION             \
  Ctx<xla::ffi::ThreadPool>()         \
      .Attr<bool>("amx")              \
      .Attr<bool>("causal")           \
      .Attr<int64_t>("heads")         \
      .Attr<int64_t>("dim")           \
      .Attr<int64_t>("q_at")          \
      .Attr<int64_t>("k_at")          \
      .Attr<int64_t>("v_at")

#define REC_JAX_ATTENDED              \
  Arg<xla::ffi::AnyBuffer>()          \
      .Arg<xla::ffi::AnyBuffer>()     \
      .Arg<xla::ffi::AnyBuffer>()     \
      .Arg<rec_jax::Ids>()            \
      .Arg<rec_jax::Ids>()            \
      .Arg<rec_jax::Ids>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_attention_forward, rec_jax::attention_forward_call,
                              xla::ffi::Ffi::Bind().REC_JAX_ATTENTION.REC_JAX_ATTENDED
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_attention_backward, rec_jax::attention_backward_call,
                              xla::ffi::Ffi::Bind().REC_JAX_ATTENTION.Attr<bool>("joint")
                                  .REC_JAX_ATTENDED.Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rec_jax::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_sorted_pairs, rec_jax::sorted_pairs_call,
                              xla::ffi::Ffi::Bind()
                                  .Attr<int32_t>("unused")
                                  .Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_feed_forward, rec_jax::feed_forward_call,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Attr<bool>("amx")
                                  .Attr<int32_t>("activation")
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rec_jax::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());
