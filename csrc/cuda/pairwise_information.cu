// pairwise_information and permuted_information on CUDA. Nothing here waits for the device; codes and
// permutations out of range become the last.
#include "pair_tiles.h"
#include "pair_products_kernels.cuh"

namespace modfast {
namespace {

// Counts up to this are looked up; larger ones take a logarithm each.
constexpr int64_t kMaxLogs = int64_t{1} << 17;
// Cells of all pairs that may lie in memory, where few pairs have many samples.
constexpr int64_t kMaxCells = int64_t{1} << 24;

Bias bias_of(Correction correction) {
  switch (correction) {
    case Correction::none: return Bias::none;
    case Correction::miller_madow: return Bias::miller_madow;
    case Correction::panzeri_treves: return Bias::panzeri_treves;
  }
  return Bias::none;
}

// A tile of products takes as long as counting about so many pairs.
constexpr int64_t kTilePairs = 105;

// Takes information of pairs of columns; what does not change with the order of y's rows is kept.
class Informer {
 public:
  Informer(const char* op, const Tensor& beside, const Sides& sides, Bias bias, cudaStream_t stream)
      : op_(op), stream_(stream), sides_(sides), columns_(make_columns(op, beside, sides, stream)),
        cut_(cut_tiles(op, sides)) {
    const int64_t n = sides.x.n, size = std::min(n, kMaxLogs) + 1;
    const int64_t cells = sides.x.d * sides.y.d * sides.x.bins * sides.y.bins;
    n_products_ = count_products(bias);
    in_memory_ = n_products_ == 0 && n_splits(op, cut_, sides) > 1 && cells <= kMaxCells;
    const auto memory = [&](int64_t size, int32_t type) {
      kept_.push_back(empty_beside(beside, {size}, type));
      return kept_.back().mutable_data_ptr();
    };
    const auto scratch = [&](int64_t words) {
      return static_cast<int64_t*>(memory(words, aoti_torch_dtype_int64()));
    };
    const auto of = [&](int64_t d) {
      return reinterpret_cast<Margin*>(scratch(d * sizeof(Margin) / sizeof(int64_t)));
    };
    counts_ = reinterpret_cast<unsigned long long*>(scratch(in_memory_ ? cells : 0));
    n_cells_ = cells;
    int64_t* logs = scratch(size);
    const auto above_of = [&](const Codes& codes) {
      const int64_t size = n_products_ > 0 ? codes.d * (codes.bins - 1) : 0;
      return static_cast<uint32_t*>(size > 0 ? memory(size, aoti_torch_dtype_int32()) : nullptr);
    };
    above_x_ = above_of(sides.x);
    above_y_ = above_of(sides.y);
    const int shift = log_shift(n);
    Margin *of_x = of(sides.x.d), *of_y = of(sides.y.d);
    question_ = Question{Logs{logs, size, n, shift, std::ldexp(1.0, -shift)},
                         of_x,
                         of_y,
                         sides.y.d,
                         sides.x.bins,
                         sides.y.bins,
                         bias,
                         nullptr,
                         nullptr};
    launch(op, &make_logs, (size + kThreads - 1) / kThreads, stream, size, shift, logs);
    with_columns(columns_, [&](auto code) {
      using Code = decltype(code);
      find_margins(columns_.x_as<Code>(), of_x, above_x_);
      find_margins(columns_.y_as<Code>(), of_y, above_y_);
    });
  }

  void order_y(const int64_t* order) { set_y(op_, columns_, order, stream_); }

  // information, bias: [dx, dy]
  void run(double* information, double* bias) {
    question_.information = information;
    question_.biases = bias;
    if (n_products_ > 0) {
      launch(op_, &product_information, Blocks(n_products_, kProductBytes), stream_,
             columns_.x_as<uint8_t>(), columns_.y_as<uint8_t>(), above_x_, above_y_, question_);
      return;
    }
    if (in_memory_) {
      zero(op_, counts_, n_cells_ * static_cast<int64_t>(sizeof(int64_t)), stream_);
      count_pairs(op_, columns_, counts_, stream_);
      const int64_t n_pairs = sides_.x.d * sides_.y.d;
      launch(op_, &table_information, n_pairs, stream_, counts_, n_pairs, question_);
      return;
    }
    with_columns(columns_, [&](auto code) {
      using Code = decltype(code);
      launch(op_, &tile_information<Code>, Blocks(n_tiles(cut_, sides_), shared_bytes(cut_)), stream_,
             columns_.x_as<Code>(), columns_.y_as<Code>(), cut_, question_);
    });
  }

