// From the sums of a row's blocks to the row's terms, in double; compiled per SIMD level. Part of
// logit_terms_kernels.h.

// Of a row before any ablation: log sum e^z, and that sum about the largest of the blocks' tops.
struct RowOriginal {
  double log_sum, total;
};

// From here on the blocks' sums are about the largest top: of kTop remains the factor by which they became
// so, and kCenter is how far the block's top is above the row's mean logit.
template <class T>
MODFAST_LANE RowOriginal original_row(const TermsMemory<T>& memory, int64_t n_blocks) {
  using D = Lanes<double>;
  double *tops = memory.of_original(kTop), *totals = memory.of_original(kTotal);
  double *logs = memory.of_original(kLog), *centers = memory.of_original(kCenter);
  for (int64_t b = n_blocks; b < memory.stride; ++b) {
    tops[b] = tops[0];
    totals[b] = logs[b] = 0;
  }
  D top = load_lanes(tops), total = {}, log = {};
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) top = larger(top, load_lanes(tops + b));
  const D largest = splat(largest_of<double>(top));
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    const D by = load_lanes(tops + b) - largest, factor = exp_down<double>(by);
    const D sum = factor * load_lanes(totals + b), of_log = factor * load_lanes(logs + b);
    total += sum;
    log += of_log + sum * by;
    store_lanes(tops + b, factor);
    store_lanes(totals + b, sum);
    store_lanes(logs + b, of_log);
    store_lanes(centers + b, by);
  }
  const double whole = total_of<double>(total), mean = total_of<double>(log) / whole;
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    store_lanes(centers + b, load_lanes(centers + b) - splat(mean));
  }
  return {largest[0] + std::log(whole), whole};
}

// The mean change of ablation a.
template <class T>
MODFAST_LANE double mean_of_row(const TermsMemory<T>& memory, int64_t n_blocks, int64_t a, double total) {
  using D = Lanes<double>;
  for (int64_t b = n_blocks; b < memory.stride; ++b) {
    for (int k = 0; k < kOfAblated; ++k) memory.of_ablated(a, OfAblated(k))[b] = 0;
    memory.of_ablated(a, kMean)[b] = memory.of_ablated(a, kMean)[0];
  }
  D sum = {};
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    sum += load_lanes(memory.of_original(kTotal) + b) * load_lanes(memory.of_ablated(a, kMean) + b) +
           load_lanes(memory.of_original(kTop) + b) * load_lanes(memory.of_ablated(a, kRest) + b);
  }
  return total_of<double>(sum) / total;
}

// Of changes that are not far apart. With d what a block's mean change is above the row's, and t = e^d - 1:
//   e^(x + d) - 1 = (1 + t) (e^x - 1) + t.
template <class T>
MODFAST_LANE AblationTerms<double> near_row(const TermsMemory<T>& memory, int64_t a, double mean, double total) {
  using D = Lanes<double>;
  D excess = {}, second = {}, first = {};
  const D row_mean = splat(mean);
  for (int64_t b = 0; b < memory.stride; b += kLanes<double>) {
    const auto original = [&](OfOriginal which) { return load_lanes(memory.of_original(which) + b); };
    const auto ablated = [&](OfAblated which) { return load_lanes(memory.of_ablated(a, which) + b); };
    const D d = ablated(kMean) - row_mean;
    const Excess<double> by = exp_excess<double>(d);
    const D factor = original(kTop), sum = original(kTotal), grown = factor * exp_near<double>(d);
    const D rest = factor * ablated(kRest);
    const D moved = grown * (ablated(kRest) + ablated(kExcess)) + by.moved * sum;
    excess += grown * ablated(kExcess) + by.moved * rest + sum * by.beyond;
    second += grown * ablated(kSecond) + by.moved * rest + d * moved;
    first += grown * ablated(kFirst) + by.moved * original(kLog) + original(kCenter) * moved;
  }
  const double found = total_of<double>(excess) / total, beyond = found < 0 ? 0 : found;
  return near_terms<double>(mean, 1 / (1 + beyond), total_of<double>(second) / total,
                            total_of<double>(first) / total, std::log1p(beyond));
}
