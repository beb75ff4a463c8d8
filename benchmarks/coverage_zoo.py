"""The list of models of ``benchmarks.coverage``, picked by a fixed rule without building or downloading any."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.progress import track
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

QUICK_TIMM = [name.removeprefix("timm/") for name in QUICK if name.startswith("timm/")]

PASSED_OVER = re.compile(r"test_|large|huge|giant|gigantic|enormous|xxl|so400m|(^|_)\d+b(_|$)")
"""timm's names of test dummies, and of big variants with smaller siblings in the same family."""

NO_STRUCTURE = (
    *("image_size", "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path", "eos_id"),
)
"""Fields of a tower about its inputs and its training, which do not change its structure."""

MOST_BLOCKS = builders.MOST_BLOCKS


@dataclass(frozen=True)
class Entry:
    """One model of the list.

    Attributes:
        name: Unique, ``"kind/model"``.
        build: Builds the model and its smallest example inputs.
        skip: The reason to skip it here; None if it can run.
        size: An estimate of the number of parameters, in millions, that only orders the run.
    """

    name: str
    build: Callable[[], builders.Built]
    skip: str | None = None
    size: float = 0.0

    @property
    def kind(self) -> str:
        """The library; torchvision's segmentation models are a kind of their own."""
        return self.name.partition("/")[0]


def candidates(names: Sequence[str]) -> list[str]:
    """The names of a family without test dummies and big variants (``PASSED_OVER``), unless it has no others.

    Example:
        >>> candidates(["a_tiny", "a_huge"]), candidates(["b_huge"])
        (['a_tiny'], ['b_huge'])
    """
    return [name for name in sorted(names) if not PASSED_OVER.search(name)] or sorted(names)


def pick(families: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> list[str]:
    """Pick architectures from every family.

    The rule: a family of ``n`` names gives ``2 + n // 16`` of them (all, if it has fewer). Its names without
    ``PASSED_OVER``, in alphabetical order, are divided into that many stretches of equal length (within one). The
    smallest of each stretch by parameters is picked. The first picks of all families come first, then the second.

    Args:
        families: Names by family.
        sizes: Parameters of each candidate.

    Returns:
        Names; the same for any order of the families.

    Example:
        >>> pick({"b": ["b_small", "b_huge"], "a": ["a3", "a1", "a2", "a4"]}, {"a1": 9, "a2": 8, "a3": 2, "a4": 5})
        ['a2', 'b_small', 'a3']
    """
    rounds: dict[int, list[str]] = {}
    for family in sorted(families):
        names = candidates(families[family])
        count = min(len(names), 2 + len(families[family]) // 16)
        for turn in range(count):
            stretch = names[turn * len(names) // count : (turn + 1) * len(names) // count]
            rounds.setdefault(turn, []).append(min(stretch, key=lambda name: (sizes.get(name, 0), name)))
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


def timm_sizes(path: Path = Path("results")) -> dict[str, int]:
    """Parameters of every candidate, counted once per version of timm (some minutes) and stored in a file.

    Args:
        path: Folder of the file.

    Returns:
        Numbers by name.
    """
    import timm

    file = path / f"timm-{timm.__version__}-parameters.json"
    if not file.exists():
        names = [name for family in timm_families().values() for name in candidates(family)]
        with torch.device("meta"):
            sizes = {
                name: sum(parameter.numel() for parameter in timm.create_model(name).parameters())
                for name in track(names, "counting the parameters of timm's architectures")
            }
        path.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(sizes))
    return json.loads(file.read_text())


def timm_entries(names: Iterable[str] | None = None) -> Iterator[Entry]:
    """The sample of timm architectures, small ones first, or the given names."""
    if installed("timm"):
        sizes = timm_sizes() if names is None else {}
        names = pick(timm_families(), sizes) if names is None else names
        for name in sorted(names, key=lambda name: sizes.get(name, 0)):
            yield Entry(f"timm/{name}", partial(builders.timm_model, name), size=sizes.get(name, 0) / 1e6)


def open_clip_entries() -> Iterator[Entry]:
    """Both towers of every open_clip config, small ones first; towers that differ only in their inputs run once.

    Blocks of a tower have the same structure, so towers have at most ``MOST_BLOCKS`` of them.
    """
    import open_clip

    towers: dict[str, Entry] = {}
    for name in sorted(open_clip.list_models()):
        config = open_clip.get_model_config(name)
        for side, key in (("image", "vision_cfg"), ("text", "text_cfg")):
            tower = {field: value for field, value in config[key].items() if field not in NO_STRUCTURE}
            if isinstance(tower.get("layers"), int):
                tower["layers"] = min(tower["layers"], MOST_BLOCKS)
            if "timm_model_name" in tower:
                tower["timm_model_name"] = re.sub(r"_\d{3}$", "", tower["timm_model_name"])
            # Towers with the same fields have the same structure.
            same = json.dumps([side, config["embed_dim"], config.get("quick_gelu"), tower], sort_keys=True)
            if same not in towers:
                hub = tower.get("hf_model_name")
                towers[same] = Entry(
                    f"open_clip/{name}/{side}",
                    partial(builders.open_clip_tower, config, side),
                    skip=f"its text tower is {hub}, whose config has to be downloaded" if hub else None,
                    size=0.0 if hub else _tower_size(tower, side),
                )
    yield from sorted(towers.values(), key=lambda entry: (entry.size, entry.name))


def _tower_size(tower: Mapping[str, Any], side: str) -> float:
    if side == "image" and tower.get("timm_model_name"):
        return 100.0
    width, layers = tower.get("width", 768), tower.get("layers", 12)
    return (12 * width**2 * layers if isinstance(layers, int) else 200 * width**2 * sum(layers)) / 1e6


def transformers_entries() -> Iterator[Entry]:
    """Hugging Face models from small configs."""
    missing = None if installed("transformers") else "transformers is not installed: pip install fpe_lightning[bench]"
    for name in builders.TRANSFORMERS:
        yield Entry(f"transformers/{name}", partial(builders.transformers_model, name), skip=missing)


def catalogue(timm_names: Iterable[str] | None = None) -> list[Entry]:
    """All models, in the order of the run; with ``timm_names``, these replace the sample of timm."""
    everything: Iterable[Entry] = (
        *transformers_entries(),
        *torchvision_entries(),
        *timm_entries(timm_names),
        *open_clip_entries(),
    )
    return list(everything)


def parameters(model: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
