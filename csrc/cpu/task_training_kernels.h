// Trains one MLP with ReLU by full-batch Adam; compiled per SIMD level by for_each_level.h.
//
// Lanes are samples, so that no width of a layer wastes any. A block of samples goes forward and
// backward with all of its activations in the caches next to a core. Units that are off for a whole
// block, up to half of them in a trained network, take no part in what follows: lists of the active
// ones steer every loop. Gradients are summed by lane over all blocks, and across lanes once.
#include "lanes_kernels.h"
#include "by_tiles_kernels.h"

constexpr int kVectors = MODFAST_SIMD_BITS == 512 ? 4 : 2;  // registers of samples at a time

// A layer of the network in training.
template <class T>
struct Layer {
  int64_t n_in, n_out;
  const T *weight, *bias;              // [n_out, n_in], [n_out]
  T *weight_gradient, *bias_gradient;  // the same, each with its lanes
  const T* in;
  T* out;
  const int32_t* in_active;
  int64_t n_in_active;
  int32_t *out_active, *n_out_active;

  MODFAST_LANE Layer(const MlpLayer& l, const T* parameters, T* gradients)
      : n_in(l.n_in),
        n_out(l.n_out),
        weight(parameters + l.weight),
        bias(parameters + l.bias),
        weight_gradient(gradients + l.weight * kLanes<T>),
        bias_gradient(gradients + l.bias * kLanes<T>),
        in(static_cast<const T*>(l.in)),
        out(static_cast<T*>(l.out)),
        in_active(l.in_active),
        n_in_active(*l.n_in_active),
        out_active(l.out_active),
        n_out_active(l.n_out_active) {}
};

// sums[r][v] += sum over the units k listed of weights[r][k * stride] * units[k][v]
template <class T, int kRows>
MODFAST_LANE void add_products(const T* const (&weights)[kRows], int64_t stride, const int32_t* listed,
                               int64_t n, const T* units, Lanes<T> (&sums)[kRows][kVectors]) {
  for (int64_t i = 0; i < n; ++i) {
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

template <class T>
constexpr int64_t kStep = kVectors * kLanes<T>;

// out = max(0, W in + b), or W in + b of the last layer; lists the units that are on for any sample.
template <class T, bool kLast>
void forward(const Layer<T>& layer) {
  int32_t n_active = 0;
  by_tiles(layer.n_out, [&](auto rows, int64_t first) __attribute__((always_inline)) {
    constexpr int kRows = decltype(rows)::value;
    const T* weights[kRows];
    Lanes<T> on[kRows];
    for (int r = 0; r < kRows; ++r) {
      weights[r] = layer.weight + (first + r) * layer.n_in;
      on[r] = Lanes<T>{};
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
          on[r] += value;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      if (kLast || any(on[r] != 0)) layer.out_active[n_active++] = static_cast<int32_t>(first + r);
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

// Adds up the lanes of the gradients, in float64, and takes a step.
template <class T>
void adam_step(const MlpTraining& all, const Mlp& mlp, T* __restrict gradients, int64_t step) {
  AdamStep options = all.adam;
  options.step = static_cast<double>(step);
  const Adam<T> adam = options.as<T>();
  T* __restrict parameters = static_cast<T*>(mlp.parameters);
  T* __restrict means = static_cast<T*>(mlp.exp_avgs);
  T* __restrict squares = static_cast<T*>(mlp.exp_avg_sqs);
  for (int64_t p = 0; p < all.n_parameters; ++p) {
    double sums[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) sums[l] = gradients[p * kLanes<T> + l];
#pragma GCC unroll 4
    for (int half = kLanes<T> / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    gradients[p] = static_cast<T>(sums[0]);
  }
#pragma omp simd
  for (int64_t p = 0; p < all.n_parameters; ++p) {
    parameters[p] = adam.update(parameters[p], gradients[p], means[p], squares[p]);
  }
}

template <class T>
void train(const MlpTraining& all, const Mlp& mlp, MlpLayer* layers, void* lane_gradients) {
  const T* parameters = static_cast<const T*>(mlp.parameters);
  T* gradients = static_cast<T*>(lane_gradients);
  const T scale = static_cast<T>(2.0 / static_cast<double>(all.n_samples * all.n_outputs));
  const auto at = [&](int64_t l) __attribute__((always_inline)) {
    return Layer<T>(layers[l], parameters, gradients);
  };
  const int64_t last = all.n_layers - 1;
  for (int64_t epoch = 0; epoch < all.n_epochs; ++epoch) {
    memset(gradients, 0, all.n_parameters * sizeof(Lanes<T>));
    double squares = 0.0;
    for (int64_t block = 0; block < all.n_blocks(); ++block) {
      layers[0].in = static_cast<const T*>(all.x) + block * all.n_inputs * kBlockSamples;
      const T* y = static_cast<const T*>(all.y) + block * all.n_outputs * kBlockSamples;
      for (int64_t l = 0; l < last; ++l) forward<T, false>(at(l));
      const Layer<T> output = at(last);
      forward<T, true>(output);
      // Samples past the end have no error.
      for (int64_t s = all.n_samples - block * kBlockSamples; s < kBlockSamples; ++s) {
        for (int64_t j = 0; j < all.n_outputs; ++j) {
          output.out[j * kBlockSamples + s] = y[j * kBlockSamples + s];
        }
      }
      squares += backward_loss<T>(output, y, scale);
      for (int64_t l = last; l > 0; --l) {
        const Layer<T> layer = at(l);
        add_weight_gradient<T>(layer);
        backward<T>(layer, at(l - 1));
      }
      add_weight_gradient<T>(at(0));
    }
    mlp.losses[epoch] = squares / static_cast<double>(all.n_samples * all.n_outputs);
    adam_step<T>(all, mlp, gradients, all.first_step + epoch);
  }
}

constexpr MlpTrainingKernels kernels = {{train<float>, train<double>}};
