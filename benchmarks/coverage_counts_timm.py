"""Hidden widths of timm's architectures, counted by hand from their block definitions, as ``coverage_counts`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


def blocks(model: nn.Module, *names: str) -> int:
    """Number of modules whose class has one of these names."""
    return sum(type(module).__name__ in names for module in model.modules())


def of_class(model: nn.Module, *names: str) -> list[Any]:
    """The modules whose class has one of these names, in order."""
    return [module for module in model.modules() if type(module).__name__ in names]


def not_added_to(skips: Iterable[bool]) -> int:
    """Number of outputs in a chain of layers that are not part of a residual stream.

    Args:
        skips: For each layer after the stem, whether its unchanged input is added to its output.

    Example:
        >>> not_added_to([False, True, False])  # stem alone, first and second layer together, third alone
        2
    """
    streams = [1]
    for skip in skips:
        if skip:
            streams[-1] += 1
        else:
            streams.append(1)
    return streams.count(1)


def mlps(model: nn.Module) -> int:
    """One width in each MLP of a transformer."""
    return blocks(model, "Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked", "MlpHead")


def resnet(model: Any) -> int:
    """The widths of torchvision's models; one more in each squeeze-and-excitation, and two in a deep stem.

    The stem is a width too if the shortcut of the first block is a convolution.
    """
    stem = sum(isinstance(module, nn.Conv2d) for module in model.conv1.modules()) - 1
    free = model.layer1[0].downsample is not None
    return blocks(model, "BasicBlock") + 2 * blocks(model, "Bottleneck") + blocks(model, "SEModule") + stem + free


def densenet(model: Any) -> int:
    """The bottleneck and the new features of each layer; each transition; every convolution of the stem."""
    stem = sum(isinstance(module, nn.Conv2d) for name, module in model.features.named_children() if "conv" in name)
    return 2 * blocks(model, "DenseLayer") + blocks(model, "DenseTransition") + stem


def inverted_residuals(model: Any) -> int:
    """EfficientNet, MobileNet and similar: expansions, squeezes, block outputs without a shortcut, and the head.

    A depthwise separable block has no expansion: its depthwise kernels belong to its input width.
    """
    inside = blocks(model, "InvertedResidual", "EdgeResidual", "UniversalInvertedResidual", "SqueezeExcite")
    outputs = not_added_to(block.has_skip for stage in model.blocks for block in stage)
    return inside + outputs + isinstance(model.conv_head, nn.Conv2d)


def regnet(model: Any) -> int:
    """Two widths in a bottleneck and one in its squeeze; the stem, if the first shortcut is a convolution."""
    first = of_class(model, "Bottleneck")[0]
    free = not isinstance(first.downsample, nn.Identity)
    return 2 * blocks(model, "Bottleneck") + blocks(model, "SEModule") + free


def convnext(model: Any) -> int:
    """One width in each block; one between the convolutions of an overlapping stem."""
    return blocks(model, "ConvNeXtBlock") + sum(isinstance(module, nn.Conv2d) for module in model.stem) - 1


RULES: dict[str, Callable[[nn.Module], int]] = {
    **dict.fromkeys(
        ("resnet[0-9]*d", "resnet[0-9][0-9]", "resnet[0-9]*t", "resnet[0-9][0-9][0-9]", "seresnet*", "resnext*_*x*d"),
        resnet,
    ),
    **dict.fromkeys(("seresnext*_*x*d", "ecaresnext*_*x*d", "resnetblur*"), resnet),
    "vgg*": lambda model: blocks(model, "Conv2d"),
    "densenet*": densenet,
    **dict.fromkeys(
        (
            *("efficientnet_b*", "efficientnet_lite*", "efficientnet_blur*", "tf_efficientnet_*", "tinynet_*"),
            *("mnasnet_*", "mobilenetv2_*", "lcnet_*", "mobilenetv3_*", "tf_mobilenetv3_*", "mobilenetv4_conv_small*"),
            *("fbnetc_*", "spnasnet_*", "hardcorenas_*", "semnasnet_*"),
        ),
        inverted_residuals,
    ),
    **dict.fromkeys(("regnetx_*", "regnety_*"), regnet),
    **dict.fromkeys(("vit_tiny_patch*_224", "vit_small_patch*_224", "vit_base_patch*_224", "deit*"), mlps),
    "mixer_*": lambda model: 2 * blocks(model, "MixerBlock"),
    "gmlp_*": lambda model: blocks(model, "SpatialGatingBlock"),  # the gate is a product of the width's two halves
    "resmlp_*": lambda model: blocks(model, "ResBlock"),
    "swin_*": lambda model: blocks(model, "SwinTransformerBlock"),
    # the second width computes the bias of a position from its two coordinates
    "swinv2_*": lambda model: 2 * blocks(model, "SwinTransformerV2Block", "SwinTransformerV2CrBlock"),
    "convnext_*": convnext,
    "convnextv2_*": convnext,
}
"""Rules by globs of names; the first match counts."""
