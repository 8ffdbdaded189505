"""The studies' data sets, as whole tensors in memory.

They are small enough to be held, and shuffling indices of a tensor costs far less than a loader
that fetches sample by sample.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from modfast import checks

__all__ = ["NAMES", "Dataset", "load", "physics", "physics_grids"]

NAMES = ("digits", "mnist", "physics")

# The mean and standard deviation of MNIST's training pixels, as everybody rounds them.
_MNIST_MEAN, _MNIST_STD = 0.1307, 0.3081


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split into training and test tensors, on the CPU.

    Attributes:
        name: The name that :func:`load` knows it by.
        train_x: Training inputs ``[n_train, ...]``, float32.
        train_y: Training targets: classes ``[n_train]``, int64, or values ``[n_train, n_outputs]``,
            float32.
        test_x: Test inputs ``[n_test, ...]``, float32.
        test_y: Test targets, as ``train_y``.
        n_outputs: The number of classes, or of regressed values: a model's number of outputs.

    Example:
        >>> import torch
        >>> from modfast.data import Dataset
        >>> x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
        >>> data = Dataset("mine", x, y, x, y, n_outputs=3)
        >>> data.is_classification
        True
    """

    name: str
    train_x: Tensor = field(repr=False)
    train_y: Tensor = field(repr=False)
    test_x: Tensor = field(repr=False)
    test_y: Tensor = field(repr=False)
    n_outputs: int

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The pair ``(train_x, train_y)``."""
        return self.train_x, self.train_y

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The pair ``(test_x, test_y)``."""
        return self.test_x, self.test_y

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes; else they are values to regress."""
        return not self.train_y.is_floating_point()


def load(name: str, root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """Loads a data set by its name; the same name always gives the same tensors.

    - ``"digits"``: scikit-learn's 8x8 handwritten digits, ``[1437, 1, 8, 8]`` for training and
      ``[360, 1, 8, 8]`` for test, 10 classes. The split is random with a fixed seed; pixels are
      shifted and scaled to mean 0 and standard deviation 1 over the training pixels.
    - ``"mnist"``: ``[60000, 1, 28, 28]`` for training and ``[10000, 1, 28, 28]`` for test, 10
      classes; pixels are ``(x / 255 - 0.1307) / 0.3081``.
    - ``"physics"``: two independent tasks F = m·a, ``[8000, 4]`` for training and ``[2000, 4]`` for
      test, two values to regress; see :func:`physics`.

    Args:
        name: One of the names above.
        root: The folder that holds torchvision's ``MNIST/raw``; only ``"mnist"`` reads it.
        download: Whether to fetch MNIST's files into ``root`` where they are missing.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: ``name`` is unknown, or it is ``"mnist"`` and ``root`` is None.
        FileNotFoundError: MNIST's files are not under ``root`` and ``download`` is False.
        ImportError: The library that provides the data is missing or broken: scikit-learn for
            ``"digits"``, torchvision for ``"mnist"``.

    Source: Digits: Alpaydin and Kaynak, UCI Machine Learning Repository, 1998, by scikit-learn.
        MNIST: LeCun, Cortes and Burges, by torchvision.

    Example:
        >>> from modfast.data import load
        >>> data = load("physics")
        >>> data
        Dataset(name='physics', n_outputs=2)
        >>> data.train_x.shape, data.test_y.shape
        (torch.Size([8000, 4]), torch.Size([2000, 2]))
    """
    checks.choice("name", name, NAMES)
    checks.flag("download", download)
    if name == "digits":
        return _digits()
    return _physics() if name == "physics" else _mnist(root, download)


def physics(n: int, *, eps: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws samples of two independent tasks F = m·a, to be learned by one network.

    For each task the target is y ~ U(0, 1) and the inputs are the factors x1 = u(1-eps) + eps,
    with u ~ U(0, 1), and x0 = y / x1, swapped with probability ½. So the product of a task's two
    inputs is its target, and neither task tells anything about the other.

    Args:
        n: Number of samples, at least 1.
        eps: Lower bound of the factor x1, in (0, 1]; inputs lie in [0, 1/eps].
        seed: Seed of the generator; torch's global one is left alone.

    Returns:
        Inputs ``[n, 4]``, float32: the two inputs of task A, then those of task B; and targets
        ``[n, 2]``, float32: task A's, then task B's.

    Raises:
        TypeError: ``n`` or ``seed`` is no integer, ``eps`` no number.
        ValueError: ``n`` is below 1, ``eps`` is outside (0, 1], or no generator takes ``seed``.

    Source: Section 7 of the specification.

    Example:
        >>> import torch
        >>> from modfast.data import physics
        >>> x, y = physics(100)
        >>> torch.allclose(x[:, 0] * x[:, 1], y[:, 0])
        True
    """
    n, eps = checks.count("n", n), checks.finite_number("eps", eps)
    checks.room("n", 48 * n)
    if not 0 < eps <= 1:
        raise ValueError(f"eps must lie in (0, 1], got {eps}")
    generator = torch.Generator("cpu").manual_seed(checks.seed("seed", seed))
    y, u, coin = torch.rand(3, n, 2, generator=generator, dtype=torch.float32, device="cpu")
    x1 = u * (1 - eps) + eps
    factors = torch.stack([y / x1, x1], dim=-1)
    swapped = torch.where((coin < 0.5).unsqueeze(-1), factors.flip(-1), factors)
    return swapped.flatten(1), y


