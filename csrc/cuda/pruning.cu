// Greedy pruning of the single weights of one layer on CUDA. The host waits for the integers alone: those
// that are out of range are refused, and the order says what to launch, a kernel for the visits of each unit
// and one in between.
#include "pruning_kernels.cuh"

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../pruning_arguments.h"
#include "device.h"

namespace modfast {
namespace {

constexpr const char* kOp = "prune_layer";

// Visits [first, end) of a unit.
struct Run {
  int64_t row, first, end;
};

void read_integers(const Tensor& tensor, cudaStream_t stream, std::vector<int64_t>& values) {
  values.resize(tensor.numel());
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(sizeof(int64_t));
  copy_to_host(kOp, values.data(), tensor.data_ptr(), bytes, stream);
}

// The order in runs of one unit, in which no weight comes twice. At least one, for the loss at first.
std::vector<Run> find_runs(const std::vector<int64_t>& order, int64_t n_out, int64_t n_in) {
  std::vector<int64_t> run_of(n_out * n_in, -1);
  std::vector<Run> runs;
  for (int64_t v = 0; v < static_cast<int64_t>(order.size()); ++v) {
    const int64_t row = order[v] / n_in, current = static_cast<int64_t>(runs.size()) - 1;
    if (v == 0 || row != runs.back().row || run_of[order[v]] == current) runs.push_back({row, v, v});
    run_of[order[v]] = static_cast<int64_t>(runs.size()) - 1;
    runs.back().end = v + 1;
  }
  if (runs.empty()) runs.push_back({0, 0, 0});
  return runs;
}

template <class T>
class Pruner {
 public:
  Pruner(const OnDevice& device, const Tensor& inputs, const Tensors& weights, const Tensors& biases,
         const Tensor& targets, const Tensor& order, const std::vector<int64_t>& sizes)
      : stream_(device.stream()), beside_(inputs) {
    const int64_t n = inputs.size(0), n_in = inputs.size(1), n_groups = static_cast<int64_t>(sizes.size());
    p_.n_samples = n;
    p_.n_groups = n_groups;
    p_.n_layers = static_cast<int64_t>(weights.size());
    p_.n_visits = order.numel();
    p_.inputs = read<T>(inputs);
    p_.targets = read<int64_t>(targets);
    p_.order = read<int64_t>(order);
    n_units_ = weights[0].size(1);
    std::vector<int64_t> groups, begins{0};
    for (int64_t g = 0; g < n_groups; ++g) {
      groups.insert(groups.end(), sizes[g], g);
      begins.push_back(begins.back() + sizes[g]);
    }
    p_.groups = copy_to<int64_t>(groups.data(), n);
    p_.begins = copy_to<int64_t>(begins.data(), n_groups + 1);
    p_.changed = make<uint8_t>(n_groups);
    p_.columns = make<T>(n_in * n);
    p_.weight = make<T>(weights[0].numel());
    p_.now = make<T>(n);
    p_.loss = make<T>(n);
    p_.next = make<T>(n);
    const int64_t n_fields = (p_.n_layers == 1 ? 1 : kRecent) * kPruningFields * n;
    p_.series = make<T>(n_fields);
    // A new series moves those before it on, which need not be any.
    zero(kOp, p_.series, n_fields * static_cast<int64_t>(sizeof(T)), stream_);
    read_layers(weights, biases);
    const int64_t n_weights = weights[0].numel(), n_tiles = parts_of(n, 32) * parts_of(n_in, 32);
    launch(kOp, &copy_numbers<T>, parts_of(n_weights, kThreads), stream_, read<T>(weights[0]), n_weights,
           p_.weight);
    launch(kOp, &turn_inputs<T>, parts_of(n_tiles, kWarps), stream_, p_);
    find_work();
  }

  std::tuple<Tensor, Tensor> run(const std::vector<Run>& runs, const std::optional<Tensor>& original,
                                 double threshold) {
    const int32_t float64 = aoti_torch_dtype_float64();
    Tensor margins = empty_beside(beside_, {p_.n_groups, p_.n_visits}, float64);
    Tensor losses = empty_beside(beside_, {p_.n_groups, p_.n_visits + 1}, float64);
    p_.original = original ? read<double>(*original) : nullptr;
    p_.threshold = threshold;
    p_.margins = static_cast<double*>(margins.data_ptr());
    p_.losses = static_cast<double*>(losses.data_ptr());
    const auto visit = p_.n_layers == 1 ? &visit_unit<T, true> : &visit_unit<T, false>;
    const Blocks blocks(p_.n_groups, shared_, kVisitThreads<T>);
    settle_units(0, n_units_, true);
    for (size_t i = 0; i < runs.size(); ++i) {
      if (i > 0) settle_units(runs[i - 1].row, runs[i - 1].row + 1, false);
      launch(kOp, visit, blocks, stream_, p_, runs[i].row, runs[i].first, runs[i].end);
    }
    return {margins, losses};
  }

