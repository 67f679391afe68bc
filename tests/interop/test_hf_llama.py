"""The same weights give the same logits here and in transformers' LlamaForCausalLM, and survive there and back."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from loong_jax.config import TransformerConfig
from loong_jax.interop.hf_llama import from_hf, hf_config, load_safetensors, save_safetensors, to_hf
from loong_jax.models import transformer

REFERENCES = Path(__file__).parents[1] / "references"
CONFIG = TransformerConfig(
    num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, num_text_ids=20, num_video_ids=16
)


@pytest.fixture(scope="module")
def stored() -> tuple[TransformerConfig, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Config, tensors, tokens and logits written by ``make_llama_parity.py``."""
    with np.load(REFERENCES / "llama_parity.npz") as archive:
        arrays = dict(archive)
    config = TransformerConfig(**json.loads(str(arrays.pop("config"))))
    return config, arrays, arrays.pop("tokens"), arrays.pop("logits")


def our_logits(config: TransformerConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    model = nnx.merge(transformer.abstract_params(config)[0], params)
    positions = jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1))
    return np.asarray(model.logits(model.hidden(tokens.astype(np.int32), positions, jnp.ones_like(positions))))


def test_logits_equal_those_stored_from_transformers(stored):
    config, tensors, tokens, expected = stored
    assert expected.std() > 1
    np.testing.assert_allclose(our_logits(config, from_hf(tensors, config), tokens), expected, rtol=0, atol=1e-4)


def test_logits_equal_those_of_transformers_live(tmp_path):
    """Our weights, written by us as a model folder, read and run by transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, rope_theta=500.0, norm_eps=1e-2)
    params = jax.tree.map(lambda x: 8 * x, transformer.init_params(config, jax.random.key(0)))
    save_safetensors(tmp_path / "model.safetensors", to_hf(params, config))
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 12))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(our_logits(config, params, tokens), expected, rtol=0, atol=1e-4)


def test_stored_reference_is_what_its_script_makes(stored):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config, tensors, tokens, logits = stored
    script = runpy.run_path(str(REFERENCES / "make_llama_parity.py"))
    assert script["CONFIG"] == config
    np.testing.assert_array_equal(script["reference_tokens"](), tokens)
    model = script["reference_model"]()
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), tensors[name])
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(tokens)).logits.numpy(), logits, rtol=0, atol=1e-5)


def test_there_and_back(stored, tmp_path):
    config, tensors, _, _ = stored
    params = from_hf(tensors, config)
    shapes = jax.tree.map(lambda x: x.shape, transformer.abstract_params(config)[1])
    assert jax.tree.map(lambda x: x.shape, params) == shapes
    save_safetensors(tmp_path / "model.safetensors", to_hf(params, config))
    back = load_safetensors(tmp_path / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def test_bfloat16_files_are_read_as_float32(stored, tmp_path):
    config, tensors, _, _ = stored
    low = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    save_file(low, tmp_path / "model.safetensors")
    params = from_hf(load_safetensors(tmp_path / "model.safetensors"), config)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["embedding"][: config.vocab_size], low["model.embed_tokens.weight"])


def test_a_damaged_file_is_said(stored, tmp_path):
    file = tmp_path / "model.safetensors"
    save_safetensors(file, {"a": np.zeros(100, np.float32)})
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_safetensors(file)


def test_weights_that_do_not_fit_are_refused(stored):
    config, tensors, _, _ = stored
    with pytest.raises(ValueError, match="lack 'model.layers.2.*9 such names.*of 3 layers"):
        from_hf(tensors, dataclasses.replace(config, num_layers=3))
    with pytest.raises(ValueError, match="hold also 'model.layers.1.*9 such names"):
        from_hf(tensors, dataclasses.replace(config, num_layers=1))
    with pytest.raises(ValueError, match=r"mlp.gate_proj.weight has shape \(96, 64\).* needs \(48, 64\)"):
        from_hf(tensors, dataclasses.replace(config, mlp_dim=48))
