// joint_histogram and binned_histogram on CUDA. Codes out of range are not counted.
#include "joint_histogram_kernels.cuh"

#include "digitizer.h"
#include "pair_tiles.h"

namespace modfast {
namespace {

// Tables up to this leave room for eight blocks on a multiprocessor of compute capability 9.0.
constexpr int64_t kCopiedTable = 27 << 10;
// Beyond so many tables, each of which sees all pairs, counting in global memory is faster.
constexpr int64_t kMaxParts = 8;

unsigned long long* counts_of(const Tensor& counts) {
  return static_cast<unsigned long long*>(counts.mutable_data_ptr());
}

TableCut cut_table(const char* op, int bins_x, int bins_y) {
  const int64_t row = int64_t{bins_y} * sizeof(uint32_t);
  const int64_t rows = std::min<int64_t>(bins_x, (most_shared(op) - 1024) / row);
  TableCut cut{bins_x, bins_y, static_cast<int>(rows), 0};
  if (rows * kMaxParts < bins_x) cut.rows = 0;
  while (cut.rows > 0 && cut.log_copies < 5 && (row * bins_x << (cut.log_copies + 1)) <= kCopiedTable) ++cut.log_copies;
  return cut;
}

Blocks blocks_for(const TableCut& cut, int64_t size) {
  // Enough pairs a block that its table's way to memory does not matter.
  const int64_t cells = int64_t{cut.rows} * cut.bins_y;
  const int64_t share = std::max<int64_t>(16384, 4 * cells);
  return Blocks((size + share - 1) / share * cut.n_parts(),
                (cells << cut.log_copies) * static_cast<int64_t>(sizeof(uint32_t)));
}

// f(x, y) with pointers to uint8_t or uint16_t.
template <class F>
void with_codes(const Codes& x, const Codes& y, const F& f) {
  const auto with_x = [&](const auto* of_x) {
    if (y.wide) {
      f(of_x, static_cast<const uint16_t*>(y.data));
    } else {
      f(of_x, static_cast<const uint8_t*>(y.data));
    }
  };
  if (x.wide) {
    with_x(static_cast<const uint16_t*>(x.data));
  } else {
    with_x(static_cast<const uint8_t*>(x.data));
  }
}

void count_one_by_one(const char* op, const Codes& x, const Codes& y, bool apart,
                      unsigned long long* counts, cudaStream_t stream) {
  with_codes(x, y, [&](const auto* of_x, const auto* of_y) {
    using X = std::remove_cvref_t<decltype(*of_x)>;
    using Y = std::remove_cvref_t<decltype(*of_y)>;
    launch(op, &count_each<X, Y>, (x.n * x.d * y.d + kThreads - 1) / kThreads, stream, of_x, of_y,
           x.n, x.d, y.d, x.bins, y.bins, apart, counts);
  });
}

void count(const char* op, const Codes& x, const Codes& y, unsigned long long* counts,
           cudaStream_t stream) {
  const TableCut cut = cut_table(op, x.bins, y.bins);
  with_codes(x, y, [&](const auto* of_x, const auto* of_y) {
    using X = std::remove_cvref_t<decltype(*of_x)>;
    using Y = std::remove_cvref_t<decltype(*of_y)>;
    constexpr int V = 16 / std::max(sizeof(X), sizeof(Y));
    const bool packed = aligned(of_x) && aligned(of_y);
    launch(op, packed ? &count_aligned<X, Y, V> : &count_aligned<X, Y, 1>, blocks_for(cut, x.size()),
           stream, of_x, of_y, x.size(), cut, counts);
  });
}

void count_products(const char* op, const Codes& x, const Codes& y, unsigned long long* counts,
                    cudaStream_t stream) {
  const int64_t row = (int64_t{x.bins} + y.bins) * sizeof(uint32_t);
  const int64_t n_rows = std::clamp<int64_t>(kCopiedTable / row, 1, 16);
  const int64_t shared = int64_t{x.bins} * y.bins * sizeof(uint64_t) + n_rows * row;
  if (shared > most_shared(op) - 1024) {
    return count_one_by_one(op, x, y, false, counts, stream);
  }
  with_codes(x, y, [&](const auto* of_x, const auto* of_y) {
    using X = std::remove_cvref_t<decltype(*of_x)>;
    using Y = std::remove_cvref_t<decltype(*of_y)>;
    launch(op, &count_all<X, Y>, Blocks((x.n + n_rows - 1) / n_rows, shared), stream, of_x, of_y, x.n,
           x.d, y.d, x.bins, y.bins, static_cast<int>(n_rows), counts);
  });
}

Tensor joint_histogram(const Tensor& x_codes, const Tensor& y_codes, int64_t bins_x, int64_t bins_y,
                       const std::string& pairing) {
  constexpr const char* op = "joint_histogram";
  const Sides sides = read_sides(op, x_codes, y_codes, bins_x, bins_y);
  const auto& [x, y] = sides;
  const Pairing how = check_pairing(op, sides, pairing);
  const OnDevice device(op, x_codes);
  Tensor counts = how == Pairing::pairwise
                      ? empty_beside(x_codes, {x.d, y.d, bins_x, bins_y}, aoti_torch_dtype_int64())
                      : empty_beside(x_codes, {bins_x, bins_y}, aoti_torch_dtype_int64());
  unsigned long long* out = counts_of(counts);
  zero(op, out, counts.numel() * static_cast<int64_t>(sizeof(int64_t)), device.stream());
  switch (how) {
    case Pairing::aligned: count(op, x, y, out, device.stream()); break;
    case Pairing::all: count_products(op, x, y, out, device.stream()); break;
    case Pairing::pairwise:
      if (int64_t{x.bins} * y.bins * static_cast<int64_t>(sizeof(uint32_t)) <= tile_bytes(op)) {
        count_pairs(op, make_columns(op, x_codes, sides, device.stream()), out, device.stream());
      } else {
        count_one_by_one(op, x, y, true, out, device.stream());
      }
  }
  return {counts};
}

template <class T, class U>
void launch_binned(const char* op, const Values& x, const Values& y, const DeviceRules& rules_x,
                   const DeviceRules& rules_y, const TableCut& cut, unsigned long long* counts,
                   unsigned long long* not_finite, cudaStream_t stream) {
  // Mixed types are rare, and not worth more kernels.
  constexpr int V = std::is_same_v<T, U> ? 16 / sizeof(T) : 1;
  const bool packed = aligned(x.data) && aligned(y.data);
  launch(op, packed ? &count_binned<T, U, V> : &count_binned<T, U, 1>, blocks_for(cut, x.size()),
         stream, BinnedSide<T>{static_cast<const T*>(x.data), rules_x.as<compute_t<T>>()},
         BinnedSide<U>{static_cast<const U*>(y.data), rules_y.as<compute_t<U>>()}, x.size(), cut,
         counts, not_finite);
}

std::tuple<Tensor, Tensor> binned_histogram(const Tensor& x, const Tensor& y, int64_t bins,
                                            const std::optional<Tensor>& range_x,
                                            const std::optional<Tensor>& range_y,
                                            const std::string& rule) {
  constexpr const char* op = "binned_histogram";
  const Values of_x = read_values(op, "x", x), of_y = read_values(op, "y", y);
  check_same_shape(op, x, y, range_x, range_y);
  const OnDevice device(op, x);
  const cudaStream_t stream = device.stream();
  const DeviceRules rules_x = find_rules(op, x, of_x, bins, range_x, false, rule, stream);
  const DeviceRules rules_y = find_rules(op, y, of_y, bins, range_y, false, rule, stream);
  Tensor counts = empty_beside(x, {bins, bins}, aoti_torch_dtype_int64());
  Tensor not_finite = empty_beside(x, {2}, aoti_torch_dtype_int64());
  zero(op, counts_of(counts), counts.numel() * static_cast<int64_t>(sizeof(int64_t)), stream);
  zero(op, counts_of(not_finite), 2 * sizeof(int64_t), stream);
  const TableCut cut = cut_table(op, static_cast<int>(bins), static_cast<int>(bins));
  with_type(of_x.dtype, [&](auto type_x) {
    with_type(of_y.dtype, [&](auto type_y) {
      launch_binned<decltype(type_x), decltype(type_y)>(op, of_x, of_y, rules_x, rules_y, cut,
                                                        counts_of(counts), counts_of(not_finite),
                                                        stream);
    });
  });
  return {counts, not_finite};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("joint_histogram", TORCH_BOX(&joint_histogram));
  m.impl("binned_histogram", TORCH_BOX(&binned_histogram));
}

}  // namespace modfast
