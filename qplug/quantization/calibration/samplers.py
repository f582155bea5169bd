"""Samplers of operations: a limited number of rows of each linear, convolution or matmul, for O = L Rᵀ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.types import Site, Smoothing
from qplug.models.attention import MatMul
from qplug.models.batch_axes import FIRST, Axes, batch_first
from qplug.quantization.calibration.product import Product
from qplug.quantization.calibration.sample_rows import SampleRows

PRODUCTS = (nn.Linear, nn.Conv2d, MatMul)
"""Operations whose outputs are products; of any other one, gradients are sampled at the input."""


@dataclass(frozen=True)
class SampleSize:
    """Limits of the samples, independent of the number of images.

    Attributes:
        rows: rows (tokens, patches) of one linear or convolution.
        slices: images or windows of one attention matmul.
        slice_rows: query rows per head and slice.
    """

    rows: int = 384
    slices: int = 32
    slice_rows: int = 16


class OperationSampler:
    """Base of the samplers: selects the contributing images and stores their rows; subclasses define a row.

    Attributes:
        batch: number of images of the present batch.
        first: index of its first image.
        call: number of earlier calls of the operation in this batch.
    """

    def __init__(self, images: int, cap: int, per_image: int, seed: int) -> None:
        self.batch = self.first = self.call = 0
        self._cap = cap
        self._constants: dict[int, tuple[int, Tensor]] = {}
        self._chosen = set(torch.linspace(0, images - 1, min(images, cap)).round().int().tolist())
        self._per_image = max(1, per_image)
        self._generator = torch.Generator().manual_seed(seed)
        self.inputs, self.squares = SampleRows(), SampleRows()
        self._untraced = False  # whether a call of the operation had no gradient

    def begin_batch(self, first: int, batch: int) -> None:
        """Set the index of the next batch's first image, and the number of its images."""
        self.first, self.batch, self.call = first, batch, 0

    def contributing_images(self) -> list[int]:
        """Indices within the batch of the images that contribute to the sample."""
        return [i for i in range(self.batch) if self.first + i in self._chosen]

    def draw_indices(self, count: int, of: int) -> Tensor:
        """``count`` random indices below ``of``, without repetition, in ascending order."""
        return torch.randperm(of, generator=self._generator)[: min(count, of)].sort().values

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor, axes: Axes = FIRST) -> None:
        """Sample the inputs and outputs of one call of the operation; ``axes`` are those of ``args``."""
        raise TypeError(f"{type(self).__name__} does not implement record()")

    def add_rows(self, piece: Tensor, images: int, target: Tensor, choose: Callable[[Tensor], Tensor]) -> None:
        """Add sampled rows of the input, and the squared gradients at ``target``, summed over backward passes.

        Args:
            piece: (rows, …) sampled rows of ``images`` images.
            images: number of images of ``piece``, from which the size of the whole sample follows.
            target: the output; the input if the operation is no product. Its gradients are sampled.
            choose: selects the same rows of the gradient.
        """
        start, expected = self.inputs.length, len(piece) * len(self._chosen) // images
        self.inputs.add(start, piece, expected)
        if not target.requires_grad:
            self._untraced = True
        else:
            target.register_hook(lambda gradient: self.squares.add(start, choose(gradient).square(), expected))

    def complete_squares(self) -> None:
        """End a pass with gradients: as many squared gradients as rows, or none.

        There are none if the model computes a call of the operation without gradients. A call whose output the loss
        does not depend on has gradient 0.
        """
        if self._untraced:
            self.squares.replace_rows(None)
        elif missing := self.inputs.length - self.squares.length if self.squares.length else 0:
            rows = self.squares.values()
            self.squares.add(self.squares.length, rows.new_zeros((missing, *rows.shape[1:])), self.inputs.length)

    def add_constant_rows(self, rows: Tensor, target: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Add rows that are the same for every image once, and their squared gradients for each image.

        Args:
            rows: (R, …) every row; at most the size of the sample is drawn from them.
            target: as in ``add_rows``.
            choose: a gradient → its rows, (R, …).

        Returns:
            The indices of the drawn rows; empty if they are part of the sample already.
        """
        known = self.call in self._constants
        if not known:
            drawn = self.draw_indices(self._cap, len(rows)).to(rows.device)
            self._constants[self.call] = (self.inputs.length, drawn)
            self.inputs.add(self.inputs.length, rows[drawn], len(drawn))
        start, drawn = self._constants[self.call]
        if not target.requires_grad:
            self._untraced = True
        else:
            target.register_hook(lambda gradient: self.squares.add(start, choose(gradient)[drawn].square(), len(drawn)))
        return drawn[:0] if known else drawn

    def product(self, module: nn.Module) -> Product | None:
        """The sample as a product, with the present weight; ``None`` for norms and Softmax."""
        return None

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """The sampled input in the site's layout, and (dL/dx)² of it if the operation is no product."""
        return self.inputs.values(), None

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """The activation sample, in the site's layout, as (b, n, K)."""
        return x.unsqueeze(0)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """The other operand or the weight, in the site's layout, as (b, M, K)."""
        return x.unsqueeze(0)

    def smooth(self, smoothing: Smoothing) -> None:
        """Apply a smoothing of the input to the sample."""
        rows, self.inputs = self.inputs.values(), SampleRows()  # a new buffer: others may hold views of the old one
        self.inputs.add(0, (rows - smoothing.shift) / smoothing.scale, len(rows))

    def importance(self) -> Tensor | None:
        """(dL/dO)² of each sampled row, summed over the backward passes; ``None`` without a backward pass."""
        return self.squares.values() if self.squares.length else None


class TokenSampler(OperationSampler):
    """Sampler of a linear (a product with its weight) or a norm (no product); rows are tokens."""

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor, axes: Axes = FIRST) -> None:
        """x: (B, …, C) and out: (B, …, M), with token axes in between; the batch may be on another axis than 0."""
        axis = axes.of(0)
        if axis is None:
            target = out if isinstance(module, nn.Linear) else args[0]
            self.add_constant_rows(args[0].detach().reshape(-1, args[0].shape[-1]), target, _as_rows)
            return
        images = self.contributing_images()
        if not images:
            return
        x = batch_first(args[0].detach(), axis).reshape(self.batch, -1, args[0].shape[-1])
        tokens = torch.stack([self.draw_indices(self._per_image, x.shape[1]) for _ in images]).to(x.device)
        rows = torch.tensor(images, device=x.device).unsqueeze(1)
        target = out if isinstance(module, nn.Linear) else args[0]

        def choose(gradient: Tensor) -> Tensor:
            by_image = batch_first(gradient, axis).reshape(self.batch, -1, gradient.shape[-1])
            return by_image[rows, tokens].flatten(0, 1)

        self.add_rows(x[rows, tokens].flatten(0, 1), len(images), target, choose)

    def product(self, module: nn.Module) -> Product | None:
        """(1, n, C) by (1, M, C); ``None`` for a norm."""
        if not isinstance(module, nn.Linear):
            return None
        importance = self.importance()
        rhs = module.weight.detach().unsqueeze(0)
        return Product(self.inputs.values().unsqueeze(0), rhs, None if importance is None else importance.unsqueeze(0))

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """(n, C) rows."""
        return self.inputs.values(), self.importance()


