"""CLIPSIM (arXiv 2104.14806): how well a video shows its text, as CLIP (arXiv 2103.00020) sees it.

The mean over frames of the cosine between a frame and the text. Published figures are of ViT-B/32. No package ships
CLIP, so its weights are the user's: a folder with config.json, model.safetensors and the tokenizer's files, as Hugging
Face has it. It runs in PyTorch, through the library transformers.
"""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from loong_jax.video import Video

# Of the pixels in [0, 1] that CLIP was trained on.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_MOST_FRAMES = 16  # of a video, evenly spread


class Clip:
    """CLIP, read from a folder."""

    def __init__(self, path: str | Path):
        """Read it.

        Raises:
            ValueError: transformers or PyTorch is not installed, or the folder holds no CLIP in safetensors.
        """
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            raise ValueError('CLIPSIM needs PyTorch and transformers: pip install "loong_jax[clip]".')
        import transformers

        if not (Path(path) / "config.json").is_file():
            raise ValueError(
                f"clip_path {path} holds no config.json: give a folder with CLIP's config.json, model.safetensors and "
                "tokenizer, as openai/clip-vit-base-patch32 has them on Hugging Face."
            )
        try:
            self._model = transformers.CLIPModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
            self._tokenizer = transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0]
            raise ValueError(f"clip_path {path} cannot be read as CLIP: {said}") from error
        self._model.eval().requires_grad_(False)
        self._to_tensors = transformers.BatchFeature

    def similarity(self, video: Video, text: str) -> float:
        """CLIPSIM of a video, of up to 16 of its frames, in [-1, 1]."""
        config = self._model.config
        chosen = video[np.linspace(0, len(video) - 1, min(_MOST_FRAMES, len(video))).round().astype(int)]
        pixels = self._to_tensors({"pixel_values": _pixels(chosen, config.vision_config.image_size)}, tensor_type="pt")
        most = config.text_config.max_position_embeddings
        words = self._tokenizer([text], truncation=True, max_length=most, return_tensors="pt")
        seen = self._model(**pixels, **words)
        return float((seen.image_embeds @ seen.text_embeds.T).mean())


def _pixels(video: Video, size: int) -> Float[np.ndarray, "frames 3 size size"]:
    """What CLIP sees: the middle square, bicubic, normalized."""
    height, width = video.shape[1:3]
    scale = size / min(height, width)
    scaled = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = ((side - size) // 2 for side in scaled)
    box = (left, top, left + size, top + size)
    frames = [np.asarray(Image.fromarray(x).resize(scaled, Image.Resampling.BICUBIC).crop(box)) for x in video]
    return ((np.stack(frames).astype(np.float32) / 255 - _MEAN) / _DEVIATION).transpose(0, 3, 1, 2)
