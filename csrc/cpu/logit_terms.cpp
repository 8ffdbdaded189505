// What ablations that give whole logits do, on the CPU.
#include "logit_terms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "../sweeps.h"
#include "parallel.h"
#include "simd.h"

#define MODFAST_KERNELS "logit_terms_kernels.h"
#include "for_each_level.h"

namespace modfast {
namespace {

constexpr const LogitTermsKernels* kTables[] = MODFAST_TABLES;

// Samples whose terms are added up apart from the others', whatever the number of threads.
constexpr int64_t kTile = 16;
// Exponentials that are not worth waking a thread for.
constexpr int64_t kGrain = int64_t{1} << 16;

std::tuple<Tensor, Tensor> run(const LogitTerms& all, const Tensor& logits, bool per_sample) {
  const int type = static_cast<int>(float_dtype(logits, "logit_terms", "logits", 0));
  const LogitTermsKernels& kernels = at_level(kTables);
  const int64_t n = all.n_samples, a = all.n_ablations, k = all.n_terms;
  const int32_t dtype = aoti_torch_dtype_float64();
  Tensor terms = per_sample ? empty_beside(logits, {k, n, a}, dtype) : empty_beside(logits, {k, a}, dtype);
  Tensor classes = empty_beside(logits, {a, all.has_targets() ? all.n_classes : 0}, dtype);
  double* to = static_cast<double*>(terms.data_ptr());
  const int64_t n_tiles = (n + kTile - 1) / kTile;
  std::vector<double> sums(per_sample ? 0 : n_tiles * k * a);
  std::vector<char> correct(all.has_targets() ? n * a : 0);
  for_ranges(n_tiles, std::min(n, kTile) * a * all.n_classes, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<double> workspace(kernels.workspace[type](all) / sizeof(double));
    std::vector<double> found(a * kMostTerms);
    for (int64_t i = begin * kTile; i < std::min(end * kTile, n); ++i) {
      kernels.sample[type](all, i, workspace.data(), found.data());
      for (int64_t j = 0; j < a; ++j) {
        for (int64_t term = 0; term < k; ++term) {
          const double value = found[j * kMostTerms + term];
          if (per_sample) {
            to[(term * n + i) * a + j] = value;
          } else {
            sums[(i / kTile * k + term) * a + j] += value;
          }
        }
        if (!correct.empty()) correct[i * a + j] = found[j * kMostTerms + 4] != 0.0;
      }
    }
  });
  if (!per_sample) {
    std::fill(to, to + k * a, 0.0);
    for (int64_t tile = 0; tile < n_tiles; ++tile) {
      for (int64_t j = 0; j < k * a; ++j) to[j] += sums[tile * k * a + j];
    }
  }
  if (all.has_targets()) {
    double* by_class = static_cast<double*>(classes.data_ptr());
    std::fill(by_class, by_class + a * all.n_classes, 0.0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < a; ++j) by_class[j * all.n_classes + all.targets[i]] += correct[i * a + j];
    }
  }
  return {terms, classes};
}

std::tuple<Tensor, Tensor> logit_terms(const Tensor& logits, const Tensor& ablated,
                                       std::optional<Tensor> targets, bool per_sample) {
  constexpr const char* op = "logit_terms";
  check_logit_terms(op, logits, ablated, targets);
  LogitTerms all{};
  all.logits = logits.data_ptr();
  all.ablated = ablated.data_ptr();
  all.n_samples = logits.size(0);
  all.n_classes = logits.size(1);
  all.n_ablations = ablated.size(0);
  all.n_terms = targets ? kMostTerms : 3;
  if (targets) {
    all.targets = static_cast<const int64_t*>(targets->data_ptr());
    check_targets(op, all.targets, all.n_samples, all.n_classes);
  }
  return run(all, logits, per_sample);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CPU, m) { m.impl("logit_terms", TORCH_BOX(&logit_terms)); }

}  // namespace modfast
