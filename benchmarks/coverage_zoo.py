"""The models that ``benchmarks.coverage`` runs, and the fixed rule that picks them; nothing is built or downloaded."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn

from benchmarks import coverage_builders as builders

QUICK = (
    "transformers/t5",
    "transformers/llama",
    "torchvision/squeezenet1_1",
    "torchvision/mobilenet_v3_small",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "segmentation/lraspp_mobilenet_v3_large",
    "timm/lcnetv2_small",
    "timm/mobilevit_xxs",
    "timm/vit_tiny_patch16_224",
    "timm/starnet_s1",
    "open_clip/ViT-S-32-alt/image",
    "open_clip/ViT-S-16-alt/text",
)
"""About a dozen small models over all kinds."""

PASSED_OVER = re.compile(r"test_|large|huge|giant|gigantic|enormous|xxl|so400m|(^|_)\d+b(_|$)")
"""timm's names of test dummies, and of big variants of code that the same family has smaller."""

NO_STRUCTURE = ("image_size", "context_length", "hf_tokenizer_name", "tokenizer_kwargs", "timm_model_pretrained")
"""Fields of a tower that say how much it reads, and not what it is."""


@dataclass(frozen=True)
class Entry:
    """One model of the list.

    Attributes:
        name: Unique, ``"kind/model"``.
        build: Makes the model and its smallest example inputs.
        skip: Why it cannot run here; None if it can.
        size: A guess at the number of parameters, in millions, that only orders the run.
    """

    name: str
    build: Callable[[], builders.Built]
    skip: str | None = None
    size: float = 0.0

    @property
    def kind(self) -> str:
        """The library, with torchvision's segmentation models apart."""
        return self.name.partition("/")[0]


def pick(families: Mapping[str, Sequence[str]]) -> list[str]:
    """Pick architectures from every family.

    The rule: a family of ``n`` names gives ``2 + n // 16`` of them (all, if it has fewer), evenly spaced over its names
    in alphabetical order after ``PASSED_OVER`` has taken out test dummies and big variants. A family that would be
    empty without its big variants keeps them. The first of each family come first, then the second of each.

    Args:
        families: Names by family.

    Returns:
        Names; the same for the same families, in whatever order they come.

    Example:
        >>> pick({"b": ["b_small", "b_huge"], "a": ["a3", "a1", "a2", "a4"]})
        ['a2', 'b_small', 'a4']
    """
    rounds: dict[int, list[str]] = {}
    for family in sorted(families):
        everything = sorted(families[family])
        names = [name for name in everything if not PASSED_OVER.search(name)] or everything
        count = min(len(names), 2 + len(everything) // 16)
        for turn in range(count):
            rounds.setdefault(turn, []).append(names[(2 * turn + 1) * len(names) // (2 * count)])
    return [name for turn in sorted(rounds) for name in rounds[turn]]


def installed(library: str) -> bool:
    """Whether an optional library can be imported."""
    return importlib.util.find_spec(library) is not None


def torchvision_entries() -> Iterator[Entry]:
    """Every classification and segmentation model of torchvision, few parameters first."""
    for kind, module in (("torchvision", torchvision.models), ("segmentation", torchvision.models.segmentation)):
        names = torchvision.models.list_models(module=module)
        sizes = {name: _num_params(name) for name in names}
        for name in sorted(names, key=lambda name: (sizes[name], name)):
            yield Entry(f"{kind}/{name}", partial(builders.torchvision_model, name), size=sizes[name])


def _num_params(name: str) -> float:
    weights = list(torchvision.models.get_model_weights(name))  # some have none
    return weights[0].meta["num_params"] / 1e6 if weights else 30.0


def timm_families() -> dict[str, list[str]]:
    """All architectures of timm by family, which are its modules."""
    import timm

    families = {family: timm.list_models(module=family) for family in timm.list_modules()}
    return {family: names for family, names in families.items() if names}


def timm_entries() -> Iterator[Entry]:
    """The sample of timm architectures."""
    if installed("timm"):
        for name in pick(timm_families()):
            yield Entry(f"timm/{name}", partial(builders.timm_model, name), size=25.0)


def open_clip_entries() -> Iterator[Entry]:
    """Both towers of every open_clip config, small ones first; towers that differ in input size alone run once."""
    import open_clip

    towers: dict[str, Entry] = {}
    for name in sorted(open_clip.list_models()):
        config = open_clip.get_model_config(name)
        for side, key in (("image", "vision_cfg"), ("text", "text_cfg")):
            tower = {field: value for field, value in config[key].items() if field not in NO_STRUCTURE}
            if "timm_model_name" in tower:
                tower["timm_model_name"] = re.sub(r"_\d{3}$", "", tower["timm_model_name"])
            same = json.dumps([side, config["embed_dim"], config.get("quick_gelu"), tower], sort_keys=True)
            if same not in towers:
                hub = tower.get("hf_model_name")
                towers[same] = Entry(
                    f"open_clip/{name}/{side}",
                    partial(builders.open_clip_tower, config, side),
                    skip=f"its text tower is {hub}, whose config has to be downloaded" if hub else None,
                    size=_tower_size(tower, side),
                )
    yield from sorted(towers.values(), key=lambda entry: (entry.size, entry.name))


def _tower_size(tower: Mapping[str, Any], side: str) -> float:
    if side == "image" and tower.get("timm_model_name"):
        return 100.0
    width, layers = tower.get("width", 768), tower.get("layers", 12)
    blocks = 12 * width**2 * layers if isinstance(layers, int) else 200 * width**2 * sum(layers)
    return (blocks + (tower.get("vocab_size", 49_408) * width if side == "text" else 0)) / 1e6


def transformers_entries() -> Iterator[Entry]:
    """Hugging Face models from small configs."""
    missing = None if installed("transformers") else "transformers is not installed: pip install fpe_lightning[bench]"
    for name in builders.TRANSFORMERS:
        yield Entry(f"transformers/{name}", partial(builders.transformers_model, name), skip=missing)


def catalogue() -> list[Entry]:
    """All models, in the order in which they run."""
    everything: Iterable[Entry] = (
        *transformers_entries(),
        *torchvision_entries(),
        *timm_entries(),
        *open_clip_entries(),
    )
    return list(everything)


def parameters(model: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
