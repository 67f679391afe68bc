"""Export a trained model: one folder with settings, weights, tokenizer and a card.

    python -m loong_jax.main --config=configs/export.py --workdir=runs/export --config.model_path=../stage3

`model_path` is the workdir of a language-model training, relative to the workdir, or a model folder. Writes
<workdir>/model, which `loong_jax.load` and every `model_path` take, also from another machine; with
`--config.upload=OWNER/NAME` it goes to the Hugging Face Hub besides (`pip install "loong_jax[hub]"`), from where
`hf:OWNER/NAME` is loaded. `--config.dtype=float16` halves the files, and `--config.texts_file=FILE` leaves out the
embeddings of words that the lines of FILE do not use. `--config.format=llama` writes a LlamaForCausalLM of transformers
to <workdir>/llama instead, and `--config.llama_weights=DIR` takes the language model's weights from such a one.
`:debug` exports the model of `configs/stage3.py:debug`.
"""

from loong_jax.config import ExportJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    parse_variant(variant, ("debug",))
    return to_config_dict(ExportJob())
