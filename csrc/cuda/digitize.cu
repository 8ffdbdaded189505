// digitize and digitize_edges on CUDA.
#include "../notebook_edges.h"
#include "digitizer.h"

namespace modfast {
namespace {

// f(V) as a constant: values at a time.
template <class T, class F>
void with_pack(const void* x, const F& f) {
  if (aligned(x)) {
    f(std::integral_constant<int, kPack<T>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

template <class T>
void launch_limits(const Values& values, bool each, void* keys, cudaStream_t stream) {
  using Key = key_t<compute_t<T>>;
  with_pack<T>(values.data, [&](auto v) {
    constexpr int V = decltype(v)::value;
    const Walk walk = Walk::of(values.size(), each ? values.d : 1, V, each);
    launch("digitize", each ? &find_limits<T, V, true> : &find_limits<T, V, false>,
           blocks_for(walk.size), stream, static_cast<const T*>(values.data), walk,
           static_cast<Key*>(keys));
  });
}

// Rules of edges made in double.
void set_wide_rules(const Tensor& given, Dtype dtype, DeviceRules& rules, cudaStream_t stream) {
  const int64_t n = rules.range.size(0);
  const int bins = rules.bins;
  if (n == 0) return;
  std::vector<double> wide(2 * n);
  copy_to_host("digitize", wide.data(), given.data_ptr(), 2 * n * sizeof(double), stream);
  std::vector<float> thresholds = wide_thresholds(wide.data(), n, bins, dtype);
  std::vector<float> limits(wide.begin(), wide.end()), ends;
  rules.looked_up = true;
  for (int64_t r = 0; r < n; ++r) {
    const float* t = &thresholds[r * bins];
    rules.looked_up &= NotebookBins<float>::of(t[0], t[bins - 1], bins).direct(t, bins);
    ends.insert(ends.end(), {t[0], t[bins - 1]});
  }
  // Edges may be equal: what lies below the first is not raised to it.
  for (int64_t r = 0; r < n && !rules.looked_up; ++r) {
    ends[2 * r] = thresholds[r * bins] = -std::numeric_limits<float>::infinity();
  }
  copy_to_device("digitize", rules.thresholds.mutable_data_ptr(), thresholds.data(),
                 thresholds.size() * sizeof(float), stream);
  float* range = static_cast<float*>(rules.range.mutable_data_ptr());
  copy_to_device("digitize", range, ends.data(), ends.size() * sizeof(float), stream);
  launch("digitize", &make_rules<float>, (n + kThreads - 1) / kThreads, stream,
         static_cast<const key_t<float>*>(nullptr), static_cast<const float*>(range), n, bins - 1,
         range, static_cast<UniformBins<float>*>(rules.uniform.mutable_data_ptr()));
  copy_to_device("digitize", range, limits.data(), limits.size() * sizeof(float), stream);
}

template <class C>
void set_rules(const void* keys, const std::optional<Tensor>& given, bool notebook,
               DeviceRules& rules, cudaStream_t stream) {
  const int64_t n = rules.range.size(0);
  launch("digitize", &make_rules<C>, (n + kThreads - 1) / kThreads, stream,
         static_cast<const key_t<C>*>(keys),
         given ? static_cast<const C*>(given->data_ptr()) : nullptr, n, rules.bins,
         static_cast<C*>(rules.range.mutable_data_ptr()),
         static_cast<UniformBins<C>*>(rules.uniform.mutable_data_ptr()));
  if (!notebook || n == 0) return;
  std::vector<C> limits(2 * n);
  copy_to_host("digitize", limits.data(), rules.range.data_ptr(), 2 * n * sizeof(C), stream);
  const std::vector<C> thresholds = notebook_thresholds(limits.data(), n, rules.bins);
  copy_to_device("digitize", rules.thresholds.mutable_data_ptr(), thresholds.data(),
                 thresholds.size() * sizeof(C), stream);
}

std::tuple<Tensor, Tensor, Tensor> digitize(const Tensor& x, int64_t bins,
                                            const std::optional<Tensor>& range, bool per_column,
                                            const std::string& rule) {
  constexpr const char* op = "digitize";
  const Values values = read_values(op, "x", x);
  const OnDevice device(op, x);
  const cudaStream_t stream = device.stream();
  const DeviceRules rules = find_rules(op, x, values, bins, range, per_column, rule, stream);
  const bool wide = bins > kMaxByteBins, each = rules.range.size(0) > 1;
  Tensor codes = empty_beside(x, {values.n, values.d}, code_dtype(wide));
  Tensor not_finite = empty_beside(x, {values.d}, aoti_torch_dtype_int64());
  zero(op, not_finite.mutable_data_ptr(), values.d * sizeof(int64_t), stream);
  with_type(values.dtype, [&](auto type) {
    using T = decltype(type);
    with_pack<T>(values.data, [&](auto v) {
      constexpr int V = decltype(v)::value;
      const Walk walk = Walk::of(values.size(), each ? values.d : 1, V, each);
      launch(op, each ? &write_codes<T, V, true> : &write_codes<T, V, false>, blocks_for(walk.size),
             stream, static_cast<const T*>(values.data), walk, rules.as<compute_t<T>>(), values.d,
             wide, codes.mutable_data_ptr(),
             static_cast<unsigned long long*>(not_finite.mutable_data_ptr()));
    });
  });
  return {codes, rules.range, not_finite};
}

Tensor digitize_edges(const Tensor& x, const Tensor& edges) {
  constexpr const char* op = "digitize_edges";
  const Values values = read_values(op, "x", x);
  const bool wide = read_edges(op, x, values, edges);
  const OnDevice device(op, x);
  Tensor codes = empty_beside(x, {values.n, values.d}, code_dtype(wide));
  with_type(values.dtype, [&](auto type) {
    using T = decltype(type);
    with_pack<T>(values.data, [&](auto v) {
      constexpr int V = decltype(v)::value;
      launch(op, &write_edge_codes<T, V>, blocks_for(values.size()), device.stream(),
             static_cast<const T*>(values.data),
             Walk::of(values.size(), edges.size(0) > 1 ? values.d : 1, V, true),
             static_cast<const compute_t<T>*>(edges.data_ptr()), static_cast<int>(edges.size(1)),
             wide, codes.mutable_data_ptr());
    });
  });
  return {codes};
}

}  // namespace

DeviceRules find_rules(const char* op, const Tensor& x, const Values& values, int64_t bins,
                       const std::optional<Tensor>& range, bool per_column, const std::string& rule,
                       cudaStream_t stream) {
  const int n_bins = read_bins(op, "bins", bins);
  const bool notebook = read_notebook(op, rule);
  const int64_t n = read_range(op, x, values, range, per_column);
  const int64_t rule_size = values.is_double() ? sizeof(UniformBins<double>) / sizeof(double)
                                               : sizeof(UniformBins<float>) / sizeof(float);
  const int32_t type = values.compute_code();
  DeviceRules rules{empty_beside(x, {n, 2}, type), empty_beside(x, {n, rule_size}, type),
                    empty_beside(x, {notebook || is_wider(range, values) ? n : 0, bins}, type), n_bins};
  if (is_wider(range, values)) {
    set_wide_rules(*range, values.dtype, rules, stream);
    return rules;
  }
  Tensor keys = empty_beside(x, {range ? 0 : n, 2}, type);
  if (!range) {
    zero(op, keys.mutable_data_ptr(), keys.numel() * keys.element_size(), stream);
    with_type(values.dtype, [&](auto type) {
      launch_limits<decltype(type)>(values, per_column, keys.mutable_data_ptr(), stream);
    });
  }
  values.is_double() ? set_rules<double>(keys.data_ptr(), range, notebook, rules, stream)
                     : set_rules<float>(keys.data_ptr(), range, notebook, rules, stream);
  return rules;
}

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("digitize", TORCH_BOX(&digitize));
  m.impl("digitize_edges", TORCH_BOX(&digitize_edges));
}

}  // namespace modfast