 private:
  // How many tiles of products the pairs take; 0 where counting them is faster.
  int64_t count_products(Bias bias) const {
    const auto& [x, y] = sides_;
    if (columns_.wide() || std::max(x.bins, y.bins) > kMaxProductBins ||
        bias == Bias::panzeri_treves || kProductBytes > tile_bytes(op_)) {
      return 0;
    }
    const int64_t n_x = columns_x(x.bins), n_y = columns_y(y.bins);
    const int64_t tiles = (x.d + n_x - 1) / n_x * ((y.d + n_y - 1) / n_y);
    return tiles * kTilePairs < x.d * y.d ? tiles : 0;
  }

  template <class Code>
  void find_margins(const Columns<Code>& columns, Margin* margins, uint32_t* above) {
    launch(op_, &column_margins<Code>,
           Blocks(columns.d, columns.bins * static_cast<int64_t>(sizeof(uint32_t))), stream_, columns,
           question_.logs, question_.bias, margins, above);
  }

  const char* op_;
  cudaStream_t stream_;
  Sides sides_;
  SideColumns columns_;
  TileCut cut_;
  bool in_memory_;
  int64_t n_cells_, n_products_;
  uint32_t *above_x_, *above_y_;  // [d, bins - 1], how many codes are larger
  unsigned long long* counts_;
  std::vector<Tensor> kept_;
  Question question_;
};

double* doubles(const Tensor& x) { return static_cast<double*>(x.mutable_data_ptr()); }

std::tuple<Tensor, Tensor> pairwise_information(const Tensor& x_codes, const Tensor& y_codes,
                                                int64_t bins_x, int64_t bins_y,
                                                const std::optional<std::string>& correction) {
  constexpr const char* op = "pairwise_information";
  const Sides sides = read_sides(op, x_codes, y_codes, bins_x, bins_y);
  check_total(op, sides);
  const Correction how = read_correction(op, correction);
  const OnDevice device(op, x_codes);
  const int64_t dx = sides.x.d, dy = sides.y.d;
  const int64_t bytes = dx * dy * static_cast<int64_t>(sizeof(double));
  Tensor information = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_float64());
  Tensor bias = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_float64());
  if (sides.x.n == 0 || how == Correction::none) zero(op, doubles(bias), bytes, device.stream());
  if (sides.x.n == 0) {
    zero(op, doubles(information), bytes, device.stream());
  } else if (dx * dy > 0) {
    Informer(op, x_codes, sides, bias_of(how), device.stream())
        .run(doubles(information), doubles(bias));
  }
  return {information, bias};
}

std::tuple<Tensor, Tensor, Tensor> permuted_information(const Tensor& x_codes,
                                                        const Tensor& y_codes, int64_t bins_x,
                                                        int64_t bins_y, const Tensor& permutations,
                                                        const Tensor& observed) {
  constexpr const char* op = "permuted_information";
  const Sides sides = read_sides(op, x_codes, y_codes, bins_x, bins_y);
  check_total(op, sides);
  check_nulls(op, sides, x_codes, permutations, observed);
  const OnDevice device(op, x_codes);
  const cudaStream_t stream = device.stream();
  const int64_t dx = sides.x.d, dy = sides.y.d, n_pairs = dx * dy, n_orders = permutations.size(0);
  Tensor at_least = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_int64());
  Tensor mean = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_float64());
  Tensor m2 = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_float64());
  Tensor null = empty_beside(x_codes, {dx, dy}, aoti_torch_dtype_float64());
  // Without samples, every null is 0.
  for (const Tensor& tensor : {at_least, mean, m2, null}) {
    zero(op, tensor.mutable_data_ptr(), n_pairs * static_cast<int64_t>(sizeof(double)), stream);
  }
  if (n_pairs == 0 || n_orders == 0) return {at_least, mean, m2};
  const int64_t* orders = static_cast<const int64_t*>(permutations.data_ptr());
  std::optional<Informer> informer;
  if (sides.x.n > 0) informer.emplace(op, x_codes, sides, Bias::none, stream);
  for (int64_t p = 0; p < n_orders; ++p) {
    if (informer) {
      informer->order_y(orders + p * sides.x.n);
      informer->run(doubles(null), nullptr);
    }
    launch(op, &add_null, (n_pairs + kThreads - 1) / kThreads, stream, doubles(null),
           static_cast<const double*>(observed.data_ptr()), n_pairs, p, kInformationRounding,
           static_cast<int64_t*>(at_least.mutable_data_ptr()), doubles(mean), doubles(m2));
  }
  return {at_least, mean, m2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(modfast, CUDA, m) {
  m.impl("pairwise_information", TORCH_BOX(&pairwise_information));
  m.impl("permuted_information", TORCH_BOX(&permuted_information));
}

}  // namespace modfast
