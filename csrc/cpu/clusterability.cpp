// cluster_penalty and its gradient on the CPU.
#include "../math/clusterability.h"

#include "../math/number.h"
#include "large.h"
#include "parallel.h"
#include "simd.h"
#include "stream.h"

namespace modfast {

struct ClusterabilityKernels {
  void (*sums[kDtypes])(const void*, const int32_t*, const int32_t*, int64_t, Tile, double*);
  void (*gradient[kDtypes])(const void*, const int32_t*, const int32_t*, int64_t, Tile, Slopes, bool,
                            void*);
};

}  // namespace modfast

#define MODFAST_KERNELS "clusterability_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const ClusterabilityKernels* kTables[] = MODFAST_TABLES;

std::tuple<Tensor, Tensor> cluster_penalty(const Tensors& weights, const Tensor& labels,
                                           double scale) {
  constexpr const char* op = "cluster_penalty";
  const std::vector<Weight> list = read_weights(op, weights, labels, weights.size());
  const ClusterabilityKernels& kernels = at_level(kTables);
  TileSums partial(list);
  for_each_tile(list, [&](size_t i, int64_t tile, int64_t running) {
    const Weight& w = list[i];
    kernels.sums[static_cast<int>(w.dtype)](w.data, w.rows, w.cols, w.tiling.n_cols,
                                            Tile::at(w.tiling, tile), partial.at(running));
  });
  const int64_t n = static_cast<int64_t>(list.size());
  Tensor sums = empty_beside(weights[0], {n, 2}, aoti_torch_dtype_float64());
  double* s = static_cast<double*>(sums.data_ptr());
  partial.collect(list, s, list.size());

  double value = 0.0;
  for (int64_t i = 0; i < n; ++i) value += clusterability(s[2 * i], s[2 * i + 1]);
  const bool is_double = any_double(list);
  Tensor result = empty_beside(
      weights[0], {}, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
  if (is_double) {
    *static_cast<double*>(result.data_ptr()) = scale * value;
  } else {
    *static_cast<float*>(result.data_ptr()) = static_cast<float>(scale * value);
  }
  return {result, sums};
}

Tensors cluster_penalty_backward(const Tensor& grad, const Tensors& weights,
                                 const Tensor& labels, const Tensor& sums, double scale) {
  constexpr const char* op = "cluster_penalty_backward";
  const std::vector<Weight> list = read_weights(op, weights, labels, weights.size());
  const double* s = read_sums(op, sums, weights, weights.size()).data;
  scale *= number(grad, op, "grad");

  Tensors gradients;
  std::vector<void*> out;
  std::vector<bool> streamed;
  gradients.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t bytes = weights[i].numel() * static_cast<int64_t>(weights[i].element_size());
    streamed.push_back(bytes >= kStreamBytes);
    gradients.push_back(bytes >= kLargeBytes ? large_like(weights[i], bytes) : new_like(weights[i]));
    out.push_back(gradients.back().data_ptr());
  }
  const ClusterabilityKernels& kernels = at_level(kTables);
  for_each_tile(list, [&](size_t i, int64_t tile, int64_t) {
    const Weight& w = list[i];
    kernels.gradient[static_cast<int>(w.dtype)](
        w.data, w.rows, w.cols, w.tiling.n_cols, Tile::at(w.tiling, tile),
        penalty_slopes(s[2 * i], s[2 * i + 1], scale), streamed[i], out[i]);
    if (streamed[i]) stream_fence();
  });
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) {
  m.impl("cluster_penalty", TORCH_BOX(&cluster_penalty));
  m.impl("cluster_penalty_backward", TORCH_BOX(&cluster_penalty_backward));
}

}  // namespace modfast
