"""Hidden widths of models, counted by hand per family, as a reference for ``find_sites``.

One weight computes a hidden width, or several weights whose results are multiplied. A hidden width is neither a
residual stream nor an output. Each rule counts by the published architecture; no rule traces a model.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch

from torch import nn

from benchmarks import coverage_counts_timm
from benchmarks.coverage_counts_timm import blocks, mlps, not_added_to, of_class


def _resnet(model: nn.Module) -> int:
    """One width in a basic block and two in a bottleneck.

    With bottlenecks, the stem is a width too: the first block's shortcut is a convolution, so nothing is added to it.
    """
    return blocks(model, "BasicBlock") + 2 * blocks(model, "Bottleneck") + (blocks(model, "Bottleneck") > 0)


def _chain(model: nn.Module) -> int:
    """Every layer of a plain chain except the last."""
    return blocks(model, "Conv2d", "Linear") - 1


def _densenet(model: nn.Module) -> int:
    """The bottleneck and the concatenated new features of each layer; each transition; the stem."""
    return 2 * blocks(model, "_DenseLayer", "DenseLayer") + blocks(model, "_Transition", "DenseTransition") + 1


def _mobilenet_v3_large(model: nn.Module) -> int:
    """The expansions of all blocks except the first; the squeezes; the last two layers."""
    return blocks(model, "InvertedResidual") - 1 + blocks(model, "SqueezeExcitation") + 2


def _mobilenet_v3_small(model: nn.Module) -> int:
    """The widths of the large model, the stem, and the first block's output: nothing is added to these two."""
    return _mobilenet_v3_large(model) + 2


def _open_clip_resnet(model: nn.Module) -> int:
    """Two widths in a bottleneck, and the three convolutions of the stem."""
    return 2 * blocks(model, "Bottleneck") + 3


def _regnet(model: nn.Module) -> int:
    """Two widths in a bottleneck and one in its squeeze; the stem, because every first shortcut is a convolution."""
    return 2 * blocks(model, "ResBottleneckBlock") + blocks(model, "SqueezeExcitation") + 1


def _efficientnet(model: nn.Module) -> int:
    """Expansions, squeezes, block outputs without a shortcut, and the last convolution."""
    plain, fused = of_class(model, "MBConv"), of_class(model, "FusedMBConv")
    expansions = sum(len(block.block) == 4 for block in plain) + sum(len(block.block) == 2 for block in fused)
    outputs = not_added_to(block.use_res_connect for block in of_class(model, "MBConv", "FusedMBConv"))
    return expansions + blocks(model, "SqueezeExcitation") + outputs + 1


RULES: dict[str, Callable[[nn.Module], int]] = {
    "torchvision/resn*": _resnet,
    "torchvision/wide_resnet*": _resnet,
    "torchvision/vgg*": _chain,
    "torchvision/alexnet": _chain,
    "torchvision/squeezenet*": lambda model: 3 * blocks(model, "Fire") + 1,
    "torchvision/densenet*": _densenet,
    "torchvision/googlenet": lambda model: blocks(model, "BasicConv2d", "InceptionAux"),
    "torchvision/inception_v3": lambda model: blocks(model, "BasicConv2d"),
    # stem, 16 expansions, the two stages of one block, the last convolution
    "torchvision/mobilenet_v2": lambda model: blocks(model, "InvertedResidual") - 1 + 4,
    "torchvision/mnasnet*": lambda model: blocks(model, "_InvertedResidual") + 4,
    "torchvision/mobilenet_v3_large": _mobilenet_v3_large,
    "torchvision/mobilenet_v3_small": _mobilenet_v3_small,
    # one width in each unit, the stem, the last convolution
    "torchvision/shufflenet*": lambda model: blocks(model, "InvertedResidual") + 2,
    "torchvision/vit_*": lambda model: blocks(model, "EncoderBlock"),
    # the second width of a block computes the bias of a position from its two coordinates
    "torchvision/swin_v2*": lambda model: 2 * blocks(model, "SwinTransformerBlockV2"),
    "torchvision/swin_*": lambda model: blocks(model, "SwinTransformerBlock"),
    "torchvision/regnet_*": _regnet,
    "torchvision/efficientnet_*": _efficientnet,
    "torchvision/convnext_*": lambda model: blocks(model, "CNBlock"),
    "segmentation/fcn_resnet*": lambda model: _resnet(model) + blocks(model, "FCNHead"),
    **{f"timm/{glob}": rule for glob, rule in coverage_counts_timm.RULES.items()},
    "open_clip/RN*/image": _open_clip_resnet,
    "open_clip/ViT-*/*": lambda model: (
        blocks(model, "ResidualAttentionBlock", "CustomResidualAttentionBlock") + mlps(model)
    ),
    "open_clip/*/text": lambda model: blocks(model, "ResidualAttentionBlock", "CustomResidualAttentionBlock"),
    # the pooler is a hidden layer of the classifier
    "transformers/bert": lambda model: blocks(model, "BertLayer") + 1,
    "transformers/gpt2": lambda model: blocks(model, "GPT2Block"),
    "transformers/llama": lambda model: blocks(model, "LlamaDecoderLayer"),
    "transformers/t5": lambda model: blocks(model, "T5Block"),
    "transformers/vit": lambda model: blocks(model, "ViTLayer"),
    "transformers/clip": lambda model: blocks(model, "CLIPEncoderLayer"),
}
"""Rules by globs of model names; the first match counts."""


def sites_that_exist(name: str, model: nn.Module) -> int | None:
    """Count the hidden widths of a model by hand.

    Args:
        name: ``"kind/model"``.
        model: The model.

    Returns:
        The number, or None for families without a rule.

    Example:
        >>> sites_that_exist("torchvision/alexnet", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        1
    """
    for pattern, rule in RULES.items():
        if fnmatch(name, pattern):
            return rule(model)
    return None
