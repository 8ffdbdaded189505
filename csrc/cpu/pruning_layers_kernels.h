// What greedy pruning keeps of the layers, and the losses; compiled per SIMD level. Include after
// lanes_kernels.h.

// Outputs whose sums are kept in registers, two vectors of each.
constexpr int kGroup = MODFAST_SIMD_BITS == 512 ? 10 : 5;

constexpr int64_t groups_of(int64_t n) { return (n + kGroup - 1) / kGroup; }

// What a layer makes of one block of inputs, input(k) for input k: to [unit][lane].
template <class T, class Input>
MODFAST_LANE void linear(const PruningLayer<T>& layer, const Input& input, T* to) {
  for (int64_t g = 0; g < groups_of(layer.n_out); ++g) {
    const T* packed = layer.packed.data() + g * kGroup * layer.n_in;
    Lanes<T> sums[kGroup] = {};
    for (const int32_t k : layer.inputs) {
      const Lanes<T> h = input(k);
#pragma GCC unroll 16
      for (int r = 0; r < kGroup; ++r) sums[r] += h * packed[k * kGroup + r];
    }
    const int64_t first = g * kGroup, n = layer.n_out - first < kGroup ? layer.n_out - first : kGroup;
    for (int r = 0; r < n; ++r) store_lanes(to + (first + r) * kLanes<T>, sums[r] + layer.bias[first + r]);
  }
}

// The blocks before those of a tile.
template <class T>
MODFAST_LANE int64_t blocks_before(const Pruning<T>& p, int64_t tile) {
  return tile * p.tile_blocks < p.n_blocks ? tile * p.tile_blocks : p.n_blocks;
}

// f(block) for the blocks of a part, or of a tile.
template <class T, class F>
MODFAST_LANE void for_each_block(const Pruning<T>& p, PruningPart<T> part, const F& f) {
  const int64_t end = blocks_before(p, part.end);
  for (int64_t b = blocks_before(p, part.begin); b < end; ++b) f(b);
}
template <class T, class F>
MODFAST_LANE void for_each_block(const Pruning<T>& p, int64_t tile, const F& f) {
  for_each_block(p, PruningPart<T>{tile, tile + 1, nullptr, nullptr}, f);
}

// v in double, with as many vectors as it takes.
template <class T>
struct Wide {
  static constexpr int n = sizeof(double) / sizeof(T);
  Lanes<double> part[n];
};
MODFAST_LANE Wide<double> widen(Lanes<double> v) { return {{v}}; }
MODFAST_LANE Wide<float> widen(Lanes<float> v) {
#if MODFAST_SIMD_BITS == 512
  return {{_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))}};
#elif MODFAST_SIMD_BITS == 256
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))}};
#else
  Wide<float> wide;
  for (int l = 0; l < kLanes<float>; ++l) wide.part[l / kLanes<double>][l % kLanes<double>] = v[l];
  return wide;
#endif
}

// sums += v, in double
template <class T>
MODFAST_LANE void add_wide(Lanes<double> (&sums)[2], Lanes<T> v) {
  const Wide<T> wide = widen(v);
  for (int i = 0; i < Wide<T>::n; ++i) sums[i] += wide.part[i];
}

// Makes these the sums of a tile.
template <class T>
MODFAST_LANE void store_sums(Pruning<T>& p, int64_t tile, const Lanes<double> (&sums)[2]) {
  static_assert(kLanes<double> <= kSumLanes);
  store_lanes(p.sums.data() + tile * kSumLanes, sums[0] + sums[1]);
}

// The inputs of the tiles, column by column in each block, to [block][column][lane]; and in how many blocks
// of a tile a column is not all zero, to the end of its entries there.
template <class T>
void pruning_columns(Pruning<T>& p, PruningPart<T> part, T* to) {
  constexpr int64_t n_lanes = kLanes<T>;
  const int64_t n_in = p.layers[0].n_in;
  for_each_block(p, part, [&](int64_t b) {
    const int64_t left = p.n_samples - b * n_lanes;
    T* block = to + b * n_in * n_lanes;
    transpose(p.inputs + b * n_lanes * n_in, left < n_lanes ? left : n_lanes, n_in, n_in, n_lanes, block);
    int64_t* n_entries = p.columns.begin.data() + b / p.tile_blocks + 1;
    for (int64_t j = 0; j < n_in; ++j) n_entries[j * p.n_tiles] += any(load_lanes(block + j * n_lanes) != 0);
  });
}

