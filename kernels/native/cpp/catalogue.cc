// What XLA calls for scores of items: the folds of `fold.h`, ranks and best items.

#include "best.h"
#include "calls.h"
#include "pairs.h"
#include "rank.h"

namespace rec_jax {
namespace {

ffi::Error softmax_forward(ffi::ThreadPool lent, bool use_amx, float softcap,
                           ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale, Floats bias,
                           Integer num_items, Integer offset, Ids targets, ffi::Result<Floats> m,
                           ffi::Result<Floats> sum, ffi::Result<Floats> expected,
                           ffi::Result<Floats> moment, ffi::Result<Floats> of_moment) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    const Sums out = {m->typed_data(), sum->typed_data(), or_null(expected), or_null(moment),
                      or_null(of_moment)};
    forward<decltype(engine)>(
        pool, arguments(q, w, queries, items, targets.typed_data(), rule), out);
  });
}

ffi::Error softmax_item_grad(ffi::ThreadPool lent, bool use_amx, float softcap,
                             ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale,
                             Floats bias, Integer num_items, Integer offset, Ids targets,
                             Floats lse, Floats weight, Floats label_weight, Floats log_weight,
                             ffi::Result<Floats> grad, ffi::Result<Floats> grad_bias) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    const Side side = {lse.typed_data(), weight.typed_data(), label_weight.typed_data(),
                       log_weight.element_count() ? log_weight.typed_data() : nullptr};
    item_grad<decltype(engine)>(
        pool, arguments(q, w, queries, items, targets.typed_data(), rule), side,
        grad->typed_data(), or_null(grad_bias));
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

ffi::Error best_item_call(ffi::ThreadPool lent, bool use_amx, float softcap,
                          ffi::AnyBuffer queries, ffi::AnyBuffer items, Scalar scale, Floats bias,
                          Integer num_items, Integer offset, ffi::Result<Floats> best,
                          ffi::Result<Ids> ids) {
  Lent pool(lent);
  const Rule rule = rule_of(softcap, scale, bias, num_items, offset, items.dimensions()[0]);
  return dispatch<2>(use_amx, queries, items, [&](auto engine, auto* q, auto* w) {
    best_item<decltype(engine)>(pool, arguments(q, w, queries, items, nullptr, rule),
                                best->typed_data(), ids->typed_data());
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_softmax_forward, rec_jax::softmax_forward,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_softmax_item_grad, rec_jax::softmax_item_grad,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_label_scores, rec_jax::label_scores_call,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_best_item, rec_jax::best_item_call,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Ret<rec_jax::Floats>()
                                  .Ret<rec_jax::Ids>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_rank_count, rec_jax::rank_count_call,
                              xla::ffi::Ffi::Bind().REC_JAX_RULE.Arg<rec_jax::Floats>()
                                  .Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(rec_jax_sorted_pairs, rec_jax::sorted_pairs_call,
                              xla::ffi::Ffi::Bind()
                                  .Attr<int32_t>("unused")
                                  .Arg<rec_jax::Ids>()
                                  .Arg<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>()
                                  .Ret<rec_jax::Ids>());
