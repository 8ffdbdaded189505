// The sweep of ablations before a ReLU; compiled per SIMD level. Include after
// ablation_terms_kernels.h.
//
// A lane is an ablation, and the change it makes to hidden unit j of a sample is
//   max(h_j + s u_j, 0) - max(h_j, 0),   s: the sample's scale, u_j: the ablation's update.
// Of the ablations of a block and one sample, no |s u_j| is above the product of the largest |s| and the
// largest |u_j|. Where |h_j| is above it, unit j stays off, and changes nothing, or stays on, and the change
// is linear: all such units together move logit c by s sum_j u_j W_cj. Tables, made once for all
// samples, hold this sum over every subset of kTabled units. Only units that may cross, a fifth of them
// in the trained network of bench/bench_ablation.py, take a product for each class.

constexpr int kWord = 64;  // units of a word of bits
// Units of a table, which has an entry for each subset of them: as many as let the tables of a word and
// a class fit in a first-level cache.
constexpr int kTabled = 5;
constexpr int kTables = (kWord + kTabled - 1) / kTabled, kEntries = 1 << kTabled;
// Samples whose bits and linear changes lie in memory at once, in a second-level cache beside the tables
// of some hundred units; and the samples that tables of one word and class serve before the next ones.
constexpr int64_t kPart = 128;

template <class T>
struct ReluMemory {
  const int64_t n_words, n_tables;
  const int64_t updates_at, words_at, tables_at, linear_at, size;  // bytes
  char* memory;

  explicit ReluMemory(const AblationSweep& sweep, void* memory = nullptr)
      : n_words((sweep.n_hidden + kWord - 1) / kWord),
        n_tables(sweep.n_hidden / kWord * kTables + (sweep.n_hidden % kWord + kTabled - 1) / kTabled),
        updates_at(n_words * kWord * sizeof(T)),
        words_at(updates_at + sweep.n_hidden * kLaneBytes),
        tables_at(words_at + 3 * n_words * kPart * sizeof(uint64_t)),
        linear_at(tables_at + (sweep.tables ? sweep.n_classes * n_tables * kEntries * kLaneBytes : 0)),
        size(linear_at + (sweep.tables ? kPart * sweep.n_classes * kLaneBytes : 0)),
        memory(static_cast<char*>(memory)) {}

  // [n_words * kWord]: the largest |u_j| of the block
  T* most() const { return reinterpret_cast<T*>(memory); }
  // [n_hidden][ablation]
  T* updates() const { return reinterpret_cast<T*>(memory + updates_at); }
  // [kPart][n_words][3]: units that are surely on, maybe no longer on, and maybe no longer off
  uint64_t* words(int64_t i) const { return reinterpret_cast<uint64_t*>(memory + words_at) + i * 3 * n_words; }
  // [n_classes][n_tables][kEntries][ablation]
  T* tables(int64_t c) const {
    return reinterpret_cast<T*>(memory + tables_at) + c * n_tables * kEntries * kLanes<T>;
  }
  // [kPart][n_classes][ablation]
  T* linear(int64_t i, int64_t n_classes) const {
    return reinterpret_cast<T*>(memory + linear_at) + i * n_classes * kLanes<T>;
  }
};

template <class T>
int64_t relu_bytes(const AblationSweep& sweep) {
  return ReluMemory<T>(sweep).size;
}

