"""Models from GGUF: a folder like any other, whose answers are those of the file's weights; what is broken is named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ModelLoadError
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.models.gguf import import_gguf
from headrace_workers.models.gguf_file import read_gguf
from headrace_workers.models.gguf_tokenizer import gguf_tokenizer
from headrace_workers.models.loading import load_model
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

IDS = torch.arange(3, 40)[None]
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))


def _decoder(make_of: str = "Llama", **settings: Any) -> Any:
    import transformers

    torch.manual_seed(3)
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "initializer_range": 0.2,
    }
    config = getattr(transformers, f"{make_of}Config")(**shape | settings)
    return getattr(transformers, f"{make_of}ForCausalLM")(config).eval()


def _as_llama_cpp_orders(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """`permute` of llama.cpp's convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _gguf_name(name: str) -> str:
    prefix, _, part = name.rpartition(".")
    if prefix in _OUTER:
        return f"{_OUTER[prefix]}.{part}"
    _, _, block, rest = prefix.split(".", 3)
    return f"blk.{block}.{_PARTS[rest]}.{part}"


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Writes a model as llama.cpp's converter does: `written(model, kind=GGMLQuantizationType.Q8_0)`."""

    def write(
        model: Any,
        *,
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        architecture: str = "",
        tokenizer: str = "gpt2",
        cut: str = "smollm",
        scaling: str = "none",
    ) -> Path:
        config, path = model.config, tmp_path / "model.gguf"
        writer = GGUFWriter(path, architecture or config.model_type)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_tokenizer_model(tokenizer)
        writer.add_tokenizer_pre(cut)
        writer.add_token_list([chr(33 + at) for at in range(94)] + ["Ġ", "<|end|>"])
        writer.add_token_types([1] * 95 + [3])
        writer.add_token_merges([])
        writer.add_eos_token_id(95)
        writer.add_string(f"{config.model_type}.rope.scaling.type", scaling)
        for name, values in _values(model).items():
            stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _values(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    heads = {"attn_q.": model.config.num_attention_heads, "attn_k.": model.config.num_key_value_heads}
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        target, values = _gguf_name(name), tensor.numpy()
        for part, count in heads.items():
            if part in target and model.config.model_type == "llama":
                values = _as_llama_cpp_orders(values, count)
        found[target] = values
    return found


def _logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = module(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize(
    ("make_of", "shape"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
    ],
)
def test_a_model_comes_back_as_it_went_in(make_of: str, shape: dict[str, Any], written: Write) -> None:
    model = _decoder(make_of, **shape)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    source = find_source(written(model))
    assert source.task(None) == "causal_lm"
    module: Any = load_model(source, "causal_lm").module
    assert torch.equal(_logits(module), _logits(model))
    tied = module.lm_head.weight is module.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "F16", "BF16"])
def test_weights_are_what_the_files_numbers_stand_for(kind: str, written: Write) -> None:
    stored, model = GGMLQuantizationType[kind], _decoder()
    weight = model.model.layers[0].mlp.up_proj.weight
    expected = dequantize(quantize(weight.detach().numpy(), stored), stored)
    module: Any = load_model(find_source(written(model, kind=stored)), "causal_lm").module
    assert np.array_equal(module.model.layers[0].mlp.up_proj.weight.numpy(), expected)


def test_half_precision_stays_half_on_disk(written: Write) -> None:
    model = _decoder()
    single = sum(file.stat().st_size for file in import_gguf(written(model)).glob("*.safetensors"))
    half = sum(
        file.stat().st_size for file in import_gguf(written(model, kind=GGMLQuantizationType.F16)).glob("*.safetensors")
    )
    assert half < 0.6 * single