class ConvSampler(OperationSampler):
    """Sampler of a convolution; rows are the input patches of sampled output positions."""

    def __init__(self, conv: nn.Conv2d, images: int, cap: int, per_image: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self._groups = conv.groups

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor, axes: Axes = FIRST) -> None:
        """x: (B·n, C, H, W), out: (B·n, M, H', W'), for n pictures of each image; a constant may have three axes."""
        assert isinstance(module, nn.Conv2d)
        x = args[0].detach()
        if axes.of(0) is None:
            self.add_constant_rows(_patches(module, x if x.dim() == 4 else x.unsqueeze(0)), out, _as_positions)
            return
        pictures = len(x) // self.batch
        for i in self.contributing_images():
            own = slice(i * pictures, (i + 1) * pictures)
            patches = _patches(module, x[own])
            places = self.draw_indices(self._per_image, len(patches)).to(x.device)
            self.add_rows(patches[places], 1, out, lambda g, own=own, places=places: _as_positions(g[own])[places])  # type: ignore[misc]  # inferred

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


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(n, C, H, W) → (n·positions, C, kh, kw), the input patches of every output position."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    patches = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride).transpose(1, 2).flatten(0, 1)
    return patches.view(len(patches), x.shape[1], *conv.kernel_size)


def _as_positions(x: Tensor) -> Tensor:
    """(n, M, H', W'), or without n → (n·positions, M)."""
    return x.flatten(-2).transpose(-2, -1).reshape(-1, x.shape[-3])


