// From lists of weights to launches: as many weights in each as its parameters hold.
#pragma once

#include "../weights.h"
#include "device.h"
#include "tiles.cuh"

namespace modfast {

// Calls f(T{}, dtype) for each element type that occurs among the weights.
template <class F>
void for_each_dtype(const std::vector<Weight>& weights, const F& f) {
  bool occurs[kDtypes] = {};
  for (const Weight& w : weights) occurs[static_cast<int>(w.dtype)] = true;
  const auto call = [&](auto zero, Dtype dtype) {
    if (occurs[static_cast<int>(dtype)]) f(zero, dtype);
  };
  call(float{}, Dtype::float32);
  call(double{}, Dtype::float64);
  call(bfloat16{}, Dtype::bfloat16);
  call(float16{}, Dtype::float16);
}

// The tiles' sums of a list of weights, on the device, and their way into the operator's sums.
// Weights without labels have none.
class TileSums {
 public:
  TileSums(const std::vector<Weight>& weights, const Tensor& beside) : weights_(weights) {
    int64_t n_tiles = 0;
    for (const Weight& w : weights) {
      first_.push_back(n_tiles);
      if (w.labeled) n_tiles += w.tiling.n_tiles;
    }
    scratch_ = empty_beside(beside, {n_tiles, 2}, aoti_torch_dtype_float64());
    data_ = static_cast<double2*>(scratch_.data_ptr());
  }

  double2* of(size_t i) const { return weights_[i].labeled ? data_ + first_[i] : nullptr; }

  // sums: [n, 2], of the n weights with labels, which come first.
  void collect(double* sums, cudaStream_t stream) const {
    PartialSumsList list{};
    const auto flush = [&] {
      launch("collect_sums", &collect_sums, list.n_items, stream, list);
      list.n_items = 0;
    };
    for (size_t i = 0; i < weights_.size() && weights_[i].labeled; ++i) {
      list.items[list.n_items++] = PartialSums{of(i), weights_[i].tiling.n_tiles, sums + 2 * i};
      if (list.n_items == PartialSumsList::kItems) flush();
    }
    flush();
  }

 private:
  const std::vector<Weight>& weights_;
  std::vector<int64_t> first_;
  Tensor scratch_;
  double2* data_;
};

// Puts the weights of one element type T into lists and calls `run(list)` for each full one and the
// last. `fill(item, i)` sets what the operator adds: the arrays beside the weight, sums, the rule.
template <class T, class List, class Fill, class Run>
void for_each_list(const std::vector<Weight>& weights, Dtype dtype, const Fill& fill,
                   const Run& run) {
  static_assert(sizeof(List) <= kParameterBytes, "kernel parameters are limited");
  static_assert(List::kItems >= 16, "a launch for few weights costs more than it does");
  List list{};
  const auto flush = [&] {
    if (list.n_items > 0) run(list);
    list.n_items = 0;
    list.n_tiles = 0;
  };
  for (size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = weights[i];
    if (w.dtype != dtype || w.tiling.n_tiles == 0) continue;
    typename List::Item& item = list.items[list.n_items++];
    item.arrays[0] = w.data;
    item.rows = w.rows;
    item.cols = w.cols;
    item.tiling = w.tiling;
    item.first = list.n_tiles;
    fill(item, i);
    item.packed = w.tiling.n_cols % kPack<T> == 0 && aligned(w.cols);
    for (const void* array : item.arrays) item.packed = item.packed && aligned(array);
    list.n_tiles += w.tiling.n_tiles;
    if (list.n_items == List::kItems) flush();
  }
  flush();
}

}  // namespace modfast
