"""Defects, each one small change of the sources, and the tests that must catch it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defect:
    """`old`, found once in `file`, becomes `new`; `tests` are pytest's names of tests."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def plant(self, root: Path) -> None:
        """Changes the copy of the sources below `root`."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        found = text.count(self.old)
        assert found == 1, f"{self.file} has {found} times: {self.old!r}; say what to change now"
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


# In Python, of the package alone.
PYTHON = (
    Defect(
        "a benchmark's target is turned around",
        "modfast/bench/timing.py",
        'if case["found"][name] < least',
        'if case["found"][name] > least',
        ("tests/test_bench.py::test_missed_targets",),
    ),
    Defect(
        "a bound check of classes is dropped",
        "modfast/network/logits.py",
        "if high >= n_classes or low < 0:",
        "if low < 0:",
        ("tests/ablation/test_state.py::test_bad_arguments",),
    ),
    Defect(
        "a hook is left on a module",
        "modfast/network/visits.py",
        "        self.handle.remove()",
        "        del self.handle",
        ("tests/ablation/test_state.py::test_runs_in_eval_mode_and_leaves_the_model_as_it_was",),
    ),
    Defect(
        "an interrupt is swallowed",
        "modfast/files.py",
        "    finally:\n        with suppress(OSError):\n            temporary.unlink",
        "    except BaseException:\n        with suppress(OSError):\n            temporary.unlink",
        ("tests/test_files.py::test_an_interrupt_leaves_the_old_file",),
    ),
    Defect(
        "positions stay where they were as a list of the largest moves on",
        "modfast/features/activating.py",
        "            told[changed] = taken(told[changed], before)",
        "            told[changed] = told[changed].clone()",
        ("tests/features/test_positions.py::test_tokens_and_those_around",),
    ),
    Defect(
        "what a failed capture has written stays",
        "modfast/network/stored.py",
        "self.temporary.unlink(missing_ok=True)",
        "self.temporary.exists()",
        ("tests/network/test_stored.py::test_nothing_half_written_is_left",),
    ),
    Defect(
        "a global generator is drawn from",
        "modfast/training/fit.py",
        'self.generator = torch.Generator("cpu")',
        "self.generator = torch.default_generator",
        (
            "tests/training/test_fit.py::"
            "test_same_seed_same_weights_and_global_random_state_untouched",
        ),
    ),
    Defect(
        "the global generator is seeded",
        "modfast/information/kmeans.py",
        'generator = torch.Generator("cpu").manual_seed(seed)',
        "generator = torch.manual_seed(seed)",
        (
            "tests/information/test_surroundings.py::"
            "test_no_measure_draws_from_the_global_generator",
        ),
    ),
    Defect(
        "a message names no argument",
        "modfast/checks.py",
        'raise ValueError(f"{argument} must be at least 1, got {value!r}")',
        'raise ValueError(f"must be at least 1, got {value!r}")',
        ("tests/network/test_capture.py::test_bad_batch_size",),
    ),
    Defect(
        "a value on an edge goes to the bin below",
        "modfast/reference/information.py",
        "torch.searchsorted(edges, columns, right=True)",
        "torch.searchsorted(edges, columns)",
        ("tests/ops/test_digitize.py::test_edges",),
    ),
    Defect(
        "sums are taken in float32",
        "modfast/information/counts.py",
        "torch.special.xlogy(counts, counts).sum(-1) / total",
        "torch.special.xlogy(counts, counts).float().sum(-1).double() / total",
        ("tests/information/test_entropies.py::test_pooled_counts_and_entropies_are_numpys",),
    ),
    Defect(
        "a result lies in memory that the model goes on writing to",
        "modfast/network/capture.py",
        "parts[site.name].append(value.clone())",
        "parts[site.name].append(value)",
        ("tests/network/test_capture.py::test_work_in_place_does_not_show",),
    ),
    Defect(
        "a divergence has the wrong sign",
        "modfast/reference/ablation.py",
        "-(p * change).sum(-1),",
        "(p * change).sum(-1),",
        ("tests/ops/test_ablation.py::test_logits_match_reference",),
    ),
    Defect(
        "accuracy counts wrong targets",
        "modfast/reference/ablation.py",
        "(ablated.argmax(-1) == chosen)",
        "(ablated.argmax(-1) >= chosen)",
        ("tests/ops/test_ablation.py::test_logits_match_reference",),
    ),
    Defect(
        "training flags are not put back",
        "modfast/network/run.py",
        "        stack.callback(_set_flags, flags)\n",
        "",
        ("tests/network/test_capture.py::test_dropout_is_off_and_batch_norm_untouched",),
    ),
    Defect(
        "an old name no longer warns",
        "modfast/_renamed.py",
        '    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel + 1)',
        "    return",
        ("tests/test_renamed.py::test_old_arguments",),
    ),
    Defect(
        "the random state is not put back after a run",
        "modfast/network/state.py",
        "        torch.set_rng_state(self.torch)\n",
        "",
        ("tests/network/test_state.py::test_random_states_are_put_back[torch-1]",),
    ),
    Defect(
        "positions of a patch are not looked at",
        "modfast/ablation/units.py",
        "    return value if where is None else torch.where(where, value, at.features)",
        "    return value.expand(at.features.shape) if where is not None else value",
        ("tests/ablation/test_values.py::test_positions_are_indices_masks_and_samples_own",),
    ),
    Defect(
        "a sample is given its own values again",
        "modfast/ablation/values.py",
        "taken[order] = order.roll(1)",
        "taken[order] = order",
        ("tests/ablation/test_patching.py::test_every_value[resample-GPT-2]",),
    ),
    Defect(
        "a gradient is taken of what is written to later",
        "modfast/ablation/estimates.py",
        "taken = values[site.name].clone()",
        "taken = values[site.name]",
        ("tests/network/test_zoo_patching.py::test_scores_are_gradients_times_changes",),
    ),
    Defect(
        "a constant from nowhere is taken for one",
        "modfast/network/parts.py",
        "tape.writes or tape.doubts",
        "tape.writes",
        ("tests/ablation/test_values.py::test_a_site_that_something_unseen_depends_on",),
    ),
    Defect(
        "a room imports what stands above it",
        "modfast/features/purity.py",
        "from torch import Tensor\n",
        "from torch import Tensor\n\nimport modfast.report\n",
        ("tests/test_architecture.py",),
    ),
)

# In C++: .ci/sanitize plants them, and the sanitizers must report them.
BOUND = Defect(
    "the last part of units goes on beyond their end",
    "csrc/cpu/top.cpp",
    "std::min(unit + kPartUnits, all.n_units)",
    "unit + kPartUnits",
    ("tests/ops/test_top.py::test_is_what_sorting_gives",),
)
RACE = Defect(
    "threads count in one number without turns",
    "csrc/cpu/top.cpp",
    "std::atomic<int64_t> n_nan{0};",
    "int64_t n_nan = 0;",
    ("tests/ops/test_top.py::test_large_and_same_bits_for_any_number_of_threads",),
)
CREW = Defect(
    "a step's end is told, but not what it wrote",
    "csrc/cpu/crew.h",
    "done.store(number, std::memory_order_release)",
    "done.store(number, std::memory_order_relaxed)",
    (),
)
