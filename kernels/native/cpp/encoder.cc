// What XLA calls for attention and feed-forward layers.

#include "attention.h"
#include "calls.h"
#include "feed_forward.h"

namespace rec_jax {
namespace {

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

}  // namespace
}  // namespace rec_jax

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
