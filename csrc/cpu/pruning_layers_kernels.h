// What greedy pruning keeps of the layers, and the losses; compiled per SIMD level. Include after
// lanes_kernels.h.

// Outputs whose sums are kept in registers, two vectors of each.
constexpr int kGroup = MODFAST_SIMD_BITS == 512 ? 10 : 5;

constexpr int64_t groups_of(int64_t n) { return (n + kGroup - 1) / kGroup; }

// The inputs of a tile's blocks, column by column in each block: to [block][column][lane].
template <class T>
void pruning_columns(Pruning<T>& p, PruningTile<T> tile, T* to) {
  constexpr int64_t n_lanes = kLanes<T>;
  const int64_t n_in = p.layers[0].n_in;
  for (int64_t b = tile.begin; b < tile.end; ++b) {
    const int64_t left = p.n_samples - b * n_lanes;
    transpose(p.inputs + b * n_lanes * n_in, left < n_lanes ? left : n_lanes, n_in, n_in, n_lanes,
              to + b * n_in * n_lanes);
  }
}

// The pre-activations of unit `row` of the pruned layer from its weights, for the blocks of a tile: to kNow.
template <class T>
void pruning_fill_row(Pruning<T>& p, int64_t row, const T* weights, PruningTile<T> tile) {
  constexpr int64_t n_lanes = kLanes<T>, stride = kPruningFields * n_lanes;
  const PruningLayer<T>& layer = p.layers[0];
  T* now = p.fields.data() + kNow * n_lanes;
  for (int64_t b = tile.begin; b < tile.end; ++b) store_lanes(now + b * stride, splat(layer.bias[row]));
  for (int64_t j = 0; j < layer.n_in; ++j) {
    if (weights[j] == T(0)) continue;
    for (int64_t e = p.columns.begin[j]; e < p.columns.begin[j + 1]; ++e) {
      const int64_t b = p.columns.index[e];
      if (b < tile.begin || b >= tile.end) continue;
      T* to = now + b * stride;
      store_lanes(to, load_lanes(to) + load_lanes(p.columns.value.data() + e * n_lanes) * weights[j]);
    }
  }
}

// The pre-activations of a layer in a block, as [unit][lane]; `work` is room for them.
template <class T>
MODFAST_LANE const T* values_of(const Pruning<T>& p, size_t m, int64_t b, T* work) {
  const PruningLayer<T>& layer = p.layers[m];
  if (m == 0) return layer.values.data() + b * layer.n_out * kLanes<T>;
  transpose(layer.values.data() + b * kLanes<T> * layer.stride, kLanes<T>, layer.stride, layer.stride, kLanes<T>, work);
  return work;
}

// The pre-activations of layers after `from`, from those of `from`, for the blocks of a tile.
template <class T>
void pruning_advance(Pruning<T>& p, size_t from, PruningTile<T> tile) {
  constexpr int64_t n_lanes = kLanes<T>;
  for (size_t m = from + 1; m < p.layers.size(); ++m) {
    PruningLayer<T>& layer = p.layers[m];
    for (int64_t b = tile.begin; b < tile.end; ++b) {
      const T* before = values_of(p, m - 1, b, tile.work);
      T* after = tile.work + p.n_widest * n_lanes;
      for (int64_t g = 0; g < groups_of(layer.n_out); ++g) {
        const T* packed = layer.packed.data() + g * kGroup * layer.n_in;
        Lanes<T> sums[kGroup] = {};
        for (const int32_t k : layer.inputs) {
          const Lanes<T> h = larger(load_lanes(before + k * n_lanes), Lanes<T>{});
#pragma GCC unroll 16
          for (int r = 0; r < kGroup; ++r) sums[r] += h * packed[k * kGroup + r];
        }
        const int64_t first = g * kGroup, n = layer.n_out - first < kGroup ? layer.n_out - first : kGroup;
        for (int r = 0; r < n; ++r) store_lanes(after + (first + r) * n_lanes, sums[r] + layer.bias[first + r]);
      }
      transpose(after, layer.n_out, n_lanes, n_lanes, layer.stride, layer.values.data() + b * n_lanes * layer.stride);
    }
  }
}

