// The fused optimizer steps clustered_sgd_ and clustered_adam_ on CUDA. Nothing here waits for the
// device; of Adam's arguments only the step counts are read, and they lie on the CPU.
#include "clustered_optimizers_kernels.cuh"
#include "lists.h"

namespace modfast {
namespace {

using Pointers = std::vector<void*>;

// Steps all weights and replaces the sums of those with labels. `Rule<C>` computes in C;
// `make_rule(C{}, i)` is that of weight i, and `companions` are what goes with the weights: gradients,
// then states.
template <template <class> class Rule, class MakeRule>
void step_all(const char* op, const Tensors& weights, const std::vector<Weight>& list, Sums sums,
              double scale, const std::vector<Pointers>& companions, const MakeRule& make_rule) {
  const OnDevice device(op, weights[0]);
  const TileSums partial(list, weights[0]);
  for_each_dtype(list, [&](auto zero, Dtype dtype) {
    using T = decltype(zero);
    using C = compute_t<T>;
    using List = StepList<Rule<C>>;
    for_each_list<T, List>(
        list, dtype,
        [&](typename List::Item& item, size_t i) {
          for (size_t k = 0; k < companions.size(); ++k) item.arrays[1 + k] = companions[k][i];
          item.sums = list[i].labeled ? sums.data + 2 * i : nullptr;
          item.partial = partial.of(i);
          item.rule = make_rule(C{}, i);
        },
        [&](const List& items) {
          launch(op, &clustered_step<T, Rule<C>>, items.n_tiles, device.stream(), items, scale);
        });
  });
  partial.collect(sums.data, device.stream());
}

void clustered_sgd_(const Tensors& weights, const Tensors& grads, const Tensors& momentum_buffers,
                    const Tensor& labels, const Tensor& sums, double scale, double lr,
                    double momentum, double dampening, double weight_decay, bool nesterov,
                    bool first) {
  constexpr const char* op = "clustered_sgd_";
  const Sums s = read_sums(op, sums, weights);
  const std::vector<Weight> list = read_weights(op, weights, labels, s.n_labeled);
  const Pointers g = read_companions(op, "grads", grads, weights);
  const Sgd<double> options{lr, momentum, dampening, weight_decay, nesterov, first};
  if (momentum == 0.0) {
    step_all<PlainSgd>(op, weights, list, s, scale, {g}, [&](auto zero, size_t) {
      using C = decltype(zero);
      return PlainSgd<C>{options.as<C>()};
    });
  } else {
    const Pointers buffers = read_companions(op, "momentum_buffers", momentum_buffers, weights);
    step_all<MomentumSgd>(op, weights, list, s, scale, {g, buffers}, [&](auto zero, size_t) {
      using C = decltype(zero);
      return MomentumSgd<C>{options.as<C>()};
    });
  }
}

void clustered_adam_(const Tensors& weights, const Tensors& grads, const Tensors& exp_avgs,
                     const Tensors& exp_avg_sqs, const Tensors& steps, const Tensor& labels,
                     const Tensor& sums, double scale, double lr, double beta1, double beta2,
                     double eps, double weight_decay, bool decoupled) {
  constexpr const char* op = "clustered_adam_";
  const Sums s = read_sums(op, sums, weights);
  const std::vector<Weight> list = read_weights(op, weights, labels, s.n_labeled);
  const Pointers g = read_companions(op, "grads", grads, weights);
  const Pointers means = read_companions(op, "exp_avgs", exp_avgs, weights);
  const Pointers squares = read_companions(op, "exp_avg_sqs", exp_avg_sqs, weights);
  const std::vector<double> counts = count_steps(op, steps, weights.size());
  step_all<AdamRule>(op, weights, list, s, scale, {g, means, squares}, [&](auto zero, size_t i) {
    using C = decltype(zero);
    const AdamStep step{lr, beta1, beta2, eps, weight_decay, decoupled, counts[i]};
    return AdamRule<C>{step.as<C>()};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("clustered_sgd_", TORCH_BOX(&clustered_sgd_));
  m.impl("clustered_adam_", TORCH_BOX(&clustered_adam_));
}

}  // namespace modfast
