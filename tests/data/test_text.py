"""The text tokenizer."""

import pytest
import sentencepiece

from loong_jax.data.text import NUM_TEXT_IDS, TextTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer()


@pytest.mark.parametrize("text", ["a red 7 moves left", "Größe, 北京, 🙂", "", "two  spaces", 'quotes " and \\'])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(3 <= i < NUM_TEXT_IDS for i in ids)  # no unknown, no begin or end marker


def test_digits_and_colors_are_told_apart(tokenizer):
    captions = [f"a {color} {digit} moves up" for color in ("red", "blue") for digit in range(10)]
    assert len({tuple(tokenizer.encode(caption)) for caption in captions}) == 20


def test_bad_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.model does not exist"):
        TextTokenizer(str(tmp_path / "nothing.model"))
    (tmp_path / "text.model").write_text("this is no model")
    with pytest.raises(ValueError, match="text.model is not a SentencePiece model"):
        TextTokenizer(str(tmp_path / "text.model"))
    (tmp_path / "corpus.txt").write_text("a red 7 moves left\n" * 10)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "small"), vocab_size=17, minloglevel=2
    )
    with pytest.raises(ValueError, match="small.model has 17 pieces"):
        TextTokenizer(str(tmp_path / "small.model"))
