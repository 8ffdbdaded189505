// Every operator's schema. What each means is said in modfast/reference.
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
      "logit_terms(Tensor logits, Tensor ablated, Tensor? targets, bool per_sample)"
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
  m.def(
      "digitize(Tensor x, int bins, Tensor? range, bool per_column, str rule)"
      " -> (Tensor codes, Tensor range, Tensor not_finite)");
  m.def("digitize_edges(Tensor x, Tensor edges) -> Tensor");
  m.def(
      "joint_histogram(Tensor x_codes, Tensor y_codes, int bins_x, int bins_y, str pairing)"
      " -> Tensor");
  m.def(
      "binned_histogram(Tensor x, Tensor y, int bins, Tensor? range_x, Tensor? range_y, str rule)"
      " -> (Tensor counts, Tensor not_finite)");
  m.def(
      "pairwise_information(Tensor x_codes, Tensor y_codes, int bins_x, int bins_y,"
      " str? correction) -> (Tensor information, Tensor bias)");
  m.def(
      "permuted_information(Tensor x_codes, Tensor y_codes, int bins_x, int bins_y,"
      " Tensor permutations, Tensor observed) -> (Tensor at_least, Tensor mean, Tensor m2)");
  m.def(
      "update_top_(Tensor(a!) top_values, Tensor(b!) top_indices, Tensor values, int first)"
      " -> Tensor");
  m.def(
      "prune_layer(Tensor inputs, Tensor[] weights, Tensor[] biases, Tensor targets, Tensor sizes,"
      " Tensor order, Tensor? original, float threshold) -> (Tensor margins, Tensor losses)");
  m.def(
      "train_mlps_(Tensor x, Tensor y, int[] sizes, Tensor(a!) parameters, Tensor(b!) exp_avgs,"
      " Tensor(c!) exp_avg_sqs, int step, int epochs, float lr, float beta1, float beta2, float eps)"
      " -> Tensor losses");
  m.def(
      "wiring_sums(Tensor weight, Tensor? scale, Tensor sources, Tensor n_in, Tensor n_out, str norm,"
      " int blocks, int ins, int outs) -> Tensor");
}
