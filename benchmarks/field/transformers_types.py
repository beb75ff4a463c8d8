"""Model types of transformers from shrunken default configs, each in a LightningModule."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.field.project import Project
from benchmarks.field.trainers import InTrainer

TEXTS = [
    "albert",
    "bert",
    "bert-generation",
    "big_bird",
    "biogpt",
    "bloom",
    "camembert",
    "canine",
    "codegen",
    "cohere",
    "convbert",
    "ctrl",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "falcon",
    "flaubert",
    "fnet",
    "gemma",
    "gemma2",
    "glm",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "granite",
    "ibert",
    "jamba",
    "layoutlm",
    "lilt",
    "llama",
    "mamba",
    "mamba2",
    "megatron-bert",
    "mistral",
    "mixtral",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mpt",
    "nystromformer",
    "olmo",
    "olmo2",
    "openai-gpt",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "rembert",
    "roberta",
    "roformer",
    "rwkv",
    "squeezebert",
    "stablelm",
    "starcoder2",
    "xglm",
    "xlm",
    "xlm-roberta",
    "xlnet",
]
PAIRS = [
    "bart",
    "blenderbot",
    "led",
    "longt5",
    "m2m_100",
    "marian",
    "mbart",
    "mt5",
    "pegasus",
    "plbart",
    "switch_transformers",
    "t5",
    "umt5",
]
IMAGES = [
    "beit",
    "convnext",
    "convnextv2",
    "data2vec-vision",
    "deit",
    "dinov2",
    "efficientnet",
    "focalnet",
    "hiera",
    "levit",
    "mobilenet_v2",
    "poolformer",
    "pvt",
    "regnet",
    "resnet",
    "segformer",
    "swin",
    "swinv2",
    "vit",
    "vit_msn",
]
SOUNDS = ["hubert", "sew", "unispeech", "wav2vec2", "wavlm"]

EDGE = 64
"""Edge of an image, in pixels."""

SMALL: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|vocab_size_.*", 96),
    (r"(hidden|embedding|model|word_embed_proj|emb)_(size|dim)|d_model|n_embd|dim|embed_dim|embedding_size", 32),
    (r"intermediate_size|ffn_dim|.*_ffn_dim|d_ff|n_inner|hidden_dim|inner_dim|intermediate_dim|mlp_dim", 48),
    (r"(num|n)_(hidden_|encoder_|decoder_)?layers?|.*_layers|n_layer|num_blocks|num_hidden_layers", 2),
    (r"(num|n)_(attention_|encoder_attention_|decoder_attention_)?heads?|n_head|.*attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads", 2),
    (r"max_position_embeddings|n_positions|max_seq_len|max_sequence_length|block_size", 64),
    (r"image_size", EDGE),
    (r"num_(local_)?experts|n_routed_experts", 4),
    (r".*drop.*|.*_prob", 0),
)
"""Values by the names of a config's fields, first match first; fields that a config lacks stay out."""

EXTRA: dict[str, dict[str, Any]] = {
    "albert": {"num_hidden_groups": 1, "embedding_size": 16},
    "bloom": {"hidden_size": 32, "n_head": 4},
    "canine": {"local_transformer_stride": 16, "downsampling_rate": 2},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": 48},
    "flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "glm": {"head_dim": 8},
    "mistral": {"head_dim": 8},
    "mixtral": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "jamba": {"mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "mamba": {"state_size": 4, "time_step_rank": 4, "conv_kernel": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 1, "chunk_size": 8},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 16},
    "qwen2_moe": {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "openai-gpt": {"afn": "gelu"},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "convnext": {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2},
    "convnextv2": {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2},
    "resnet": {"depths": [1, 1], "hidden_sizes": [32, 64], "embedding_size": 16},
    "regnet": {"depths": [1, 1], "hidden_sizes": [32, 64], "embedding_size": 16, "groups_width": 16},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    "focalnet": {"embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "hiera": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": [EDGE, EDGE], "num_query_pool": 1},
    "levit": {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
    "poolformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]},
    "pvt": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 1, 2, 2]},
    "segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 1, 2, 2]},
    "hubert": {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8},
    "lilt": {"hidden_size": 48},
    "bart": {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
    "led": {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "longt5": {"local_radius": 4, "global_block_size": 4},
    "big_bird": {"attention_type": "original_full"},
}
for _name in ("wavlm", "wav2vec2", "unispeech", "sew"):
    EXTRA[_name] = EXTRA["hubert"]
EXTRA["sew"] = {**EXTRA["hubert"], "squeeze_factor": 2}
for _name in PAIRS:
    EXTRA.setdefault(_name, {}).update(d_kv=8)


def small_config(kind: str) -> Any:
    """The default config of a model type with small values."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind]
    default = config_class()
    fields = {**default.to_dict(), **dict.fromkeys(default.attribute_map)}
    values: dict[str, Any] = {}
    for name, old in fields.items():
        if isinstance(old, bool) or not isinstance(old, (int, float)):
            continue
        for pattern, value in SMALL:
            if re.fullmatch(pattern, name):
                values[name] = value
                break
    values |= {name: 0 for name in ("pad_token_id",) if isinstance(fields.get(name), int)}
    for name in ("bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id"):
        if isinstance(fields.get(name), int):
            values[name] = 1
    values |= EXTRA.get(kind, {})
    return config_class(**values)


class ModelType(InTrainer):
    """One model type: ``AutoModel.from_config``, ``save_pretrained`` and ``AutoModel.from_pretrained``."""

    packages = ("transformers",)

    def __init__(self, kind: str) -> None:
        self.kind, self.name = kind, f"transformers/{kind}"

    def build(self) -> nn.Module:
        """The model in a LightningModule that makes its outputs small."""
        from transformers import AutoModel

        base: Any = importlib.import_module(self.lightning).LightningModule
        torch.manual_seed(0)

        class Lit(base):
            """Trains any model by the squares of what it returns."""

            def __init__(self, net: nn.Module) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return sum(each.pow(2).mean() for each in tensors(self.net(**batch)))

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters(), lr=1e-3)

        return Lit(AutoModel.from_config(small_config(self.kind)))

    def inputs(self) -> dict[str, Tensor]:
        """The inputs of its kind."""
        generator = torch.Generator().manual_seed(0)
        if self.kind in IMAGES:
            return {"pixel_values": torch.randn(2, 3, EDGE, EDGE, generator=generator)}
        if self.kind in SOUNDS:
            return {"input_values": torch.randn(2, 800, generator=generator)}
        ids = torch.randint(4, 96, (2, 16), generator=generator)
        return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if self.kind in PAIRS else {})

    def data(self) -> Any:
        """Two batches."""
        return torch.utils.data.DataLoader([self.inputs(), self.inputs()], batch_size=None)  # type: ignore[arg-type]

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Fit, and ``save_pretrained``."""
        module: Any = super().train(folder, epochs, callbacks, resume)
        module.net.save_pretrained(str(folder / "model"))
        return module

    def load(self, folder: Path) -> nn.Module:
        """``AutoModel.from_pretrained``."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(str(folder / "model"))

    def outputs(self, model: nn.Module) -> Tensor:
        """The first output."""
        network: Any = getattr(model, "net", model)
        with torch.no_grad():
            return next(tensors(network.eval()(**self.inputs())))


def tensors(outputs: Any) -> Any:
    """The float tensors of a model's outputs that are not caches."""
    for name, value in outputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and "past" not in name and "loss" not in name:
            yield value


PROJECTS: tuple[Callable[[], Project], ...] = tuple(
    partial(ModelType, kind) for kind in (*TEXTS, *PAIRS, *IMAGES, *SOUNDS)
)
