// The ablation sweeps on CUDA. Nothing here waits for the device, so a target that is no class is not
// refused: it is never correct, and its loss, and with it the sum, is no number.
#include "ablation_kernels.cuh"

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../sweeps.h"
#include "device.h"
#include "logit_terms_kernels.cuh"

namespace modfast {
namespace {

// How many changes, for each multiprocessor, of pairs of a sample and an ablation are kept at a time.
constexpr int64_t kKept = int64_t{1} << 17;
constexpr int64_t kFewClasses = 10;

int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// f(size), of the sizes that hold few classes in registers.
template <class F>
void with_size(int64_t n_classes, const F& f) {
  if (n_classes <= 4) {
    f(std::integral_constant<int, 4>{});
  } else {
    f(std::integral_constant<int, kFewClasses>{});
  }
}

// f(threads), of how many share the classes of a sample.
template <class F>
void with_team(int64_t n_classes, const F& f) {
  if (n_classes <= 64) {
    f(std::integral_constant<int, 8>{});
  } else if (n_classes <= 1024) {
    f(std::integral_constant<int, 32>{});
  } else {
    f(std::integral_constant<int, kThreads>{});
  }
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

// A sweep's results and what its kernels share.
template <class T>
class Sweeper {
 public:
  Sweeper(const char* op, const Tensor& logits, const Tensor& scales,
          const std::optional<Tensor>& targets, bool per_sample)
      : op_(op), device_(op, logits), logits_(logits), few_(logits.size(1) <= kFewClasses) {
    const int64_t n = logits.size(0), c = logits.size(1), a = scales.size(1);
    const int32_t dtype = sizeof(T) == 4 ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64();
    int64_t stride = c;
    if (few_) {
      with_size(c, [&](auto size) { stride = size; });
      tile_ = kStep;
    } else {
      with_team(c, [&](auto team) { tile_ = kTile<team>; });
    }
    sweep_ = Sweep<T>{};
    sweep_.n_samples = n;
    sweep_.n_classes = c;
    sweep_.n_ablations = a;
    sweep_.stride = stride;
    sweep_.n_terms = targets ? kMostTerms : 3;
    sweep_.per_sample = per_sample;
    terms_ = per_sample ? doubles({sweep_.n_terms, n, a}) : doubles({sweep_.n_terms, a});
    tiles_ = doubles({per_sample ? 0 : parts_of(n, tile_), sweep_.n_terms, a});
    classes_ = doubles({a, targets ? c : 0});
    shares_ = empty_beside(logits, {n, stride, 2}, dtype);
    entropies_ = empty_beside(logits, {n}, dtype);
    sweep_.logits = read<T>(logits);
    sweep_.scales = read<T>(scales);
    sweep_.targets = targets ? read<int64_t>(*targets) : nullptr;
    sweep_.shares = static_cast<Share<T>*>(shares_.data_ptr());
    sweep_.entropies = static_cast<T*>(entropies_.data_ptr());
    sweep_.terms = static_cast<double*>((per_sample ? terms_ : tiles_).data_ptr());
    sweep_.classes = static_cast<unsigned long long*>(classes_.data_ptr());
    if (classes_.numel() > 0) {
      zero(op, sweep_.classes, classes_.numel() * static_cast<int64_t>(sizeof(double)), stream());
    }
    with_team(c, [&](auto team) {
      launch(op, &prepare_samples<T, team>, parts_of(n, kThreads / team), stream(), sweep_);
    });
  }

  bool few() const { return few_; }
  Chunk whole() const { return Chunk{0, sweep_.n_samples, 0, sweep_.n_ablations}; }

  template <class Updates>
  void sweep_few_classes(const Updates& updates) const {
    with_size(sweep_.n_classes, [&](auto size) {
      launch(op_, &sweep_few<T, size, Updates>,
             parts_of(sweep_.n_samples, kStep) * parts_of(sweep_.n_ablations, kGroup), stream(), sweep_,
             updates);
    });
  }

  void sweep_many_classes(const Chunk& chunk, const ManyChanges<T>& changes) const {
    with_team(sweep_.n_classes, [&](auto team) {
      const int64_t n_tiles = parts_of(chunk.end - chunk.begin, kTile<team>);
      launch(op_, &sweep_many<T, team>,
             parts_of(n_tiles * parts_of(chunk.n_ablations, kTogether), kThreads / team), stream(), sweep_,
             chunk, changes);
    });
  }

  // With many classes, through torch's matrix product of the changes of a chunk's hidden units.
  void sweep_many_classes(const HiddenLayer<T>& layer, const Tensor& weight) const {
    const int64_t most = std::max<int64_t>(1, kKept * multiprocessors(op_) /
                                                  std::max(layer.n_hidden, sweep_.n_classes));
    const int64_t n_ablations = std::min(sweep_.n_ablations, std::max<int64_t>(1, most / tile_));
    const int64_t n_samples = std::max<int64_t>(1, most / std::max<int64_t>(1, n_ablations) / tile_) * tile_;
    int32_t dtype;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(logits_.get(), &dtype));
    for (int64_t first = 0; first < sweep_.n_ablations; first += n_ablations) {
      for (int64_t begin = 0; begin < sweep_.n_samples; begin += n_samples) {
        const Chunk chunk{begin, std::min(begin + n_samples, sweep_.n_samples), first,
                          std::min(n_ablations, sweep_.n_ablations - first)};
        const int64_t n_pairs = (chunk.end - chunk.begin) * chunk.n_ablations;
        const Tensor deltas = empty_beside(logits_, {n_pairs, layer.n_hidden}, dtype);
        const Tensor changes = empty_beside(logits_, {n_pairs, sweep_.n_classes}, dtype);
        launch(op_, &change_units<T>, parts_of(n_pairs, kWarps), stream(), sweep_, chunk, layer,
               static_cast<T*>(deltas.data_ptr()));
        device_.multiply(op_, deltas, weight, changes);
        sweep_many_classes(chunk, ManyChanges<T>{read<T>(changes), nullptr});
      }
    }
  }

  std::tuple<Tensor, Tensor> collect() const {
    const int64_t n = sweep_.n_terms * sweep_.n_ablations, n_counts = classes_.numel();
    if (!sweep_.per_sample) {
      launch(op_, &collect_tiles, parts_of(n, kTileColumns), stream(), read<double>(tiles_),
             tiles_.size(0), n, static_cast<double*>(terms_.data_ptr()));
    }
    launch(op_, &count_in_doubles, parts_of(n_counts, kThreads), stream(), sweep_.classes, n_counts);
    return {terms_, classes_};
  }

 private:
  cudaStream_t stream() const { return device_.stream(); }
  Tensor doubles(torch::headeronly::IntHeaderOnlyArrayRef sizes) const {
    return empty_beside(logits_, sizes, aoti_torch_dtype_float64());
  }

  const char* op_;
  OnDevice device_;
  const Tensor& logits_;
  bool few_;
  int64_t tile_;
  Sweep<T> sweep_;
  Tensor terms_, tiles_, classes_, shares_, entropies_;
};

// f(T{}) for the type of the logits.
template <class F>
std::tuple<Tensor, Tensor> with_type(const Tensor& logits, const F& f) {
  return logits.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

std::tuple<Tensor, Tensor> ablation_sweep(const Tensor& logits, const Tensor& scales,
                                          const Tensor& updates, std::optional<Tensor> targets,
                                          bool per_sample) {
  constexpr const char* op = "ablation_sweep";
  check_sweep(op, logits, scales, targets);
  check_matrix(op, "updates", updates, scales.size(1), logits.size(1), logits);
  return with_type(logits, [&](auto zero) {
    using T = decltype(zero);
    const Sweeper<T> sweeper(op, logits, scales, targets, per_sample);
    if (sweeper.few()) {
      sweeper.sweep_few_classes(LogitUpdates<T>{read<T>(updates)});
    } else {
      sweeper.sweep_many_classes(sweeper.whole(), ManyChanges<T>{nullptr, read<T>(updates)});
    }
    return sweeper.collect();
  });
}

std::tuple<Tensor, Tensor> ablation_sweep_hidden(const Tensor& logits, const Tensor& hidden,
                                                 const Tensor& scales, const Tensor& updates,
                                                 std::string activation, const Tensor& weight,
                                                 std::optional<Tensor> targets, bool per_sample) {
  constexpr const char* op = "ablation_sweep_hidden";
  check_sweep(op, logits, scales, targets);
  check_hidden(op, logits, hidden, scales, updates, weight);
  const Activation kind = read_activation(op, activation);
  return with_type(logits, [&](auto zero) {
    using T = decltype(zero);
    const Sweeper<T> sweeper(op, logits, scales, targets, per_sample);
    const HiddenLayer<T> layer{read<T>(hidden), read<T>(updates), read<T>(weight), hidden.size(1), kind};
    if (!sweeper.few()) {
      sweeper.sweep_many_classes(layer, weight);
    } else if (kind == Activation::relu) {
      sweeper.sweep_few_classes(HiddenUpdates<T, true>{layer});
    } else {
      sweeper.sweep_few_classes(HiddenUpdates<T, false>{layer});
    }
    return sweeper.collect();
  });
}

// f(S{}) for the elements of the logits.
template <class F>
std::tuple<Tensor, Tensor> with_element(const char* op, const Tensor& logits, const F& f) {
  switch (float_dtype(logits, op, "logits", 0)) {
    case Dtype::float32: return f(float{});
    case Dtype::float64: return f(double{});
    case Dtype::bfloat16: return f(bfloat16{});
    default: return f(float16{});
  }
}

std::tuple<Tensor, Tensor> logit_terms(const Tensor& logits, const Tensor& ablated,
                                       std::optional<Tensor> targets, bool per_sample) {
  constexpr const char* op = "logit_terms";
  check_logit_terms(op, logits, ablated, targets);
  const OnDevice device(op, logits);
  const int64_t n = logits.size(0), c = logits.size(1), a = ablated.size(0);
  return with_element(op, logits, [&](auto zero_of) {
    using S = decltype(zero_of);
    Sweep<compute_t<S>> sweep{};
    sweep.n_samples = n;
    sweep.n_classes = c;
    sweep.n_ablations = a;
    sweep.n_terms = targets ? kMostTerms : 3;
    sweep.per_sample = per_sample;
    sweep.targets = targets ? read<int64_t>(*targets) : nullptr;
    const auto doubles = [&](torch::headeronly::IntHeaderOnlyArrayRef sizes) {
      return empty_beside(logits, sizes, aoti_torch_dtype_float64());
    };
    const Tensor classes = doubles({a, targets ? c : 0});
    const Tensor terms = per_sample ? doubles({sweep.n_terms, n, a}) : doubles({sweep.n_terms, a});
    sweep.classes = static_cast<unsigned long long*>(classes.data_ptr());
    if (classes.numel() > 0) {
      zero(op, sweep.classes, classes.numel() * static_cast<int64_t>(sizeof(double)), device.stream());
    }
    with_team(c, [&](auto team) {
      const int64_t n_tiles = parts_of(n, kTile<team>), sums = sweep.n_terms * a;
      const Tensor tiles = doubles({per_sample ? 0 : n_tiles, sweep.n_terms, a});
      sweep.terms = static_cast<double*>((per_sample ? terms : tiles).data_ptr());
      launch(op, &whole_logits<S, team>, parts_of(n_tiles * a, kThreads / team), device.stream(), sweep,
             read<S>(logits), read<S>(ablated));
      if (!per_sample) {
        launch(op, &collect_tiles, parts_of(sums, kTileColumns), device.stream(), read<double>(tiles), n_tiles,
               sums, static_cast<double*>(terms.data_ptr()));
      }
    });
    launch(op, &count_in_doubles, parts_of(classes.numel(), kThreads), device.stream(), sweep.classes,
           classes.numel());
    return std::tuple<Tensor, Tensor>{terms, classes};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("ablation_sweep", TORCH_BOX(&ablation_sweep));
  m.impl("ablation_sweep_hidden", TORCH_BOX(&ablation_sweep_hidden));
  m.impl("logit_terms", TORCH_BOX(&logit_terms));
}

}  // namespace modfast
