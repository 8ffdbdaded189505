// cluster_penalty and its gradient on CUDA. Nothing here waits for the device.
#include "clusterability_kernels.cuh"
#include "lists.h"

namespace modfast {
namespace {

std::tuple<Tensor, Tensor> cluster_penalty(const Tensors& weights, const Tensor& labels,
                                           double scale) {
  constexpr const char* op = "cluster_penalty";
  const std::vector<Weight> list = read_weights(op, weights, labels, weights.size());
  const OnDevice device(op, weights[0]);
  const TileSums partial(list, weights[0]);
  for_each_dtype(list, [&](auto zero, Dtype dtype) {
    using T = decltype(zero);
    for_each_list<T, TileList<1>>(
        list, dtype, [&](TileList<1>::Item& item, size_t i) { item.partial = partial.of(i); },
        [&](const TileList<1>& items) {
          launch("cluster_sums", &cluster_sums<T>, items.n_tiles, device.stream(), items);
        });
  });
  const int64_t n = static_cast<int64_t>(list.size());
  Tensor sums = empty_beside(weights[0], {n, 2}, aoti_torch_dtype_float64());
  double* s = static_cast<double*>(sums.data_ptr());
  partial.collect(s, device.stream());

  const auto make_value = [&](auto zero, int32_t dtype) {
    using Value = decltype(zero);
    Tensor value = empty_beside(weights[0], {}, dtype);
    launch("penalty_value", &penalty_value<Value>, 1, device.stream(), s, n, scale,
           static_cast<Value*>(value.data_ptr()));
    return value;
  };
  return {any_double(list) ? make_value(double{}, aoti_torch_dtype_float64())
                     : make_value(float{}, aoti_torch_dtype_float32()),
          sums};
}

DeviceNumber read_number(const char* op, const char* name, const Tensor& number,
                         const Tensor& beside) {
  const ScalarType dtype = number.scalar_type();
  MODFAST_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, name,
                " must be float32 or float64, got ", torch::headeronly::toString(dtype));
  MODFAST_CHECK(number.numel() == 1, op, name, " must be one number, got ", number.numel());
  MODFAST_CHECK(same_device(number, beside), op, name, " must be on the weights' device");
  return DeviceNumber{number.data_ptr(), dtype == ScalarType::Double};
}

Tensors cluster_penalty_backward(const Tensor& grad, const Tensors& weights,
                                 const Tensor& labels, const Tensor& sums, double scale) {
  constexpr const char* op = "cluster_penalty_backward";
  const std::vector<Weight> list = read_weights(op, weights, labels, weights.size());
  const double* s = read_sums(op, sums, weights, weights.size()).data;
  const DeviceNumber factor = read_number(op, "grad", grad, weights[0]);
  const OnDevice device(op, weights[0]);
  Tensors gradients;
  gradients.reserve(list.size());
  for (const Tensor& weight : weights) gradients.push_back(new_like(weight));
  for_each_dtype(list, [&](auto zero, Dtype dtype) {
    using T = decltype(zero);
    for_each_list<T, TileList<2>>(
        list, dtype,
        [&](TileList<2>::Item& item, size_t i) {
          item.arrays[1] = gradients[i].data_ptr();
          item.sums = s + 2 * i;
        },
        [&](const TileList<2>& items) {
          launch("penalty_gradient", &penalty_gradient<T>, items.n_tiles, device.stream(), items,
                 factor, scale);
        });
  });
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("cluster_penalty", TORCH_BOX(&cluster_penalty));
  m.impl("cluster_penalty_backward", TORCH_BOX(&cluster_penalty_backward));
}

}  // namespace modfast
