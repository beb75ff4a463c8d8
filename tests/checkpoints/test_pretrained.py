"""``save_pretrained`` and ``from_pretrained`` of transformers and diffusers, which bypass ``load_state_dict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks

IDS = torch.arange(16).view(2, 8)


@pytest.fixture(scope="module")
def transformers() -> Any:
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def llama(transformers: Any, expansion: fpe.Expansion | None) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    if expansion:
        fpe.expand(model, expansion, sites="*gate_proj", example_inputs={"input_ids": IDS})
    return model


@pytest.mark.parametrize(
    "expansion", [fpe.Paper(alpha=2), fpe.Blocks(alpha=2, groups=4), fpe.SemiStructured()], ids=lambda e: e.layout
)
def test_transformers(transformers: Any, expansion: fpe.Expansion, tmp_path: Path) -> None:
    wide = llama(transformers, expansion)
    out, layer = wide(IDS).logits, wide.model.layers[0].mlp.gate_proj
    wide.save_pretrained(tmp_path / "one")
    wide.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for folder in ("one", "shards"):
        with pytest.raises(RuntimeError):
            transformers.LlamaForCausalLM.from_pretrained(tmp_path / folder)
        for cls in (transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM):
            for options in ({}, {"dtype": torch.float64}):
                model = fpe.from_pretrained(cls, tmp_path / folder, **options)
                assert torch.allclose(model(IDS).logits.float(), out, atol=1e-5)
                assert model.lm_head.weight is model.model.embed_tokens.weight
                ours = model.model.layers[0].mlp.gate_proj
                assert type(ours) is type(layer)
                assert [name for name, _ in ours.named_buffers()] == [name for name, _ in layer.named_buffers()]
                assert fpe.count_nonzeros(model) == fpe.count_nonzeros(wide)
                check_masks(model)
        base = fpe.from_pretrained(transformers.LlamaModel, tmp_path / folder)
        assert torch.equal(base(IDS).last_hidden_state, wide.model(IDS).last_hidden_state)


def test_base_weights_go_into_a_model_with_a_head(transformers: Any, tmp_path: Path) -> None:
    wide = llama(transformers, fpe.Paper(alpha=2))
    wide.model.save_pretrained(tmp_path)
    with fpe.expanded_checkpoints():
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(IDS).logits, wide(IDS).logits)


def test_what_is_not_split_and_what_does_not_fit(transformers: Any, tmp_path: Path) -> None:
    narrow = llama(transformers, None)
    narrow.save_pretrained(tmp_path / "narrow")
    found = fpe.from_pretrained(transformers.LlamaForCausalLM, tmp_path / "narrow")
    assert torch.equal(found(IDS).logits, narrow(IDS).logits)
    llama(transformers, fpe.Paper(alpha=2)).save_pretrained(tmp_path / "wide")
    with pytest.raises(
        ValueError, match=r"another network: `model.layers.0.mlp.gate_proj.weight` had shape \(64, 64\)"
    ):
        fpe.from_pretrained(transformers.LlamaForCausalLM, tmp_path / "wide", intermediate_size=32)
    config = transformers.BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"were split at `model.layers.0.mlp.down_proj`, and BertModel has no such"):
        fpe.from_pretrained(transformers.BertModel, tmp_path / "wide", config=config)
    assert not hasattr(transformers.PreTrainedModel._load_pretrained_model, "fpe_patched")


def test_a_plain_model_needs_nothing_of_ours(transformers: Any, tmp_path: Path) -> None:
    wide = llama(transformers, fpe.Blocks(alpha=2, groups=4))
    model = fpe.plain(wide)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path, intermediate_size=128)
    assert torch.allclose(found(IDS).logits, wide(IDS).logits, atol=1e-5)


def test_the_trainer_of_transformers_resumes(transformers: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = [{"input_ids": row, "labels": row} for row in torch.arange(64).view(8, 8)]
    models = []
    for steps, build, resume in ((4, fpe.Paper(alpha=2), None), (4, None, str(tmp_path / "checkpoint-2"))):
        model = llama(transformers, build)
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        with fpe.expanded_checkpoints():
            transformers.Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in models), strict=True))
    check_masks(models[1])


def test_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    inputs = {"sample": torch.randn(1, 3, 8, 8), "timestep": torch.tensor([3])}
    fpe.expand(net, fpe.Paper(alpha=2), sites="time_embedding.linear_1", example_inputs=inputs)
    out = net(**inputs).sample
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    net.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    net.save_pretrained(tmp_path / "bin", safe_serialization=False)
    found = [fpe.from_pretrained(diffusers.DDPMPipeline, tmp_path / "pipe").unet]
    for folder in ("shards", "bin"):
        found += [
            fpe.from_pretrained(diffusers.UNet2DModel, tmp_path / folder, **options)
            for options in ({}, {"low_cpu_mem_usage": False})
        ]
    for model in found:
        assert torch.allclose(model(**inputs).sample, out, atol=1e-5)
        assert fpe.count_nonzeros(model) == fpe.count_nonzeros(net)
        check_masks(model)


@pytest.mark.parametrize("kind", ["ViT", "Mixtral"])
def test_names_and_experts_that_transformers_saves_in_an_older_form(
    transformers: Any, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    if kind == "ViT":
        model = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **small)).eval()
        example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    else:
        small |= {"vocab_size": 64, "num_key_value_heads": 2, "num_local_experts": 2}
        model, example = transformers.MixtralModel(transformers.MixtralConfig(**small)).eval(), {"input_ids": IDS}
    assert fpe.expand(model, fpe.Paper(alpha=2), example_inputs=example).sites
    out = model(**example).last_hidden_state
    model.save_pretrained(tmp_path)
    loaded = fpe.from_pretrained(type(model), tmp_path).eval()
    assert torch.allclose(loaded(**example).last_hidden_state, out, atol=1e-5)
    assert fpe.count_nonzeros(loaded) == fpe.count_nonzeros(model)
    check_masks(loaded)
