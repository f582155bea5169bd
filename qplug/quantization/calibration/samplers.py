"""Sampled operations: linear, convolution and matmul, each kept as capped rows of the one form O = L Rᵀ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.types import Site, Smoothing
from qplug.models.attention import MatMul
from qplug.quantization.calibration.product import Product


@dataclass(frozen=True)
class SampleSize:
    """Caps of the samples, whatever the number of images.

    Attributes:
        rows: rows (tokens, patches) of one linear or convolution.
        slices: images or windows of one attention matmul.
        slice_rows: query rows of each head and slice.
    """

    rows: int = 384
    slices: int = 32
    slice_rows: int = 16


class SampleRows:
    """SampleRows that arrive in pieces, in one buffer that is made when the first piece does.

    Small pieces kept between the large tensors of each batch would fragment the heap: with 16 batches, calibration then
    took twice the memory that it takes with one.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self.length = 0

    def add(self, start: int, piece: Tensor, expected: int) -> None:
        """Add ``piece`` to the rows from ``start`` on, which begin as zeros; ``expected`` rows are foreseen in all."""
        end = start + len(piece)
        if self._buffer is None:
            self._buffer = piece.new_zeros((max(expected, end), *piece.shape[1:]))
        elif end > len(self._buffer):
            self._buffer = torch.cat([self._buffer, piece.new_zeros((end - len(self._buffer), *piece.shape[1:]))])
        self._buffer[start:end] += piece
        self.length = max(self.length, end)

    def values(self) -> Tensor:
        """All rows so far, as a view."""
        if self._buffer is None:
            raise ValueError("no row was sampled: the operation was not called")
        return self._buffer[: self.length]

    def hold(self, values: Tensor | None) -> None:
        """Hold exactly these rows from now on, or none."""
        self._buffer, self.length = values, 0 if values is None else len(values)


class OperationSampler:
    """Base: which images contribute, and the storing of what they contribute; subclasses say what a row is."""

    def __init__(self, images: int, cap: int, per_image: int, seed: int) -> None:
        self.batch = self._first = 0
        self._chosen = set(torch.linspace(0, images - 1, min(images, cap)).round().int().tolist())
        self._per_image = max(1, per_image)
        self._generator = torch.Generator().manual_seed(seed)
        self.inputs, self.squares = SampleRows(), SampleRows()

    def begin(self, first: int, batch: int) -> None:
        """Announce the next batch: the index of its first image, and how many there are."""
        self._first, self.batch = first, batch

    def here(self) -> list[int]:
        """Places within the batch of the images that contribute."""
        return [i for i in range(self.batch) if self._first + i in self._chosen]

    def pick(self, count: int, of: int) -> Tensor:
        """``count`` places out of ``of``, without repetition, in order."""
        return torch.randperm(of, generator=self._generator)[: min(count, of)].sort().values

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """Sample what one call of the operation read and made."""
        raise TypeError(f"{type(self).__name__} does not implement record()")

    def keep(self, piece: Tensor, images: int, target: Tensor, choose: Callable[[Tensor], Tensor]) -> None:
        """Keep sampled rows of the input, and the squares of every gradient that comes to ``target``, summed.

        Args:
            piece: (rows, …) that ``images`` images contributed.
            images: how many did, from which the rows of all follow.
            target: the output (or the input, where the operation is no product) whose gradient counts.
            choose: takes the same rows of the gradient.
        """
        start, expected = self.inputs.length, len(piece) * len(self._chosen) // images
        self.inputs.add(start, piece, expected)
        if target.requires_grad:
            target.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self.squares.add(start, choose(gradient).square(), expected)
            )

    def product(self, module: nn.Module) -> Product | None:
        """The sample as a product, with the weight as it is now; ``None`` for norms and Softmax."""
        return None

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """The sampled input in the site's layout, and (dL/dx)² at it where the operation is no product."""
        return self.inputs.values(), None

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """The activation sample, in the site's layout, as (b, n, K)."""
        return x.unsqueeze(0)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """The other operand or the weight, in the site's layout, as (b, M, K)."""
        return x.unsqueeze(0)

    def smooth(self, smoothing: Smoothing) -> None:
        """Follow a smoothing of the input."""
        rows, self.inputs = self.inputs.values(), SampleRows()  # whoever holds the old rows keeps them
        self.inputs.add(0, (rows - smoothing.shift) / smoothing.scale, len(rows))

    def importance(self) -> Tensor | None:
        """(dL/dO)² of the sample, row by row, summed over the backward passes; ``None`` where there were none."""
        return self.squares.values() if self.squares.length else None


