"""The zoo: small models that ``qplug zoo train`` trains. The wheel contains the weights of those for digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from qplug.data.preparation import Preparation
from qplug.data.shapes import SIDE
from qplug.models.float_model import Preprocessing
from qplug.models.image_inputs import DetectionPreprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: its architecture, its preprocessing, its training data and its number of epochs."""

    build: Callable[[], nn.Module]
    preprocessing: Preparation
    data: Literal["digits", "cifar10", "shapes"]
    epochs: int

    @property
    def embedded(self) -> bool:
        """Whether the package contains its checkpoint, as it does for the models for digits and for shapes."""
        return self.data in ("digits", "shapes")


def vit_digits() -> nn.Module:
    """timm's plain ``VisionTransformer`` for 8×8 grey digits: 17 tokens, 64 channels, 4 blocks, 169,162 parameters.

    Its embedded checkpoint has 98.16 % top-1 on the 599 held-out digits. The command
    ``qplug zoo train vit_digits --out …`` (seed 0, 300 epochs) trained it in 162 seconds on one core.
    """
    from timm.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=3.0
    )
    return model


def mixer_digits() -> nn.Module:
    """timm's MLP-Mixer for 8×8 grey digits: 16 tokens, 64 channels, 4 blocks, 105,738 parameters.

    Its embedded checkpoint has 98.33 % top-1, trained and evaluated like ``vit_digits``.
    """
    from timm.models.mlp_mixer import MlpMixer

    model: nn.Module = MlpMixer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, num_blocks=4, mlp_ratio=(0.5, 3.0)
    )
    return model


def resmlp_digits() -> nn.Module:
    """timm's ResMLP, with its Affine norms, for 8×8 grey digits: 16 tokens, 64 channels, 4 blocks, 103,050 parameters.

    Its embedded checkpoint has 99.00 % top-1, trained and evaluated like ``vit_digits``.
    """
    return _resmlp(img_size=8, patch_size=2, in_chans=1, mlp_ratio=3.0)


def convmixer_digits() -> nn.Module:
    """timm's ConvMixer with the ReLU of ConvMixer-768/32, for 8×8 grey digits: 4×4 positions, 96 channels, 4 blocks
    of 5×5 and 1×1 convolutions, 50,410 parameters.

    Its embedded checkpoint has 99.17 % top-1, trained and evaluated like ``vit_digits``.
    """
    from timm.models.convmixer import ConvMixer
    from torch.nn import ReLU

    model: nn.Module = ConvMixer(
        dim=96, depth=4, kernel_size=5, patch_size=2, in_chans=1, num_classes=10, act_layer=ReLU
    )
    return model


def mixer_cifar10() -> nn.Module:
    """timm's MLP-Mixer for CIFAR-10: 64 tokens, 64 channels, 4 blocks, 154,058 parameters.

    ``qplug zoo train mixer_cifar10 --data …`` (seed 0, 25 epochs) gave 76.60 % top-1 on 8,000 test images, in 25
    minutes of one core.
    """
    from timm.models.mlp_mixer import MlpMixer

    model: nn.Module = MlpMixer(img_size=32, patch_size=4, num_classes=10, embed_dim=64, num_blocks=4)
    return model


def resmlp_cifar10() -> nn.Module:
    """timm's ResMLP, with its Affine norms, for CIFAR-10: 64 tokens, 64 channels, 4 blocks, 154,442 parameters.

    Trained as ``mixer_cifar10``: 77.11 % top-1, in 28 minutes of one core.
    """
    return _resmlp(img_size=32, patch_size=4, mlp_ratio=4.0)


def _resmlp(**sizes: Any) -> nn.Module:
    """A ResMLP whose LayerScale starts at 0.1, as the architecture's 1e-4 is meant for more blocks [ours]."""
    from functools import partial

    from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

    block = partial(ResBlock, init_values=0.1)
    model: nn.Module = MlpMixer(
        num_classes=10, embed_dim=64, num_blocks=4, block_layer=block, norm_layer=Affine, **sizes
    )
    return model


def convmixer_cifar10() -> nn.Module:
    """timm's ConvMixer with the ReLU of ConvMixer-768/32, for CIFAR-10: 8×8 positions, 64 channels, 4 blocks of 5×5
    and 1×1 convolutions, 28,234 parameters.

    Trained as ``mixer_cifar10``: 77.71 % top-1, in 13 minutes of one core.
    """
    from timm.models.convmixer import ConvMixer
    from torch.nn import ReLU

    model: nn.Module = ConvMixer(dim=64, depth=4, kernel_size=5, patch_size=4, num_classes=10, act_layer=ReLU)
    return model


def mask_rcnn_shapes() -> nn.Module:
    """Mask R-CNN on a small Swin, for 96×96 scenes of shapes: stages of 1, 1, 2 and 1 blocks with 12 to 96 channels.

    Its embedded checkpoint has an AP of masks of 49.97 % on the 200 held-out scenes. The command
    ``qplug zoo train mask_rcnn_shapes`` (seed 0, 3 epochs) trained it in four minutes of one core.
    """
    from qplug.models.detectors.build import Architecture, build

    swin = {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 6), "window_size": 4}
    model: nn.Module = build(
        Architecture(classes=3, channels=32, hidden=48, anchor=4.0, short=SIDE, long=SIDE, proposals=50, overrides=swin)
    )
    return model


_DIGITS = Preprocessing(input_size=(1, 8, 8), mean=(0.305,), std=(0.376,), interpolation="bilinear", crop_pct=1.0)
_CIFAR10 = Preprocessing(
    input_size=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    interpolation="bilinear",
    crop_pct=1.0,
)
_SHAPES = DetectionPreprocessing(input_size=(3, SIDE, SIDE), short=SIDE, sizes=True)

ZOO: dict[str, Entry] = {
    **{
        m.__name__: Entry(m, _DIGITS, "digits", 300)
        for m in (vit_digits, mixer_digits, resmlp_digits, convmixer_digits)
    },
    **{m.__name__: Entry(m, _CIFAR10, "cifar10", 25) for m in (mixer_cifar10, resmlp_cifar10, convmixer_cifar10)},
    "mask_rcnn_shapes": Entry(mask_rcnn_shapes, _SHAPES, "shapes", 3),
}


def checkpoint(name: str) -> bytes:
    """The embedded checkpoint, a safetensors file."""
    return (files("qplug.models") / "weights" / f"{name}.safetensors").read_bytes()


def weights(name: str) -> dict[str, Tensor]:
    """The embedded checkpoint's state dict, float32."""
    from safetensors.torch import load

    state: dict[str, Tensor] = load(checkpoint(name))
    return state
