"""Sampled operations: linear, convolution and matmul, each kept as capped rows of the one form O = L Rᵀ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.models.explicit import MatMul
from qplug.stats import Product
from qplug.types import Site, Smoothing


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


class Operation:
    """Base: which images contribute, and the storing of what they contribute; subclasses say what a row is."""

    def __init__(self, images: int, cap: int, per_image: int, seed: int) -> None:
        self.batch = self._first = 0
        self._chosen = set(torch.linspace(0, images - 1, min(images, cap)).round().int().tolist())
        self._per_image = max(1, per_image)
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._gradients: list[Tensor] = []

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

    def product(self, module: nn.Module) -> Product | None:
        """The sample as a product, with the weight as it is now; ``None`` for norms and Softmax."""
        return None

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """The sampled input in the site's layout, and the gradient at it where the operation is no product."""
        return torch.cat(self._inputs), None

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """The activation sample, in the site's layout, as (b, n, K)."""
        return x.unsqueeze(0)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """The other operand or the weight, in the site's layout, as (b, M, K)."""
        return x.unsqueeze(0)

    def smooth(self, smoothing: Smoothing) -> None:
        """Follow a smoothing of the input."""
        self._inputs = [(x - smoothing.shift) / smoothing.scale for x in self._inputs]

    def importance(self) -> Tensor | None:
        """(dL/dO)² of the sample as (b, n, M), where gradients were taken."""
        return torch.cat(self._gradients, dim=-2).square() if self._gradients else None


class TokenOperation(Operation):
    """A linear (product with its weight), or a norm (no product): rows are tokens."""

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """x: (B, …, C) and out: (B, …, M), tokens in between."""
        here = self.here()
        if not here:
            return
        x = args[0].detach().reshape(self.batch, -1, args[0].shape[-1])
        picks = torch.stack([self.pick(self._per_image, x.shape[1]) for _ in here]).to(x.device)
        rows = torch.tensor(here, device=x.device).unsqueeze(1)
        self._inputs.append(x[rows, picks].flatten(0, 1))
        target = out if isinstance(module, nn.Linear) else args[0]
        if target.requires_grad:
            target.register_hook(
                lambda g: self._gradients.append(g.reshape(self.batch, -1, g.shape[-1])[rows, picks].flatten(0, 1))
            )

    def product(self, module: nn.Module) -> Product | None:
        """(1, n, C) by (1, M, C); a norm has none."""
        if not isinstance(module, nn.Linear):
            return None
        importance = self.importance()
        rhs = module.weight.detach().unsqueeze(0)
        return Product(torch.cat(self._inputs).unsqueeze(0), rhs, None if importance is None else importance.unsqueeze(0))

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """(n, C) rows."""
        gradient = torch.cat(self._gradients) if self._gradients else None
        return torch.cat(self._inputs), gradient


class ConvOperation(Operation):
    """A convolution: rows are the patches under sampled output positions."""

    def __init__(self, conv: nn.Conv2d, images: int, cap: int, per_image: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self._groups = conv.groups

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """x: (B, C, H, W), out: (B, M, H', W')."""
        conv = module
        assert isinstance(conv, nn.Conv2d)
        padding = conv._reversed_padding_repeated_twice
        for i in self.here():
            x = F.pad(args[0][i : i + 1].detach(), padding)
            patches = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)[0].T  # (positions, C·kh·kw)
            picks = self.pick(self._per_image, len(patches)).to(x.device)
            self._inputs.append(patches[picks].reshape(len(picks), x.shape[1], *conv.kernel_size))
            if out.requires_grad:
                out.register_hook(lambda g, i=i, picks=picks: self._gradients.append(g[i].flatten(1).T[picks]))

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
        return Product(self.lhs_matrix(torch.cat(self._inputs)), self.rhs_matrix(module.weight.detach()), importance)


class HeadOperation(Operation):
    """A matmul of attention (product of two activations) or a Softmax (none): slices of heads, with sampled query rows."""

    def __init__(self, module: nn.Module, images: int, cap: int, per_image: int, rows: int, seed: int) -> None:
        super().__init__(images, cap, per_image, seed)
        self._matmul = isinstance(module, MatMul)
        self._transpose_rhs = isinstance(module, MatMul) and module.transpose_rhs
        self._rows = rows
        self._others: list[Tensor] = []

    def record(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        """Operands (B·windows, H, N, ·); a Softmax may see any number of leading axes."""
        here = self.here()
        if not here:
            return
        x = args[0].detach()
        windows = x.shape[0] // self.batch
        slices = torch.cat([i * windows + self.pick(self._per_image, windows) for i in here]).to(x.device)
        rows = self.pick(self._rows, x.shape[-2]).to(x.device)
        self._inputs.append(x[slices][..., rows, :])
        if self._matmul:
            self._others.append(args[1].detach()[slices])
        target = out if self._matmul else args[0]
        if target.requires_grad:
            target.register_hook(lambda g: self._gradients.append(g[slices][..., rows, :]))

    def lhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, r, K) → (s·H, r, K)."""
        return x.flatten(0, -3)

    def rhs_matrix(self, x: Tensor) -> Tensor:
        """(s, H, M, K), or (s, H, K, M) where the operand is not transposed → (s·H, M, K)."""
        flat = x.flatten(0, -3)
        return flat if self._transpose_rhs else flat.transpose(-2, -1)

    def product(self, module: nn.Module) -> Product | None:
        """(s·H, r, K) by (s·H, M, K)."""
        if not self._matmul:
            return None
        importance = torch.cat(self._gradients).flatten(0, -3).square() if self._gradients else None
        return Product(self.lhs_matrix(torch.cat(self._inputs)), self.rhs_matrix(torch.cat(self._others)), importance)

    def sample(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """(s, H, r, K) of the left operand, (s, H, ·, ·) whole of the right."""
        if site.role == "rhs":
            return torch.cat(self._others), None
        gradient = torch.cat(self._gradients) if self._gradients and not self._matmul else None
        return torch.cat(self._inputs), gradient


def operation_of(module: nn.Module, images: int, size: SampleSize, seed: int) -> Operation:
    """The sampler for a module that ``find_sites`` found sites on."""
    if isinstance(module, nn.Conv2d):
        return ConvOperation(module, images, size.rows, size.rows // images, seed)
    if isinstance(module, (MatMul, nn.Softmax)):
        return HeadOperation(module, images, size.slices, size.slices // images, size.slice_rows, seed)
    return TokenOperation(images, size.rows, size.rows // images, seed)
