// Every operator's schema. What each means is said in modfast/reference.py.
#include "abi.h"

STABLE_TORCH_LIBRARY(modfast, m) {
  m.def(
      "ablation_sweep(Tensor logits, Tensor scales, Tensor updates, Tensor? targets,"
      " bool per_sample) -> (Tensor terms, Tensor class_correct)");
  m.def(
      "ablation_sweep_hidden(Tensor logits, Tensor hidden, Tensor scales, Tensor updates,"
      " str activation, Tensor weight, Tensor? targets, bool per_sample)"
      " -> (Tensor terms, Tensor class_correct)");
  m.def(
      "cluster_penalty(Tensor[] weights, Tensor labels, float scale)"
      " -> (Tensor value, Tensor sums)");
  m.def(
      "cluster_penalty_backward(Tensor grad, Tensor[] weights, Tensor labels, Tensor sums,"
      " float scale) -> Tensor[]");
  m.def(
      "clustered_sgd_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] momentum_buffers,"
      " Tensor labels, Tensor(c!) sums, float scale, float lr, float momentum, float dampening,"
      " float weight_decay, bool nesterov, bool first) -> ()");
  m.def(
      "clustered_adam_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs,"
      " Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor labels, Tensor(e!) sums, float scale,"
      " float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled) -> ()");
}