// What the samples share of the ablations of a block.
template <class T>
void relu_tables(const AblationSweep& sweep, int64_t block, void* workspace) {
  using V = Lanes<T>;
  const ReluMemory<T> memory(sweep, workspace);
  const int64_t n_hidden = sweep.n_hidden;
  const int64_t first = block * kLanes<T>, n = sweep.n_ablations - first;
  T *updates = memory.updates(), *most = memory.most();
  transpose(static_cast<const T*>(sweep.updates) + first * n_hidden, n < kLanes<T> ? n : kLanes<T>, n_hidden,
            n_hidden, kLanes<T>, updates);
  for (int64_t j = 0; j < memory.n_words * kWord; ++j) most[j] = T(0);
  for (int64_t j = 0; j < n_hidden; ++j) {
    const V u = load_lanes(updates + j * kLanes<T>);
    most[j] = max_lanes<T>(larger(u, -u))[0];
  }
  if (!sweep.tables) return;
  Mask<T> bad{};
  for (int64_t c = 0; c < sweep.n_classes; ++c) {
    const T* weight =
        static_cast<const T*>(sweep.weight) + c / sweep.group * sweep.group * n_hidden + c % sweep.group;
    V sum{};
    for (int64_t table = 0; table < memory.n_tables; ++table) {
      T* to = memory.tables(c) + table * kEntries * kLanes<T>;
      store_lanes(to, V{});
      V entries[kEntries] = {};
#pragma GCC unroll 8
      for (int k = 0; k < kTabled; ++k) {
        const int unit = table % kTables * kTabled + k;
        const int64_t j = table / kTables * kWord + unit;
        const bool here = unit < kWord && j < n_hidden;
        const V term = here ? load_lanes(updates + j * kLanes<T>) * weight[j * sweep.group] : V{};
        sum += larger(term, -term);
#pragma GCC unroll 16
        for (int e = 0; e < 1 << k; ++e) {
          entries[(1 << k) + e] = entries[e] + term;
          store_lanes(to + ((1 << k) + e) * kLanes<T>, entries[(1 << k) + e]);
        }
      }
    }
    bad |= !(sum - sum == 0);
  }
  // Sums that are not finite would be so for a scale of 0 too: nothing is sure then.
  if (any(bad)) {
    for (int64_t j = 0; j < n_hidden; ++j) most[j] = std::numeric_limits<T>::infinity();
  }
}

template <class T>
MODFAST_LANE void classify(const AblationSweep& sweep, int64_t i, Lanes<T> scales, const T* most,
                           uint64_t* words) {
  using V = Lanes<T>;
  const T* hidden = static_cast<const T*>(sweep.hidden) + i * sweep.n_hidden;
  const V scale = max_lanes<T>(larger(scales, -scales));
  for (int64_t begin = 0; begin < sweep.n_hidden; begin += kWord, words += 3) {
    uint64_t sure = 0, on = 0;
    for (int64_t j = begin; j < begin + kWord && j < sweep.n_hidden; j += kLanes<T>) {
      const V h = load_first(hidden + j, sweep.n_hidden - j), bound = scale * load_lanes(most + j);
      sure |= static_cast<uint64_t>(bits_above<T>(larger(h, -h), bound)) << (j - begin);
      on |= static_cast<uint64_t>(bits_above<T>(h, V{})) << (j - begin);
    }
    const int64_t n = sweep.n_hidden - begin;
    const uint64_t here = n < kWord ? (uint64_t{1} << n) - 1 : ~uint64_t{0};
    words[0] = sweep.tables ? on & sure : 0;
    words[1] = on & ~words[0];
    words[2] = here & ~(on | sure);
  }
}

// sum_j u_j W_cj over the units that are surely on.
template <class T>
MODFAST_LANE void sum_linear(const AblationSweep& sweep, const ReluMemory<T>& memory, int64_t n) {
  using V = Lanes<T>;
  for (int64_t c = 0; c < sweep.n_classes; ++c) {
    for (int64_t word = 0; word < memory.n_words; ++word) {
      const T* tables = memory.tables(c) + word * kTables * kEntries * kLanes<T>;
      const int64_t rest = memory.n_tables - word * kTables;
      for (int64_t i = 0; i < n; ++i) {
        uint64_t units = memory.words(i)[3 * word];
        T* to = memory.linear(i, sweep.n_classes) + c * kLanes<T>;
        const auto entry = [&](int table) {
          const int64_t subset = units >> table * kTabled & (kEntries - 1);
          return load_lanes(tables + (table * kEntries + subset) * kLanes<T>);
        };
        V sums[4] = {word > 0 ? load_lanes(to) : V{}};
        if (rest >= kTables) {
#pragma GCC unroll 16
          for (int table = 0; table < kTables; ++table) sums[table % 4] += entry(table);
        } else {
          for (int table = 0; table < rest; ++table) sums[0] += entry(table);
        }
        store_lanes(to, (sums[0] + sums[1]) + (sums[2] + sums[3]));
      }
    }
  }
}