class TokenSampler(OperationSampler):
    """A linear (product with its weight), or a norm (no product): rows are tokens."""

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """x: (B, …, C) and out: (B, …, M), tokens in between."""
        here = self.here()
        if not here:
            return
        x = args[0].detach().reshape(self.batch, -1, args[0].shape[-1])
        picks = torch.stack([self.pick(self._per_image, x.shape[1]) for _ in here]).to(x.device)
        rows = torch.tensor(here, device=x.device).unsqueeze(1)
        target = out if isinstance(module, nn.Linear) else args[0]

        def choose(gradient: Tensor) -> Tensor:
            return gradient.reshape(self.batch, -1, gradient.shape[-1])[rows, picks].flatten(0, 1)

        self.keep(x[rows, picks].flatten(0, 1), len(here), target, choose)

    def product(self, module: nn.Module) -> Product | None:
        """(1, n, C) by (1, M, C); a norm has none."""
        if not isinstance(module, nn.Linear):
            return None
        importance = self.importance()
        rhs = module.weight.detach().unsqueeze(0)
        return Product(self.inputs.values().unsqueeze(0), rhs, None if importance is None else importance.unsqueeze(0))

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """(n, C) rows."""
        return self.inputs.values(), self.importance()


class ConvSampler(OperationSampler):
    """A convolution: rows are the patches under sampled output positions."""

    def __init__(self, conv: nn.Conv2d, images: int, cap: int, per_image: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self._groups = conv.groups

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """x: (B, C, H, W), out: (B, M, H', W')."""
        conv = module
        assert isinstance(conv, nn.Conv2d)
        padding = conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        for i in self.here():
            x = F.pad(args[0][i : i + 1].detach(), padding, mode)
            patches = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)[0].T  # (positions, C·kh·kw)
            picks = self.pick(self._per_image, len(patches)).to(x.device)
            rows = patches[picks].reshape(len(picks), x.shape[1], *conv.kernel_size)
            self.keep(rows, 1, out, lambda g, i=i, picks=picks: g[i].flatten(1).T[picks])  # type: ignore[misc]

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """(n, C, kh, kw) → (groups, n, C/groups·kh·kw)."""
        return x.reshape(len(x), self._groups, -1).transpose(0, 1)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """(M, C/groups, kh, kw) → (groups, M/groups, C/groups·kh·kw)."""
        return x.reshape(self._groups, len(x) // self._groups, -1)

    def product(self, module: nn.Module) -> Product | None:
        """(groups, n, K) by (groups, M/groups, K)."""
        importance = self.importance()
        if importance is not None:
            importance = importance.reshape(len(importance), self._groups, -1).transpose(0, 1)
        assert isinstance(module, nn.Conv2d)
        return Product(self.lhs_matrix(self.inputs.values()), self.rhs_matrix(module.weight.detach()), importance)


class HeadSampler(OperationSampler):
    """A matmul of attention (a product of two activations) or a Softmax (none): slices with sampled query rows."""

    def __init__(self, module: nn.Module, images: int, cap: int, per_image: int, rows: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self.is_matmul = isinstance(module, MatMul)
        self.transpose_rhs = isinstance(module, MatMul) and module.transpose_rhs
        self.rows = rows
        self.others = SampleRows()

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """Operands (B·windows, H, N, ·); a Softmax may see any number of leading axes."""
        here = self.here()
        if not here:
            return
        x = args[0].detach()
        windows = x.shape[0] // self.batch
        places, picks = [], []
        for i in here:  # image by image, so that the batch size does not change what is drawn
            places.append(i * windows + self.pick(self._per_image, windows))
            picks.append(self.pick(self.rows, x.shape[-2]).expand(len(places[-1]), -1))
        slices = torch.cat(places).to(x.device)
        rows = torch.cat(picks).to(x.device).view(len(slices), *[1] * (x.dim() - 3), -1, 1)
        if self.is_matmul:
            others = args[1].detach()[slices]
            self.others.add(self.others.length, others, len(others) * len(self._chosen) // len(here))
        sampled = torch.take_along_dim(x[slices], rows, -2)
        target = out if self.is_matmul else args[0]
        self.keep(sampled, len(here), target, lambda g: torch.take_along_dim(g[slices], rows, -2))

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, r, K) → (s·H, r, K)."""
        return x.flatten(0, -3)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, M, K), or (s, H, K, M) where the operand is not transposed → (s·H, M, K)."""
        flat = x.flatten(0, -3)
        return flat if self.transpose_rhs else flat.transpose(-2, -1)

    def product(self, module: nn.Module) -> Product | None:
        """(s·H, r, K) by (s·H, M, K)."""
        if not self.is_matmul:
            return None
        importance = self.importance()
        importance = None if importance is None else importance.flatten(0, -3)
        return Product(self.lhs_matrix(self.inputs.values()), self.rhs_matrix(self.others.values()), importance)

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """(s, H, r, K) of the left operand, (s, H, ·, ·) whole of the right."""
        if site.role == "rhs":
            return self.others.values(), None
        return self.inputs.values(), None if self.is_matmul else self.importance()


def sampler_of(module: nn.Module, images: int, size: SampleSize, seed: int) -> OperationSampler:
    """The sampler for a module that ``find_sites`` found sites on."""
    if isinstance(module, nn.Conv2d):
        return ConvSampler(module, images, size.rows, size.rows // images, seed)
    if isinstance(module, (MatMul, nn.Softmax)):
        return HeadSampler(module, images, size.slices, size.slices // images, size.slice_rows, seed)
    return TokenSampler(images, size.rows, size.rows // images, seed)