def physics_grids(points: int = 100, *, fixed: float = 0.5) -> Tensor:
    """Inputs that vary one of the two tasks of :func:`physics` while the other stands still.

    Args:
        points: Points along each input, evenly from 0 to 1.
        fixed: Where the other task's two inputs stand.

    Returns:
        ``[2, points * points, 4]``, float32: first task A's two inputs take all pairs of values,
        then task B's.

    Raises:
        TypeError: ``points`` is no integer, ``fixed`` no number.
        ValueError: ``points`` is below 1, ``fixed`` not finite.

    Source: N4, with 100 points.

    Example:
        >>> from modfast.data import physics_grids
        >>> physics_grids(2)[1].tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 1.0], [0.5, 0.5, 1.0, 0.0], [0.5, 0.5, 1.0, 1.0]]
    """
    checks.room("points", 64 * checks.count("points", points) ** 2)
    line = torch.linspace(0, 1, points, dtype=torch.float32, device="cpu")
    varied = torch.cartesian_prod(line, line)
    fixed = checks.finite_number("fixed", fixed)
    if abs(fixed) > torch.finfo(torch.float32).max:
        raise ValueError(f"fixed must be finite in float32, got {fixed!r:.40}")
    still = torch.full_like(varied, fixed)
    return torch.stack([torch.cat([varied, still], 1), torch.cat([still, varied], 1)])


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f'load("digits") needs scikit-learn ({error}); '
            'install it with: pip install "modfast[analysis]"'
        ) from error
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1)
    y = torch.from_numpy(bunch.target).to(torch.int64)
    # The file is ordered by writer: only a shuffled split has the same hands on both sides.
    order = torch.randperm(len(x), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    train, test = order.tensor_split([1437])
    x = (x - x[train].mean()) / x[train].std()
    return Dataset("digits", x[train], y[train], x[test], y[test], n_outputs=10)


def _mnist(root: str | os.PathLike[str] | None, download: bool) -> Dataset:
    if root is None:
        raise ValueError(
            'root=None: load("mnist") must be told the folder of the files, as in '
            'load("mnist", root="data", download=True)'
        )
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError) as error:
        # Beside a torch that it was not built for, torchvision fails with RuntimeError.
        raise ImportError(
            f'load("mnist") needs a torchvision that fits torch {torch.__version__} '
            f'({type(error).__name__}: {error}); install it with: pip install "modfast[train]"'
        ) from error

    def half(train: bool) -> tuple[Tensor, Tensor]:
        files = MNIST(folder, train=train, download=download)
        x = files.data.to(torch.float32).div_(255).sub_(_MNIST_MEAN).div_(_MNIST_STD)
        return x.unsqueeze(1), files.targets.to(torch.int64)

    folder = Path(root).expanduser()
    try:
        return Dataset("mnist", *half(True), *half(False), n_outputs=10)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(
            f"root={str(root)!r}: torchvision reads no MNIST from {folder / 'MNIST' / 'raw'} "
            f"({error}); pass download=True, or the folder that holds MNIST/raw"
        ) from error


def _physics() -> Dataset:
    x, y = physics(10_000)
    return Dataset("physics", x[:8000], y[:8000], x[8000:], y[8000:], n_outputs=2)