// Of sample i and the classes of a group from `first`, without what units that are surely on change.
template <int kGroup, class T>
MODFAST_LANE void changes_of_units(const AblationSweep& sweep, int64_t i, const ReluMemory<T>& memory,
                                   int64_t first, Lanes<T> scales, const uint64_t* words, T* changes) {
  using V = Lanes<T>;
  const T* updates = memory.updates();
  const T* weight = static_cast<const T*>(sweep.weight) + first * sweep.n_hidden;
  const T* hidden = static_cast<const T*>(sweep.hidden) + i * sweep.n_hidden;
  V sums[kGroup] = {};
  for (int64_t begin = 0; begin < sweep.n_hidden; begin += kWord, words += 3) {
    for (uint64_t word = words[1]; word != 0; word &= word - 1) {
      const int64_t j = begin + __builtin_ctzll(word);
      const V change = smaller(-scales * load_lanes(updates + j * kLanes<T>), splat(hidden[j]));
#pragma GCC unroll 16
      for (int c = 0; c < kGroup; ++c) sums[c] -= change * weight[j * kGroup + c];
    }
    for (uint64_t word = words[2]; word != 0; word &= word - 1) {
      const int64_t j = begin + __builtin_ctzll(word);
      const V change = larger(scales * load_lanes(updates + j * kLanes<T>) + hidden[j], V{});
#pragma GCC unroll 16
      for (int c = 0; c < kGroup; ++c) sums[c] += change * weight[j * kGroup + c];
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kGroup; ++c) store_lanes(changes + c * kLanes<T>, sums[c]);
}

// Samples [tile.begin, tile.end) of the ablations of one block, whose tables are in the workspace.
template <class T>
void sweep_relu(const AblationSweep& sweep, SampleTile tile, int64_t block, void* workspace) {
  using V = Lanes<T>;
  const ReluMemory<T> memory(sweep, workspace);
  const int64_t n_classes = sweep.n_classes;
  BlockTerms<T> terms(sweep, tile, block);
  for (int64_t first = tile.begin; first < tile.end; first += kPart) {
    const int64_t n = tile.end - first < kPart ? tile.end - first : kPart;
    for (int64_t i = 0; i < n; ++i) {
      classify<T>(sweep, first + i, terms.scales(first + i), memory.most(), memory.words(i));
    }
    if (sweep.tables) sum_linear<T>(sweep, memory, n);
    for (int64_t i = 0; i < n; ++i) {
      T changes[(kReluClasses + kReluWide) * kLanes<T>];
      const V scales = terms.scales(first + i);
      for (int64_t c = 0; c < n_classes; c += sweep.group) {
        T* to = changes + c * kLanes<T>;
        if (sweep.group == kReluWide) {
          changes_of_units<kReluWide>(sweep, first + i, memory, c, scales, memory.words(i), to);
        } else {
          changes_of_units<kReluNarrow>(sweep, first + i, memory, c, scales, memory.words(i), to);
        }
      }
      V low, high;
      for (int64_t c = 0; c < n_classes; ++c) {
        V change = load_lanes(changes + c * kLanes<T>);
        if (sweep.tables) {
          change += scales * load_lanes(memory.linear(i, n_classes) + c * kLanes<T>);
          store_lanes(changes + c * kLanes<T>, change);
        }
        low = c == 0 ? change : smaller(low, change);
        high = c == 0 ? change : larger(high, change);
      }
      const T* p = terms.probabilities(first + i);
      const auto change = [&](int64_t c) { return load_lanes(changes + c * kLanes<T>); };
      const V mean = mean_change<T>(n_classes, [=](int64_t c) { return p[c * kBlock<T>]; }, change);
      terms.add(first + i, high - low, mean, change);
    }
  }
  terms.finish();
}
