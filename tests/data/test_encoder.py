"""Promises of the encoders: the embedded CLIP loads like any other, and what cannot be loaded says why."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from fpe_lightning.data.encoder import GLYPH_CLIP_DIRECTORY, ImageEncoder, load_encoder
from fpe_lightning.data.glyphs import GlyphDataset
from studies.train_glyph_clip import CONFIG
from studies.zero_shot import zero_shot_accuracy


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return load_encoder()


@pytest.fixture
def directory(tmp_path):
    """A copy of the embedded encoder, to be damaged."""
    return shutil.copytree(GLYPH_CLIP_DIRECTORY, tmp_path / "clip")


def glyphs(encoder: ImageEncoder, count: int = 6) -> torch.Tensor:
    return torch.stack([image for image, _ in GlyphDataset("test", count, transform=encoder.preprocess)])


def test_the_embedded_encoder_is_small_and_described():
    files = list(GLYPH_CLIP_DIRECTORY.iterdir())
    assert {file.name for file in files} == {"open_clip_config.json", "open_clip_model.safetensors", "README.md"}
    assert sum(file.stat().st_size for file in files) < 8e6
    assert json.loads((GLYPH_CLIP_DIRECTORY / "open_clip_config.json").read_text()) == CONFIG


def test_embeddings_are_unit_float32_rows(encoder):
    embeddings = encoder.encode(glyphs(encoder))
    assert embeddings.shape == (6, encoder.dim) == (6, 512)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))


def test_normalisation_can_be_left_out(encoder):
    images = glyphs(encoder)
    raw = encoder.encode(images, normalize=False)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(torch.nn.functional.normalize(raw), encoder.encode(images))


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    images = glyphs(encoder)
    torch.testing.assert_close(encoder.encode(images)[2:3], encoder.encode(images[2:3]), rtol=1e-4, atol=1e-5)


def test_texts_and_pictures_share_a_space(encoder):
    texts = encoder.encode_text([f"serif {name}" for name in GlyphDataset.classes])
    assert texts.shape == (94, 512)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(94))


def test_a_text_of_any_length_is_encoded(encoder):
    assert torch.isfinite(encoder.encode_text(["a " * 100, ""])).all()


def test_everything_is_frozen(encoder):
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_the_embedded_encoder_is_what_open_clip_loads_from_its_directory(encoder):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{GLYPH_CLIP_DIRECTORY}")
    model.eval()
    image = GlyphDataset("val")[0][0]
    assert torch.equal(preprocess(image), encoder.preprocess(image))
    with torch.no_grad():
        expected = model.encode_image(preprocess(image)[None], normalize=True)
    assert torch.equal(encoder.encode(preprocess(image)[None]), expected)


def test_a_directory_with_the_same_weights_has_the_same_digest_and_another_name(encoder, directory):
    copy = load_encoder(f"local-dir:{directory}")
    assert copy.name == f"local-dir:{directory}"
    assert encoder.name == "glyph-clip"
    assert copy.digest == encoder.digest
    assert len(encoder.digest) == 64


def test_the_digest_sees_one_changed_weight(encoder, directory):
    file = directory / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["logit_scale"] += 0.01
    save_file(tensors, file)
    assert load_encoder(f"local-dir:{directory}").digest != encoder.digest


def test_the_description_of_the_preprocessing_tells_settings_apart(encoder, directory):
    config = directory / "open_clip_config.json"
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    other = load_encoder(f"local-dir:{directory}")
    assert json.loads(encoder.preprocess_description)["size"] == encoder.preprocess(Image.new("RGB", (9, 9))).shape[1]
    assert encoder.preprocess_description != other.preprocess_description
    assert encoder.preprocess_description == load_encoder().preprocess_description


def test_loading_and_classifying_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    zero_shot_accuracy(load_encoder(), GlyphDataset("val", 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_shot_accuracy_on_unseen_fonts(encoder):
    assert zero_shot_accuracy(encoder, GlyphDataset("val", 376)) > 0.7
    assert zero_shot_accuracy(encoder, GlyphDataset("test", 376)) > 0.7


def test_zero_shot_accuracy_takes_preprocessed_tensors_too(encoder):
    plain = zero_shot_accuracy(encoder, GlyphDataset("val", 94))
    assert zero_shot_accuracy(encoder, GlyphDataset("val", 94, transform=encoder.preprocess), batch_size=7) == plain


class Misnamed(Dataset):
    """Pictures under the names of other classes."""

    classes = GlyphDataset.classes[1:] + GlyphDataset.classes[:1]
    prompts = GlyphDataset.prompts

    def __init__(self):
        self.glyphs = GlyphDataset("val", 94)

    def __len__(self):
        return len(self.glyphs)

    def __getitem__(self, index):
        return self.glyphs[index]


def test_zero_shot_accuracy_goes_by_the_names(encoder):
    assert zero_shot_accuracy(encoder, Misnamed()) < 0.1


def test_prompts_matter_and_can_be_chosen(encoder):
    dataset = GlyphDataset("val", 188)
    sensible = zero_shot_accuracy(encoder, dataset, prompts=["serif {}", "typewriter {}"])
    senseless = zero_shot_accuracy(encoder, dataset, prompts=["a b c d e f g h i j k l m n o p q r {}"])
    assert sensible > 0.5 > senseless


@pytest.mark.parametrize("prompts", [[], ["a letter"]])
def test_prompts_without_a_place_for_the_name_are_refused(encoder, prompts):
    with pytest.raises(ValueError, match=r"needs prompts that hold \{\} for the class name, got \["):
        zero_shot_accuracy(encoder, GlyphDataset("val", 94), prompts=prompts)


def test_a_data_set_without_class_names_is_refused(encoder):
    with pytest.raises(TypeError, match=r"needs a data set with \.classes"):
        zero_shot_accuracy(encoder, torch.utils.data.TensorDataset(torch.zeros(2)))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64)])
def test_a_batch_of_another_shape_is_refused(encoder, shape):
    with pytest.raises(
        ValueError, match=r"encodes images of shape \(n, 3, height, width\), got \(.*apply encoder.prepro"
    ):
        encoder.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23", None, r"no CLIP model 'ViT-B-23' \(did you mean 'ViT-B-32'\?\): it must be 'glyph-clip', a name"),
        ("vit-b-32", "openai", r"no CLIP model 'vit-b-32' \(did you mean 'ViT-B-32'\?\)"),
        ("glyphclip", None, r"no CLIP model 'glyphclip' \(did you mean 'glyph-clip'\?\)"),
        ("nothing of the kind", None, r"no CLIP model 'nothing of the kind': it must be"),
        ("ViT-B-32", None, r"'ViT-B-32' needs pretrained weights: give a tag that open_clip lists for it \(openai, "),
        ("ViT-B-32", "openia", r"no pretrained weights 'openia' \(did you mean 'openai'\?\): it is neither a tag"),
        ("glyph-clip", "openai", r"'glyph-clip' brings its own weights: leave out pretrained='openai'"),
        ("hf-hub:laion/any", "openai", r"'hf-hub:laion/any' brings its own weights"),
    ],
)
def test_unknown_names_and_tags_are_refused(model, pretrained, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(model, pretrained)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"looked for in {tmp_path}/no, where the directory itself is missing: put"
    ):
        load_encoder(f"local-dir:{tmp_path}/no")


@pytest.mark.parametrize(
    ("removed", "missing"),
    [("open_clip_config.json", "open_clip_config.json"), ("open_clip_model.safetensors", "a check")],
)
def test_an_incomplete_directory_is_refused(directory, removed, missing):
    (directory / removed).unlink()
    with pytest.raises(FileNotFoundError, match=f"where {missing}.* is missing: put open_clip_config.json and"):
        load_encoder(f"local-dir:{directory}")


def test_weights_of_another_architecture_are_refused(directory):
    config = directory / "open_clip_config.json"
    config.write_text(config.read_text().replace('"embed_dim": 512', '"embed_dim": 256'))
    with pytest.raises(RuntimeError, match=r"was found but does not load: .*size mismatch for text_projection"):
        load_encoder(f"local-dir:{directory}")


def test_a_checkpoint_file_provides_the_weights_by_hand(encoder, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", CONFIG["model_cfg"])
    file = str(GLYPH_CLIP_DIRECTORY / "open_clip_model.safetensors")
    loaded = load_encoder("small", file)
    assert loaded.name == f"small/{file}"
    assert loaded.digest == encoder.digest


def test_a_checkpoint_file_of_another_architecture_is_refused():
    file = str(GLYPH_CLIP_DIRECTORY / "open_clip_model.safetensors")
    with pytest.raises(RuntimeError, match=r"'RN50' with weights '.*' was found but does not load: \w+"):
        load_encoder("RN50", file)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        (
            "ViT-B-32",
            "laion2b_s34b_b79k",
            r"'ViT-B-32' with weights 'laion2b_s34b_b79k'.*laion/CLIP-ViT-B-32-laion2B-s34B",
        ),
        ("ViT-B/32", "openai", r"'ViT-B-32' with weights 'openai'"),
        ("hf-hub:laion/nothing", None, r"'hf-hub:laion/nothing'.*nor from laion/nothing on the Hugging Face Hub"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_downloaded_say_how_to_provide_them(model, pretrained, message):
    with pytest.raises(
        RuntimeError, match=message + r".*by hand, give a checkpoint file.*'local-dir:DIRECTORY'"
    ) as error:
        load_encoder(model, pretrained)
    assert "\n" not in str(error.value)


def test_pictures_of_any_mode_and_size_are_preprocessed(encoder):
    colour = Image.fromarray(np.zeros((50, 70, 3), np.uint8))
    for image in (colour, colour.convert("L"), Image.new("1", (8, 8))):
        assert encoder.preprocess(image).shape == glyphs(encoder, 1)[0].shape
