"""CLIPSIM of a tiny random CLIP, as the library computes it of the same frames; and what to do where it is missing."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from loong_jax.evaluation.clipsim import Clip

has_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")), reason="needs the extra [clip]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of two layers that reads letters."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 80, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


@has_libraries
@pytest.mark.slow
def test_it_is_the_mean_cosine_that_the_library_gives(folder):
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    clip = Clip(folder)
    video = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    pictures = [np.asarray(Image.fromarray(frame).resize((43, 32), Image.Resampling.BICUBIC)) for frame in video]
    pixels = np.stack(pictures)[:, :, 5:37] / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor(((pixels - mean) / deviation).transpose(0, 3, 1, 2), dtype=torch.float32)
    model = CLIPModel.from_pretrained(folder)
    for text in ("a red 7 moves left", "a red 7 that moves left and then right and then left again"):
        words = CLIPTokenizer.from_pretrained(folder)([text], return_tensors="pt").input_ids
        if words.shape[1] > 16:
            words = torch.cat([words[:, :15], words[:, -1:]], dim=1)
        with torch.no_grad():
            logits = model(input_ids=words, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
        assert logits.abs().max() > 0.01
        assert clip.similarity(video, text) == pytest.approx(float(logits.mean()), abs=1e-5)
    assert -1 <= clip.similarity(video.repeat(20, axis=0), "a") <= 1


@has_libraries
@pytest.mark.slow
def test_a_folder_without_weights(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=f"clip_path {tmp_path} cannot be read as CLIP: .*model.safetensors"):
        Clip(tmp_path)


def test_without_the_libraries_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "loong_jax\[clip\]"'):
        Clip("clip")


def test_a_folder_that_is_no_clip(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(__import__("sys").modules, "transformers", object())
    with pytest.raises(ValueError, match="holds no config.json: give a folder with CLIP's config.json"):
        Clip(tmp_path)