// The columns' entries, and the pre-activations of the pruned layer, from the inputs as above.
template <class T>
void pruning_start(Pruning<T>& p, PruningPart<T> part, const T* from) {
  constexpr int64_t n_lanes = kLanes<T>;
  PruningLayer<T>& layer = p.layers[0];
  for (int64_t tile = part.begin; tile < part.end; ++tile) {
    for (const int32_t j : layer.inputs) {
      int64_t e = *p.entries(j, tile);
      for_each_block(p, tile, [&](int64_t b) {
        const Lanes<T> x = load_lanes(from + (b * layer.n_in + j) * n_lanes);
        if (!p.is_last() && !any(x != 0)) return;
        p.columns.index[e] = static_cast<int32_t>(b);
        store_lanes(p.columns.value.data() + e++ * n_lanes, x);
      });
    }
  }
  for_each_block(p, part, [&](int64_t b) {
    const T* x = from + b * layer.n_in * n_lanes;
    linear(layer, [&](int64_t k) { return load_lanes(x + k * n_lanes); },
           layer.values.data() + b * layer.n_out * n_lanes);
  });
}

// The pre-activations of unit `row` of the pruned layer from its weights, for the tiles of a part: to kNow.
template <class T>
void pruning_fill_row(Pruning<T>& p, int64_t row, const T* weights, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>, stride = kPruningFields * n_lanes;
  const PruningLayer<T>& layer = p.layers[0];
  const auto now = [&](int64_t b) { return p.fields.data() + b * stride + (kNow + p.side[b]) * n_lanes; };
  for_each_block(p, part, [&](int64_t b) { store_lanes(now(b), splat(layer.bias[row])); });
  for (const int32_t j : layer.inputs) {
    if (weights[j] == T(0)) continue;
    const int64_t end = *p.entries(j, part.end);
    for (int64_t e = *p.entries(j, part.begin); e < end; ++e) {
      T* to = now(p.columns.index[e]);
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

// The pre-activations of layers after `from`, from those of `from`, for the tiles of a part.
template <class T>
void pruning_advance(Pruning<T>& p, size_t from, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>;
  for (size_t m = from + 1; m < p.layers.size(); ++m) {
    PruningLayer<T>& layer = p.layers[m];
    for_each_block(p, part, [&](int64_t b) {
      const T* before = values_of(p, m - 1, b, part.work);
      T* after = part.work + p.n_widest * n_lanes;
      linear(layer, [&](int64_t k) { return larger(load_lanes(before + k * n_lanes), Lanes<T>{}); }, after);
      transpose(after, layer.n_out, n_lanes, n_lanes, layer.stride, layer.values.data() + b * n_lanes * layer.stride);
    });
  }
}

// Takes kNow of unit `row` over into its layer's pre-activations and those of the layers after it, for
// the tiles of a part.
template <class T>
void pruning_settle(Pruning<T>& p, int64_t row, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>;
  PruningLayer<T>& own = p.layers[0];
  for_each_block(p, part, [&](int64_t b) {
    const Lanes<T> now = load_lanes(p.fields.data() + (b * kPruningFields + kNow + p.side[b]) * n_lanes);
    T* place = own.values.data() + (b * own.n_out + row) * n_lanes;
    const Lanes<T> change = larger(now, Lanes<T>{}) - larger(load_lanes(place), Lanes<T>{});
    store_lanes(place, now);
    if (p.is_last()) return;
    const int64_t stride = p.layers[1].stride;
    const T* weights = p.dense_readers.data() + row * stride;
    T* next = p.layers[1].values.data() + b * n_lanes * stride;
    for (int l = 0; l < n_lanes; ++l, next += stride) {
      const T by = change[l];
      for (int64_t k = 0; k < stride; k += n_lanes) {
        store_lanes(next + k, load_lanes(next + k) + load_lanes(weights + k) * by);
      }
    }
  });
  if (!p.is_last()) pruning_advance(p, 1, part);
}

template <class T>
MODFAST_LANE Mask<T> is_class(Mask<T> targets, int64_t c) {
  return targets == static_cast<std::remove_reference_t<decltype(targets[0])>>(c);
}

// Those of a block's samples; -1 in lanes past the last.
template <class T>
MODFAST_LANE Mask<T> targets_of(const Pruning<T>& p, int64_t block) {
  return (Mask<T>)load_lanes(reinterpret_cast<const T*>(p.classes.data()) + block * kLanes<T>);
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

// The losses from the logits: to kLoss, and their sums over the tiles of a part.
template <class T>
void pruning_losses(Pruning<T>& p, PruningPart<T> part) {
  constexpr int64_t n_lanes = kLanes<T>;
  const PruningLayer<T>& last = p.layers.back();
  for (int64_t tile = part.begin; tile < part.end; ++tile) {
    Lanes<double> sums[2] = {};
    for_each_block(p, tile, [&](int64_t b) {
      const Mask<T> targets = targets_of(p, b);
      const T* logits = values_of(p, p.layers.size() - 1, b, part.work);
      const Exponentials<T> found = exponentials<T>(logits, last.n_out, targets, [](int64_t, Lanes<T>) {});
      const Lanes<T> loss = targets < 0 ? Lanes<T>{} : found.loss;
      store_lanes(p.fields.data() + (b * kPruningFields + kLoss + p.side[b]) * n_lanes, loss);
      add_wide<T>(sums, loss);
    });
    store_sums(p, tile, sums);
  }
}
