// Arguments of greedy pruning, read from tensors and checked.
#pragma once

#include <algorithm>
#include <optional>

#include "abi.h"

namespace modfast {

inline void check_integers(const char* op, const char* name, const Tensor& tensor, const Tensor& inputs) {
  MODFAST_CHECK(tensor.is_contiguous() && tensor.dim() == 1 && tensor.scalar_type() == ScalarType::Long &&
                    same_device(tensor, inputs),
                op, name, " must be int64 of 1 dimension, contiguous, on the device of inputs");
}

inline void check_layer(const char* op, const char* name, size_t index, const Tensor& tensor,
                        const Tensor& inputs, const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes();
  MODFAST_CHECK(tensor.is_contiguous() && same_device(tensor, inputs) &&
                    std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()),
                op, name, "[", index,
                "] must be contiguous on the device of inputs, and fit the other tensors' shapes");
  MODFAST_CHECK(tensor.scalar_type() == inputs.scalar_type(), op, name, "[", index,
                "] must have the dtype of inputs");
}

// But for the values of the sizes.
inline void check_samples(const char* op, const Tensor& inputs, const Tensor& sizes) {
  const Dtype dtype = float_dtype(inputs, op, "inputs", 0);
  MODFAST_CHECK(dtype == Dtype::float32 || dtype == Dtype::float64, op, "inputs must be float32 or float64");
  MODFAST_CHECK(inputs.dim() == 2 && inputs.is_contiguous(), op,
                "inputs must be contiguous and of 2 dimensions");
  check_integers(op, "sizes", sizes, inputs);
  MODFAST_CHECK(sizes.numel() > 0, op, "sizes must not be empty");
}

// Of `n_samples` of inputs, by what the tensors hold.
inline void check_sizes(const char* op, const int64_t* sizes, int64_t n_groups, int64_t n_samples) {
  int64_t n = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    MODFAST_CHECK(sizes[g] > 0, op, "sizes[", g, "] must be at least 1, got ", sizes[g]);
    n += sizes[g];
  }
  MODFAST_CHECK(n == n_samples, op, "sizes must add up to the samples of inputs, ", n_samples, ", got ", n);
}

// What is given besides the samples, but for the values of the integers. How many classes there are.
inline int64_t check_network(const char* op, const Tensor& inputs, const Tensors& weights,
                             const Tensors& biases, const Tensor& targets, const Tensor& order,
                             const std::optional<Tensor>& original, int64_t n_groups) {
  check_integers(op, "targets", targets, inputs);
  check_integers(op, "order", order, inputs);
  MODFAST_CHECK(targets.numel() == inputs.size(0), op, "targets must be as many as inputs, ", inputs.size(0),
                ", got ", targets.numel());
  MODFAST_CHECK(!weights.empty() && weights.size() == biases.size(), op,
                "weights must not be empty, and biases must be as many, got ", weights.size(), " and ",
                biases.size());
  int64_t n_in = inputs.size(1);
  for (size_t m = 0; m < weights.size(); ++m) {
    MODFAST_CHECK(weights[m].dim() == 3 && weights[m].size(1) > 0, op, "weights[", m,
                  "] must have 3 dimensions and an output");
    const int64_t n_out = weights[m].size(1);
    check_layer(op, "weights", m, weights[m], inputs, {n_groups, n_out, n_in});
    check_layer(op, "biases", m, biases[m], inputs, {n_groups, n_out});
    n_in = n_out;
  }
  MODFAST_CHECK(!original || (original->is_contiguous() && original->dim() == 1 &&
                              original->size(0) == n_groups &&
                              original->scalar_type() == ScalarType::Double && same_device(*original, inputs)),
                op, "original must be float64 of shape [", n_groups, "], contiguous, on the device of inputs");
  return n_in;
}

inline void check_range(const char* op, const char* name, const int64_t* values, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; ++i) {
    MODFAST_CHECK(values[i] >= 0 && values[i] < limit, op, name, "[", i, "] must be from 0 to ", limit - 1,
                  ", got ", values[i]);
  }
}

}  // namespace modfast
