// Arguments of the ablation sweeps, read from tensors and checked.
#pragma once

#include <optional>
#include <string>

#include "abi.h"
#include "math/ablation.h"

namespace modfast {

inline void check_matrix(const char* op, const char* name, const Tensor& tensor, int64_t rows,
                         int64_t cols, const Tensor& logits) {
  MODFAST_CHECK(tensor.dim() == 2 && tensor.is_contiguous(), op, name,
                " must be contiguous and of 2 dimensions");
  MODFAST_CHECK(tensor.size(0) == rows && tensor.size(1) == cols, op, name, " must have shape [", rows,
                ", ", cols, "], got [", tensor.size(0), ", ", tensor.size(1), "]");
  MODFAST_CHECK(tensor.scalar_type() == logits.scalar_type(), op, name, " must be ",
                logits.scalar_type() == ScalarType::Float ? "float32" : "float64",
                ", as logits, got ", torch::headeronly::toString(tensor.scalar_type()));
  MODFAST_CHECK(same_device(tensor, logits), op, name, " must be on the device of logits");
}

// All but the values of the targets. `halves`: of bfloat16 and float16 too.
inline void check_sweep(const char* op, const Tensor& logits, const Tensor& scales,
                        const std::optional<Tensor>& targets, bool halves = false) {
  const Dtype dtype = float_dtype(logits, op, "logits", 0);
  MODFAST_CHECK(halves || dtype == Dtype::float32 || dtype == Dtype::float64, op,
                "logits must be float32 or float64");
  MODFAST_CHECK(logits.dim() == 2 && scales.dim() == 2, op,
                "logits and scales must have 2 dimensions");
  check_matrix(op, "logits", logits, logits.size(0), logits.size(1), logits);
  check_matrix(op, "scales", scales, logits.size(0), scales.size(1), logits);
  MODFAST_CHECK(logits.size(1) > 0, op, "logits must have at least one class");
  MODFAST_CHECK(!targets || (targets->scalar_type() == ScalarType::Long && targets->dim() == 1 &&
                             targets->is_contiguous() && targets->size(0) == logits.size(0) &&
                             same_device(*targets, logits)),
                op, "targets must be int64 of shape [", logits.size(0), "], contiguous, beside logits");
}

inline void check_logit_terms(const char* op, const Tensor& logits, const Tensor& ablated,
                              const std::optional<Tensor>& targets) {
  check_sweep(op, logits, logits, targets, true);
  MODFAST_CHECK(ablated.dim() == 3 && ablated.is_contiguous() && ablated.size(1) == logits.size(0) &&
                    ablated.size(2) == logits.size(1) && ablated.scalar_type() == logits.scalar_type() &&
                    same_device(ablated, logits),
                op, "ablated must be [a, ", logits.size(0), ", ", logits.size(1), "], contiguous, as logits");
}

// Their values, where they can be read.
inline void check_targets(const char* op, const int64_t* targets, int64_t n, int64_t n_classes) {
  for (int64_t i = 0; i < n; ++i) {
    MODFAST_CHECK(targets[i] >= 0 && targets[i] < n_classes, op, "targets[", i, "] must be from 0 to ",
                  n_classes - 1, ", got ", targets[i]);
  }
}

inline void check_hidden(const char* op, const Tensor& logits, const Tensor& hidden,
                         const Tensor& scales, const Tensor& updates, const Tensor& weight) {
  MODFAST_CHECK(hidden.dim() == 2, op, "hidden must have 2 dimensions");
  const int64_t n_hidden = hidden.size(1);
  check_matrix(op, "hidden", hidden, logits.size(0), n_hidden, logits);
  check_matrix(op, "updates", updates, scales.size(1), n_hidden, logits);
  check_matrix(op, "weight", weight, logits.size(1), n_hidden, logits);
}

inline Activation read_activation(const char* op, const std::string& activation) {
  int kind = 0;
  while (kind < kNumActivations && activation != kActivations[kind]) ++kind;
  MODFAST_CHECK(kind < kNumActivations, op,
                "activation must be one of identity, relu, tanh, sigmoid, silu, gelu, gelu_tanh, got '",
                activation, "'");
  return static_cast<Activation>(kind);
}

}  // namespace modfast
