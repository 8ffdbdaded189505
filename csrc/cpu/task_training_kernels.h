// Trains one MLP with ReLU by full-batch Adam; compiled per SIMD level by for_each_level.h.
//
// Lanes are samples, so that no width of a layer wastes any. A block of samples goes forward and
// backward with all of its activations in the first-level cache. Units that are off for a whole
// block, up to half of them in a trained network, take no part in what follows: lists of the active
// ones steer every loop. Gradients are summed by lane over all blocks, and across lanes once.
#include "lanes_kernels.h"

constexpr int kTileRows = 4;
constexpr int kVectors = MODFAST_SIMD_BITS == 512 ? 4 : 2;  // registers of samples at a time

// The pieces of memory of one layer.
template <class T>
struct Layer {
  const T* weight;     // [n_out, n_in]
  const T* bias;
  T* weight_gradient;  // [n_out, n_in][lanes]
  T* bias_gradient;
  const T* in;         // [n_in][kBlockSamples]
  T* out;              // [n_out][kBlockSamples]
  int64_t n_in, n_out;
  const int32_t* in_active;
  int32_t n_in_active;
  int32_t* out_active;
  int32_t* n_out_active;
};

// sums[r][v] += sum over the units k listed of weights[r][k * stride] * units[k][v]
template <class T, int kRows>
MODFAST_LANE void add_products(const T* const (&weights)[kRows], int64_t stride, const int32_t* listed,
                               int32_t n, const T* units, Lanes<T> (&sums)[kRows][kVectors]) {
  for (int32_t i = 0; i < n; ++i) {
    const int64_t k = listed[i];
    const T* from = units + k * kBlockSamples;
    Lanes<T> in[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) in[v] = load_lanes(from + v * kLanes<T>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const T w = weights[r][k * stride];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += in[v] * w;
    }
  }
}

// Calls f<rows>(first) for tiles of at most kTileRows of n.
template <int kRows = kTileRows, class F>
MODFAST_LANE void by_tiles(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kRows <= n; i += kRows) f(std::integral_constant<int, kRows>{}, i);
  switch (n - i) {
    case 3: return f(std::integral_constant<int, 3>{}, i);
    case 2: return f(std::integral_constant<int, 2>{}, i);
    case 1: return f(std::integral_constant<int, 1>{}, i);
  }
}

template <class T>
constexpr int64_t kStep = kVectors * kLanes<T>;

// out = max(0, W in + b), or W in + b of the last layer; lists the units that are on for any sample.
template <class T, bool kLast>
void forward(const Layer<T>& layer) {
  int32_t n_active = 0;
  by_tiles(layer.n_out, [&](auto rows, int64_t first) __attribute__((always_inline)) {
    constexpr int kRows = decltype(rows)::value;
    const T* weights[kRows];
    Lanes<T> most[kRows];
    for (int r = 0; r < kRows; ++r) {
      weights[r] = layer.weight + (first + r) * layer.n_in;
      most[r] = Lanes<T>{};
    }
    for (int64_t s = 0; s < kBlockSamples; s += kStep<T>) {
      Lanes<T> sums[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums[r][v] = splat(layer.bias[first + r]);
      }
      add_products<T, kRows>(weights, 1, layer.in_active, layer.n_in_active, layer.in + s, sums);
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          // In this order NaN stays NaN, as in torch.
          const Lanes<T> value = kLast ? sums[r][v] : larger(Lanes<T>{}, sums[r][v]);
          store_lanes(layer.out + (first + r) * kBlockSamples + s + v * kLanes<T>, value);
          most[r] += value;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      if (kLast || any(most[r] != 0)) layer.out_active[n_active++] = static_cast<int32_t>(first + r);
    }
  });
  *layer.n_out_active = n_active;
}

// Replaces outputs by the loss's slopes, and returns the block's sum of squares.
template <class T>
double backward_loss(const Layer<T>& layer, const T* targets, T scale) {
  double total = 0.0;
  for (int64_t j = 0; j < layer.n_out; ++j) {
    Lanes<T> squares{}, slopes{};
    for (int64_t s = j * kBlockSamples; s < (j + 1) * kBlockSamples; s += kLanes<T>) {
      const Lanes<T> error = load_lanes(layer.out + s) - load_lanes(targets + s);
      store_lanes(layer.out + s, error * scale);
      squares += error * error;
      slopes += error * scale;
    }
    T* sum = layer.bias_gradient + j * kLanes<T>;
    store_lanes(sum, load_lanes(sum) + slopes);
    for (int l = 0; l < kLanes<T>; ++l) total += squares[l];
  }
  return total;
}

// weight_gradient += out in^T over the block, for the active units of both.
template <class T>
void add_weight_gradient(const Layer<T>& layer) {
  by_tiles(*layer.n_out_active, [&](auto rows, int64_t j) __attribute__((always_inline)) {
    by_tiles(layer.n_in_active, [&](auto cols, int64_t i) __attribute__((always_inline)) {
      constexpr int kRows = decltype(rows)::value, kCols = decltype(cols)::value;
      const T *out[kRows], *in[kCols];
      for (int r = 0; r < kRows; ++r) out[r] = layer.out + layer.out_active[j + r] * kBlockSamples;
      for (int c = 0; c < kCols; ++c) in[c] = layer.in + layer.in_active[i + c] * kBlockSamples;
      Lanes<T> sums[kRows][kCols] = {};
      for (int64_t s = 0; s < kBlockSamples; s += kLanes<T>) {
        Lanes<T> right[kCols];
#pragma GCC unroll 4
        for (int c = 0; c < kCols; ++c) right[c] = load_lanes(in[c] + s);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const Lanes<T> left = load_lanes(out[r] + s);
#pragma GCC unroll 4
          for (int c = 0; c < kCols; ++c) sums[r][c] += left * right[c];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        T* row = layer.weight_gradient + layer.out_active[j + r] * layer.n_in * kLanes<T>;
        for (int c = 0; c < kCols; ++c) {
          T* sum = row + layer.in_active[i + c] * kLanes<T>;
          store_lanes(sum, load_lanes(sum) + sums[r][c]);
        }
      }
    });
  });
}