def _as_rows(x: Tensor) -> Tensor:
    """(…, C) → (rows, C)."""
    return x.reshape(-1, x.shape[-1])


class HeadSampler(OperationSampler):
    """Sampler of an attention matmul (a product of activations) or a Softmax (no product): slices with query rows."""

    def __init__(self, module: nn.Module, images: int, cap: int, per_image: int, rows: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self.is_matmul = isinstance(module, MatMul)
        self.transpose_rhs = isinstance(module, MatMul) and module.transpose_rhs
        self.rows = rows
        self._rows: dict[int, Tensor] = {}
        self.others = SampleRows()

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor, axes: Axes = FIRST) -> None:
        """Operands (B·windows, H, N, ·), or with any other number of axes in the place of H: they become windows.

        A constant operand belongs to every slice of the other one.
        """
        if self.is_matmul:
            args = tuple(_spread(x, out) for x in args)
        if axes.constant:
            self._record_constant(args, out)
            return
        images = self.contributing_images()
        if not images:
            return
        x = _slices(args[0].detach())
        windows = x.shape[0] // self.batch
        image_slices, image_rows = [], []
        for i in images:  # one image at a time, so that the batch size does not change the random indices
            image_slices.append(i * windows + self.draw_indices(self._per_image, windows))
            image_rows.append(self.draw_indices(self.rows, x.shape[-2]).expand(len(image_slices[-1]), -1))
        slices = torch.cat(image_slices).to(x.device)
        rows = torch.cat(image_rows).to(x.device).view(len(slices), *[1] * (x.dim() - 3), -1, 1)
        if self.is_matmul:
            others = _slices(args[1].detach())[slices]
            self.others.add(self.others.length, others, len(others) * len(self._chosen) // len(images))
        sampled = torch.take_along_dim(x[slices], rows, -2)
        target = out if self.is_matmul else args[0]
        self.add_rows(sampled, len(images), target, lambda g: torch.take_along_dim(_slices(g)[slices], rows, -2))

    def _record_constant(self, args: tuple[Tensor, ...], out: Tensor) -> None:
        """The same rows of every slice, the slices drawn once."""

        def slices_of(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if x.dim() == 2 else _slices(x)

        x = slices_of(args[0].detach())
        rows = self.draw_indices(self.rows, x.shape[-2]) if self.call not in self._constants else self._rows[self.call]
        self._rows[self.call] = rows
        rows = rows.to(x.device)
        target = out if self.is_matmul else args[0]
        slices = self.add_constant_rows(x[..., rows, :], target, lambda gradient: slices_of(gradient)[..., rows, :])
        if self.is_matmul and len(slices):
            self.others.add(self.others.length, slices_of(args[1].detach())[slices], len(slices))

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, r, K) → (s·H, r, K)."""
        return x.flatten(0, -3)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, M, K), or (s, H, K, M) if the operand is not transposed → (s·H, M, K)."""
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
        """(s, H, r, K) of the left operand; the complete right operand, (s, H, ·, ·)."""
        if site.role == "rhs":
            return self.others.values(), None
        return self.inputs.values(), None if self.is_matmul else self.importance()


def _slices(x: Tensor) -> Tensor:
    """(B·windows, H, N, ·) as it is; (B, …, N, ·) with other axes than one of heads → (B·windows, N, ·)."""
    if x.dim() < 3:
        return x.unsqueeze(1)
    return x if x.dim() == 4 else x.flatten(0, -3)


def _spread(x: Tensor, out: Tensor) -> Tensor:
    """An operand of a matmul with the first axis of the result, or all leading axes if it has fewer."""
    missing = out.dim() - x.dim()
    return x.expand(*out.shape[:missing], *x.shape) if missing > 0 else x.expand(len(out), *x.shape[1:])


def sampler_of(module: nn.Module, images: int, size: SampleSize, seed: int) -> OperationSampler:
    """The sampler for a module with sites of ``find_sites``."""
    if isinstance(module, nn.Conv2d):
        return ConvSampler(module, images, size.rows, size.rows // images, seed)
    if isinstance(module, (MatMul, nn.Softmax)):
        return HeadSampler(module, images, size.slices, size.slices // images, size.slice_rows, seed)
    return TokenSampler(images, size.rows, size.rows // images, seed)
