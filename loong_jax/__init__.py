"""Loong in JAX: minute-long video from text with one autoregressive language model (arXiv 2410.02757)."""

__version__ = "0.1.0"

# What users import; loaded on first use, so that reading a config needs no JAX.
_PUBLIC = {
    "VideoTokenizer": "loong_jax.tokenizer.video_tokenizer",
    "VideoWriter": "loong_jax.video",
    "Pipeline": "loong_jax.pipeline",
    "load": "loong_jax.pipeline",
    "read_video": "loong_jax.video_file",
    "write_video": "loong_jax.video",
}
__all__ = ["Pipeline", "VideoTokenizer", "VideoWriter", "load", "read_video", "write_video"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'loong_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