 private:
  static int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

  template <class V>
  static const V* read(const Tensor& tensor) {
    return static_cast<const V*>(tensor.data_ptr());
  }

  // Memory for n numbers, that lives as long as this.
  template <class V>
  V* make(int64_t n) {
    const int32_t dtype = std::is_same_v<V, uint8_t>   ? aoti_torch_dtype_uint8()
                          : std::is_same_v<V, int64_t> ? aoti_torch_dtype_int64()
                          : std::is_same_v<V, float>   ? aoti_torch_dtype_float32()
                                                       : aoti_torch_dtype_float64();
    made_.push_back(empty_beside(beside_, {n}, dtype));
    return static_cast<V*>(made_.back().data_ptr());
  }

  template <class V>
  V* copy_to(const void* from, int64_t n) {
    V* to = make<V>(n);
    copy_to_device(kOp, to, from, n * static_cast<int64_t>(sizeof(V)), stream_);
    return to;
  }

  void read_layers(const Tensors& weights, const Tensors& biases) {
    const int64_t n = p_.n_samples;
    std::vector<PruningLayer<T>> layers;
    for (size_t m = 0; m < weights.size(); ++m) {
      const int64_t n_out = weights[m].size(1), n_in = weights[m].size(2);
      layers.push_back({n_out, n_in, read<T>(biases[m]), m == 0 ? nullptr : make<T>(weights[m].numel()),
                        make<T>(n * n_out), m == 0 ? 1 : n_out, m == 0 ? n : 1});
      if (m > 0) p_.n_widest = std::max(p_.n_widest, n_out);
    }
    for (size_t m = weights.size(); m-- > 1;) {
      const PruningLayer<T>& layer = layers[m];
      const int64_t n_lines = p_.n_groups * layer.n_in;
      uint8_t* const has_effect = make<uint8_t>(n_lines);
      launch(kOp, &turn_weight<T>, parts_of(n_lines, kThreads), stream_, read<T>(weights[m]), p_.read,
             p_.n_groups, layer.n_out, layer.n_in, layer.weight, has_effect);
      p_.read = has_effect;
    }
    static_assert(sizeof(PruningLayer<T>) % sizeof(int64_t) == 0);
    const int64_t n_integers = static_cast<int64_t>(layers.size() * sizeof(PruningLayer<T>) / sizeof(int64_t));
    p_.layers = reinterpret_cast<const PruningLayer<T>*>(copy_to<int64_t>(layers.data(), n_integers));
  }

  // What warps work on lies in shared memory, if the layers are not too wide.
  void find_work() {
    const int64_t n = kVisitWarps<T> * kPruningWork * p_.n_widest, bytes = n * static_cast<int64_t>(sizeof(T));
    if (bytes <= most_shared(kOp) - 1024) {
      shared_ = bytes;
    } else {
      p_.work = make<T>(p_.n_groups * n);
    }
  }

  void settle_units(int64_t first, int64_t end, bool all) {
    launch(kOp, &settle<T>, parts_of(p_.n_samples, kWarps), stream_, p_, first, end, all);
  }

  cudaStream_t stream_;
  const Tensor& beside_;
  int64_t n_units_, shared_ = 0;
  Pruning<T> p_{};
  std::vector<Tensor> made_;
};

std::tuple<Tensor, Tensor> prune_layer(const Tensor& inputs, std::vector<Tensor> weights,
                                       std::vector<Tensor> biases, const Tensor& targets,
                                       const Tensor& sizes, const Tensor& order,
                                       std::optional<Tensor> original, double threshold) {
  check_samples(kOp, inputs, sizes);
  const OnDevice device(kOp, inputs);
  std::vector<int64_t> group_sizes, visits, classes;
  read_integers(sizes, device.stream(), group_sizes);
  const int64_t n_groups = sizes.numel();
  check_sizes(kOp, group_sizes.data(), n_groups, inputs.size(0));
  const int64_t n_classes = check_network(kOp, inputs, weights, biases, targets, order, original, n_groups);
  read_integers(order, device.stream(), visits);
  read_integers(targets, device.stream(), classes);
  check_range(kOp, "targets", classes.data(), targets.numel(), n_classes);
  const int64_t n_out = weights[0].size(1), n_in = weights[0].size(2);
  check_range(kOp, "order", visits.data(), order.numel(), n_out * n_in);
  const std::vector<Run> runs = find_runs(visits, n_out, n_in);
  if (inputs.scalar_type() == ScalarType::Double) {
    return Pruner<double>(device, inputs, weights, biases, targets, order, group_sizes)
        .run(runs, original, threshold);
  }
  return Pruner<float>(device, inputs, weights, biases, targets, order, group_sizes)
      .run(runs, original, threshold);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) { m.impl("prune_layer", TORCH_BOX(&prune_layer)); }

}  // namespace modfast
