"""Captions to ids and back: a SentencePiece model of exactly 32,000 pieces."""

import hashlib
from pathlib import Path

import sentencepiece

# A byte-fallback BPE of the LLaMA type, from mistral-common under the Apache licence (assets/text_tokenizer.LICENSE).
_SHIPPED = Path(__file__).parents[1] / "assets" / "text_tokenizer.model"
NUM_TEXT_IDS = 32000


class TextTokenizer:
    """Text to ids in [0, 32000) and back."""

    def __init__(self, path: str = ""):
        """Read a SentencePiece model; the one that ships with the package by default.

        Raises:
            ValueError: the file is missing, is no SentencePiece model, or has another number of pieces.
        """
        file = Path(path) if path else _SHIPPED
        if not file.is_file():
            raise ValueError(
                f"Text tokenizer {file} does not exist: give a SentencePiece .model file, or leave it out."
            )
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"Text tokenizer {file} is not a SentencePiece model: {error}") from None
        if self._model.vocab_size() != NUM_TEXT_IDS:
            raise ValueError(
                f"Text tokenizer {file} has {self._model.vocab_size()} pieces; the unified vocabulary has room for "
                f"exactly {NUM_TEXT_IDS}: use a LLaMA-type model of that size."
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the model: ids mean the same text exactly where it is the same."""
        return hashlib.sha256(self._model.serialized_model_proto()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without markers."""
        return self._model.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return self._model.decode([int(i) for i in ids])