// Replaces the active units of the layer before by their slopes: W^T out, where they are on.
template <class T>
void backward(const Layer<T>& layer, const Layer<T>& before) {
  by_tiles(layer.n_in_active, [&](auto rows, int64_t first) __attribute__((always_inline)) {
    constexpr int kRows = decltype(rows)::value;
    const T* weights[kRows];
    T* units[kRows];
    Lanes<T> slopes[kRows];
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = layer.in_active[first + r];
      weights[r] = layer.weight + i;
      units[r] = before.out + i * kBlockSamples;
      slopes[r] = Lanes<T>{};
    }
    for (int64_t s = 0; s < kBlockSamples; s += kStep<T>) {
      Lanes<T> sums[kRows][kVectors] = {};
      add_products<T, kRows>(weights, layer.n_in, layer.out_active, *layer.n_out_active,
                             layer.out + s, sums);
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          T* unit = units[r] + s + v * kLanes<T>;
          const Lanes<T> slope = load_lanes(unit) == 0 ? Lanes<T>{} : sums[r][v];
          store_lanes(unit, slope);
          slopes[r] += slope;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      T* sum = before.bias_gradient + layer.in_active[first + r] * kLanes<T>;
      store_lanes(sum, load_lanes(sum) + slopes[r]);
    }
  });
}

template <class T>
void adam_step(const MlpTraining& all, const Mlp& mlp, const T* gradients, int64_t step) {
  AdamStep options = all.adam;
  options.step = static_cast<double>(step);
  const Adam<T> adam = options.as<T>();
  T* __restrict parameters = static_cast<T*>(mlp.parameters);
  T* __restrict means = static_cast<T*>(mlp.exp_avgs);
  T* __restrict squares = static_cast<T*>(mlp.exp_avg_sqs);
  for (int64_t p = 0; p < all.n_parameters; ++p) {
    double gradient = 0.0;
    for (int l = 0; l < kLanes<T>; ++l) gradient += gradients[p * kLanes<T> + l];
    parameters[p] = adam.update(parameters[p], static_cast<T>(gradient), means[p], squares[p]);
  }
}

template <class T>
void train(const MlpTraining& all, const Mlp& mlp, const MlpWorkspace& workspace) {
  T* gradients = static_cast<T*>(workspace.gradients);
  const T scale = static_cast<T>(2.0 / static_cast<double>(all.n_samples * all.n_outputs()));

  // Layer l's pieces, from those of the layers before; in_active[0] lists all inputs.
  const auto layer_at = [&](int64_t l, const T* x) __attribute__((always_inline)) {
    const int64_t* sizes = all.sizes;
    int64_t p = 0, unit = 0;
    for (int64_t k = 0; k < l; ++k) {
      p += (sizes[k] + 1) * sizes[k + 1];
      unit += sizes[k + 1];
    }
    const T* parameters = static_cast<const T*>(mlp.parameters) + p;
    T* out = static_cast<T*>(workspace.units) + unit * kBlockSamples;
    const int64_t n_in = sizes[l], n_out = sizes[l + 1];
    int32_t* active = workspace.active + unit + sizes[0];
    return Layer<T>{parameters,
                    parameters + n_in * n_out,
                    gradients + p * kLanes<T>,
                    gradients + (p + n_in * n_out) * kLanes<T>,
                    l == 0 ? x : out - n_in * kBlockSamples,
                    out,
                    n_in,
                    n_out,
                    active - n_in,
                    workspace.n_active[l],
                    active,
                    workspace.n_active + l + 1};
  };

  for (int64_t i = 0; i < all.n_inputs(); ++i) workspace.active[i] = static_cast<int32_t>(i);
  workspace.n_active[0] = static_cast<int32_t>(all.n_inputs());
  const int64_t last = all.n_layers - 1;
  for (int64_t epoch = 0; epoch < all.n_epochs; ++epoch) {
    memset(gradients, 0, all.n_parameters * sizeof(Lanes<T>));
    double squares = 0.0;
    for (int64_t block = 0; block < all.n_blocks(); ++block) {
      const T* x = static_cast<const T*>(all.x) + block * all.n_inputs() * kBlockSamples;
      const T* y = static_cast<const T*>(all.y) + block * all.n_outputs() * kBlockSamples;
      for (int64_t l = 0; l < last; ++l) forward<T, false>(layer_at(l, x));
      const Layer<T> output = layer_at(last, x);
      forward<T, true>(output);
      // Samples past the end have no error.
      const int64_t n = all.n_samples - block * kBlockSamples;
      for (int64_t j = 0; j < all.n_outputs() * kBlockSamples; j += kBlockSamples) {
        for (int64_t s = n; s < kBlockSamples; ++s) output.out[j + s] = y[j + s];
      }
      squares += backward_loss<T>(output, y, scale);
      for (int64_t l = last; l >= 0; --l) {
        const Layer<T> layer = layer_at(l, x);
        add_weight_gradient<T>(layer);
        if (l > 0) backward<T>(layer, layer_at(l - 1, x));
      }
    }
    mlp.losses[epoch] = squares / static_cast<double>(all.n_samples * all.n_outputs());
    adam_step<T>(all, mlp, gradients, all.first_step + epoch);
  }
}

constexpr MlpTrainingKernels kernels = {{train<float>, train<double>}};