// Takes kNow of unit `row` over into its layer's pre-activations and those of the layers after it, for
// the blocks of a tile.
template <class T>
void pruning_settle(Pruning<T>& p, int64_t row, bool into_others, PruningTile<T> tile) {
  constexpr int64_t n_lanes = kLanes<T>;
  PruningLayer<T>& own = p.layers[0];
  for (int64_t b = tile.begin; b < tile.end; ++b) {
    const Lanes<T> now = load_lanes(p.fields.data() + (b * kPruningFields + kNow) * n_lanes);
    T* place = own.values.data() + (b * own.n_out + row) * n_lanes;
    const Lanes<T> change = larger(now, Lanes<T>{}) - larger(load_lanes(place), Lanes<T>{});
    store_lanes(place, now);
    if (p.is_last() || !into_others) continue;
    const int64_t stride = p.layers[1].stride;
    const T* weights = p.dense_readers.data() + row * stride;
    T* next = p.layers[1].values.data() + b * n_lanes * stride;
    for (int l = 0; l < n_lanes; ++l, next += stride) {
      const T by = change[l];
      for (int64_t k = 0; k < stride; k += n_lanes) {
        store_lanes(next + k, load_lanes(next + k) + load_lanes(weights + k) * by);
      }
    }
  }
  if (!p.is_last() && into_others) pruning_advance(p, 1, tile);
}

template <class T>
MODFAST_LANE Mask<T> is_class(Mask<T> targets, int64_t c) {
  return targets == static_cast<std::remove_reference_t<decltype(targets[0])>>(c);
}

// Those of a block's samples; -1 in lanes past the last.
template <class T>
MODFAST_LANE Mask<T> targets_of(const Pruning<T>& p, int64_t block) {
  Mask<T> targets;
  for (int64_t l = 0, i = block * kLanes<T>; l < kLanes<T>; ++l, ++i) {
    targets[l] = i < p.n_samples ? p.targets[i] : -1;
  }
  return targets;
}

template <class T>
struct Exponentials {
  Lanes<T> total, loss;
};

// keep(c, e^(z_c - largest z)) for every class; their sum, and the loss. logits: [class][lane].
template <class T, class Keep>
MODFAST_LANE Exponentials<T> exponentials(const T* logits, int64_t n_classes, Mask<T> targets,
                                          const Keep& keep) {
  constexpr int64_t n_lanes = kLanes<T>;
  Lanes<T> largest = load_lanes(logits), own{}, total{};
  for (int64_t c = 1; c < n_classes; ++c) largest = larger(largest, load_lanes(logits + c * n_lanes));
  for (int64_t c = 0; c < n_classes; ++c) {
    const Lanes<T> d = load_lanes(logits + c * n_lanes) - largest, e = exp_down<T>(d);
    own = is_class<T>(targets, c) ? d : own;
    total += e;
    keep(c, e);
  }
  return {total, log_up<T>(total) - own};
}

// The losses of the blocks of a tile from their logits: to kLoss, and their sum.
template <class T>
double pruning_losses(Pruning<T>& p, PruningTile<T> tile) {
  constexpr int64_t n_lanes = kLanes<T>;
  const PruningLayer<T>& last = p.layers.back();
  double sum = 0.0;
  for (int64_t b = tile.begin; b < tile.end; ++b) {
    const Mask<T> targets = targets_of(p, b);
    const T* logits = values_of(p, p.layers.size() - 1, b, tile.work);
    const Exponentials<T> found = exponentials<T>(logits, last.n_out, targets, [](int64_t, Lanes<T>) {});
    const Lanes<T> loss = targets < 0 ? Lanes<T>{} : found.loss;
    store_lanes(p.fields.data() + (b * kPruningFields + kLoss) * n_lanes, loss);
    for (int l = 0; l < n_lanes; ++l) sum += loss[l];
  }
  return sum;
}
