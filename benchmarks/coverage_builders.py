"""Build models with random weights and their smallest inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torchvision
from torch import Generator, Tensor, nn

SIZES = (32, 56, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 336, 384, 448, 512)
"""Edges of square images, in pixels; 56 and 112 suit patches of 14."""

CONTEXT = 8
"""Number of tokens of a text."""

VOCABULARY = 512
"""Largest vocabulary of a text: the rows of an embedding are no width."""

MOST_BLOCKS = 4
"""Most blocks of an open_clip tower: all its blocks have the same structure."""


class Built(NamedTuple):
    """A model and its inputs."""

    model: nn.Module
    inputs: Any
    size: int


def images(size: int) -> Tensor:
    """Two random images ``(2, 3, size, size)``: batch normalisation needs two in training."""
    return torch.randn(2, 3, size, size, generator=Generator().manual_seed(0))


def tokens(vocabulary: int, length: int = CONTEXT) -> Tensor:
    """Two random texts ``(2, length)`` int64, from a vocabulary of the given size."""
    return torch.randint(2, vocabulary, (2, length), generator=Generator().manual_seed(0))


def smallest(build: Callable[[int], nn.Module], *, fixed: bool) -> Built:
    """Find the smallest image that a model accepts, in training and in evaluation mode.

    Args:
        build: Builds the model for images of a size.
        fixed: Whether the model depends on the size; otherwise it is built once.

    Returns:
        The model and its input.

    Raises:
        RuntimeError: If the model accepts none of ``SIZES``; with the last error.
    """
    model, failure = None, "nothing was tried"
    for size in SIZES:
        try:
            model = build(size) if fixed or model is None else model
            _run(copy.deepcopy(model) if fixed else model, images(size))
        except Exception as error:  # models raise errors of all kinds at sizes that they do not support
            failure = f"{type(error).__name__}: {error}"
            if model is None and not fixed:
                raise
            if "allocate memory" in failure:
                raise
        else:
            return Built(model, images(size), size)
    raise RuntimeError(f"no square image of {SIZES[0]} to {SIZES[-1]} pixels is accepted: {failure}")


def _run(model: nn.Module, inputs: Tensor) -> None:
    training = model.training
    with torch.no_grad():
        for mode in (False, True):
            model.train(mode)(inputs)
    model.train(training)


def torchvision_model(name: str) -> Built:
    """A classification or segmentation model of torchvision."""
    options: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # their own initialisation takes minutes, and the values do not matter
    if name.startswith("vit_"):
        return smallest(lambda size: torchvision.models.get_model(name, image_size=size, **options), fixed=True)
    return smallest(lambda size: torchvision.models.get_model(name, **options), fixed=False)


def timm_model(name: str) -> Built:
    """An architecture of timm; if the input size is part of it, a smaller one is built where possible."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return smallest(lambda size: timm.create_model(name), fixed=False)
    try:
        return smallest(lambda size: timm.create_model(name, img_size=size), fixed=True)
    except RuntimeError:
        return smallest(lambda size: timm.create_model(name), fixed=False)


def open_clip_tower(config: Mapping[str, Any], side: str) -> Built:
    """The image or the text tower of an open_clip config, with ``MOST_BLOCKS`` blocks at most."""
    import timm
    from open_clip.model import _build_text_tower, _build_vision_tower

    common = {"embed_dim": config["embed_dim"], "quick_gelu": config.get("quick_gelu", False)}
    if side == "text":
        tower = {**config["text_cfg"], "context_length": CONTEXT}
        tower["layers"] = min(tower.get("layers", 12), MOST_BLOCKS)
        tower["vocab_size"] = vocabulary = min(tower.get("vocab_size", 49_408), VOCABULARY)
        length = CONTEXT - 1 if tower.get("embed_cls") else CONTEXT
        return Built(_build_text_tower(text_cfg=tower, **common), tokens(vocabulary, length), length)

    tower = dict(config["vision_cfg"])
    if isinstance(tower.get("layers"), int):
        tower["layers"] = min(tower["layers"], MOST_BLOCKS)

    def build(size: int) -> nn.Module:
        return _build_vision_tower(vision_cfg={**tower, "image_size": size}, **common)

    if tower.get("timm_model_name") is None:
        return smallest(build, fixed=True)
    create = timm.create_model

    def short(size: int) -> nn.Module:
        with patch("timm.create_model", partial(create, depth=MOST_BLOCKS, img_size=size)):
            return build(size)

    try:  # vision transformers of timm take a depth and a size, other models do not
        return smallest(short, fixed=True)
    except RuntimeError:
        return smallest(build, fixed=False)


def _bert() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return BertForSequenceClassification(config), {"input_ids": tokens(99)}


def _gpt2() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=99, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config), {"input_ids": tokens(99), "use_cache": False}


def _llama() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config), {"input_ids": tokens(99), "use_cache": False}


def _t5() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    inputs = {"input_ids": tokens(99), "decoder_input_ids": tokens(99), "use_cache": False}
    return T5ForConditionalGeneration(config), inputs


def _vit() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    return ViTForImageClassification(config), {"pixel_values": images(32)}


def _clip() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return CLIPModel(config), {"input_ids": tokens(99), "pixel_values": images(32)}


TRANSFORMERS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "t5": _t5,
    "vit": _vit,
    "clip": _clip,
}


def transformers_model(name: str) -> Built:
    """A small model of Hugging Face transformers; each has 2 layers (and T5 and CLIP two stacks of them)."""
    model, inputs = TRANSFORMERS[name]()
    return Built(model, inputs, next(value for value in inputs.values() if isinstance(value, Tensor)).shape[-1])
