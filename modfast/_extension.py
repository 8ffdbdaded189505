"""Loads the compiled operators once and says exactly what is wrong when it cannot.

Everything else asks this module: `has_ops()` whether compiled kernels run, and `operator()` for the
callable of an operator, which is the compiled one or, without the library, the plain-torch one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from modfast import reference
from modfast.precision import precise


def _library_folders() -> list[Path]:
    """The package's own folder, then that of a modfast installed elsewhere on the path.

    The second matters to someone who runs `python -m modfast` in a clone after `pip install .`:
    Python then imports the clone, whose library lies with the installed package.
    """
    here = Path(__file__).resolve().parent
    elsewhere = [(Path(entry) / "modfast").resolve() for entry in sys.path]
    return [here, *(folder for folder in elsewhere if folder != here and folder.is_dir())]


def _load(name: str) -> ModuleType | None:
    """The compiled module `modfast.<name>`; None where no such library was built."""
    for folder in _library_folders():
        spec = importlib.machinery.PathFinder.find_spec(f"modfast.{name}", [str(folder)])
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[f"modfast.{name}"] = module
            return module
    return None


def _load_cpu() -> ModuleType | None:
    try:
        module = _load("_C")
    except ImportError as error:
        why = f"the compiled library could not be loaded ({error})"
    else:
        if module is not None:
            return module
        why = f"no compiled library lies in {Path(__file__).resolve().parent}"
    warnings.warn(
        f"modfast runs without its compiled kernels, many times slower: {why}. "
        "Reinstall with `pip install .` from a clone, or a wheel for this platform.",
        RuntimeWarning,
        stacklevel=4,
    )
    return None


def _load_cuda() -> bool:
    """Loads the CUDA operators where torch has CUDA; warns where a GPU would go unused."""
    if library is None or torch.version.cuda is None:
        return False
    why = ""
    for folder in _library_folders():
        found = sorted(folder.glob("_cuda*.so")) + sorted(folder.glob("_cuda*.pyd"))
        if found:
            try:
                torch.ops.load_library(str(found[0]))
                return True
            except OSError as error:
                why = f"{found[0].name} could not be loaded ({error})"
                break
    if torch.cuda.is_available():
        why = why or f"it was built without them: {library.build_info()['cuda_because']}"
        warnings.warn(
            f"modfast has no CUDA kernels, so CUDA tensors take plain torch: {why}.",
            RuntimeWarning,
            stacklevel=4,
        )
    return False


library: ModuleType | None = _load_cpu()
cuda_loaded: bool = _load_cuda()


def has_ops() -> bool:
    """Whether the compiled kernels are in use.

    False means that every operator runs as plain torch (`modfast.reference`): the same numbers,
    many times slower.

    Example:
        >>> import modfast
        >>> modfast.has_ops() in (True, False)
        True
    """
    return library is not None


def operator(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The callable of operator `modfast::<name>`, ready for torch.compile.

    `fake` computes the outputs' shapes and dtypes. Devices without a compiled kernel take the
    plain-torch one of the same name in `modfast.reference`.
    """
    plain: Callable[..., Any] = precise(getattr(reference, name))
    if not has_ops():
        return plain
    torch.library.register_fake(f"modfast::{name}", fake)
    torch.library.impl(f"modfast::{name}", "CompositeExplicitAutograd")(plain)
    overload: Callable[..., Any] = getattr(torch.ops.modfast, name).default

    def call(*args: Any) -> Any:
        if not torch.compiler.is_compiling() and _reference.get():
            return plain(*args)
        return overload(*args)

    return call


_reference: ContextVar[bool] = ContextVar("modfast_reference", default=False)


@contextmanager
def reference_mode() -> Iterator[None]:
    """Within it, every function runs by the plain oracle: the model itself, and plain torch.

    Nothing is recorded, fused or batched: each change at a site is a run of the model with a hook,
    and operators are those of `modfast.reference`, in float64. A number that differs from the usual
    one by more than rounding is a fault of a faster way.

    Example:
        >>> import torch, modfast
        >>> model, x = modfast.models.MLP([8, 6, 3]), torch.randn(20, 8)
        >>> with modfast.reference_mode():
        ...     plain = modfast.ablate_units(model, x, "act1")
        >>> quick = modfast.ablate_units(model, x, "act1")
        >>> plain.backend, quick.backend
        ('model', 'fused')
        >>> torch.allclose(plain.kl_ablated_original, quick.kl_ablated_original, rtol=1e-4)
        True
    """
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def is_reference() -> bool:
    """Whether `reference_mode` is on."""
    return _reference.get()