def test_a_file_is_converted_once_and_found_by_its_content(written: Write, tmp_path: Path) -> None:
    path = written(_decoder())
    folder = import_gguf(path)
    marker = (folder / "config.json").stat().st_mtime_ns
    moved = path.rename(tmp_path / "elsewhere.gguf")
    assert import_gguf(moved) == folder
    assert (folder / "config.json").stat().st_mtime_ns == marker
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_large_models_are_written_in_parts(written: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_workers.models.gguf._SHARD_BYTES", 40_000)
    model = _decoder()
    source = find_source(written(model))
    assert len(list(source.folder.glob("*.safetensors"))) > 1
    assert torch.equal(_logits(load_model(source, "causal_lm").module), _logits(model))


def test_the_tokenizer_keeps_control_tokens_whole_and_digits_apart(written: Write) -> None:
    source = find_source(written(_decoder()))
    tokenizer = load_tokenizer(source, 64)
    assert tokenizer(["a 12<|end|>"])[0].ids.tolist() == [64, 94, 16, 17, 95]
    config = json.loads((source.folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|end|>"
    assert config["model_max_length"] == 64


def test_sentencepiece_merges_come_from_its_scores() -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "t", "h", "e", "th", "he", "the", "▁the"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 8,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    encode = gguf_tokenizer(metadata).encode
    assert encode("the").tokens == ["<s>", "▁the"]
    assert encode("he").tokens == ["<s>", "▁", "he"]
    assert encode("the the", add_special_tokens=False).tokens == ["▁the", "▁the"]
    assert gguf_tokenizer(metadata).decode(encode("the the").ids) == "the the"


def test_an_encoder_engine_says_that_it_runs_no_language_model(written: Write) -> None:
    with pytest.raises(ModelLoadError, match="made for causal_lm"):
        EncoderEngine(written(_decoder()))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"scaling": "yarn"}, "scales its rotary positions by 'yarn'"),
        ({"cut": "someone-elses"}, "cuts text as 'someone-elses' does"),
        ({"tokenizer": "bert"}, "of the kind 'bert'"),
        ({"architecture": "mamba"}, "of architecture 'mamba'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(more: dict[str, str], message: str, written: Write) -> None:
    with pytest.raises(ModelLoadError, match=message):
        import_gguf(written(_decoder(), **more))


def test_a_tensor_that_nobody_knows_is_not_left_out_quietly(written: Write) -> None:
    path = written(_decoder())
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    with pytest.raises(ModelLoadError, match=r"blk\.1\.ffn_uq\.weight"):
        import_gguf(path)


def test_a_missing_tensor_is_an_error_when_the_model_is_loaded(written: Write) -> None:
    path = written(_decoder(num_hidden_layers=2))
    content = path.read_bytes()
    at = content.find(b"llama.block_count") + len(b"llama.block_count") + 4
    path.write_bytes(content[:at] + struct.pack("<I", 3) + content[at + 4 :])
    with pytest.raises(ModelLoadError, match="has no weights for"):
        load_model(find_source(path), "causal_lm")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 10, b"GGUF" + struct.pack("<IQQ", 99, 0, 0)])
def test_what_is_no_gguf_file_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="is not a whole GGUF file"):
        find_source(path)


def test_a_file_that_is_not_there_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is not a whole GGUF file"):
        find_source(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("count", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_absurd_lengths_are_refused_before_anything_is_taken(count: int, tmp_path: Path) -> None:
    path = tmp_path / "absurd.gguf"
    name = struct.pack("<Q", 1) + b"k"
    for kind in (6, 8):
        array = struct.pack("<IIQ", 9, kind, count)
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + array + bytes(64))
        with pytest.raises(ModelLoadError, match="does not fit"):
            read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, count) + bytes(64))
    with pytest.raises(ModelLoadError):
        read_gguf(path)


def test_a_tensor_beyond_the_end_of_the_file_is_refused(written: Write) -> None:
    path = written(_decoder())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelLoadError, match="ends at byte"):
        read_gguf(path)


_SMALL = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
_WHOLE = _SMALL + struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0) + bytes(64)


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.tuples(st.integers(4, len(_WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_anywhere_is_an_error_by_name_or_still_a_file(
    places: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(_WHOLE)
    for at, value in places:
        damaged[at] = value
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(damaged)
    try:
        for tensor in read_gguf(path).tensors.values():
            assert tensor.start + tensor.size_bytes <= len(damaged)
    except ModelLoadError:
        pass
