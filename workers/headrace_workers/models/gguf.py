"""Models in GGUF, llama.cpp's format, as a folder like Hugging Face's: converted once, and kept in a cache.

Every weight becomes what the file's numbers stand for, in float32, or in float16 where that holds it exactly. So
everything else sees a plain model, whose quality is that of the file. Decoders of Llama's build are read: `llama`
(which Mistral and SmolLM are, too), `qwen2` and `qwen3`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelLoadError
from headrace_workers.artifacts.artifact import sha256_of
from headrace_workers.models.gguf_file import GgufFile, read_gguf
from headrace_workers.models.gguf_tokenizer import gguf_tokenizer, gguf_tokenizer_config

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_gguf", "is_gguf"]

_CONVERSION: Final = 1
"""Part of a cached folder's name: a conversion that gives something else has another number."""
_SHARD_BYTES: Final = 2 << 30
"""How much of a model is held in memory before it is written."""

_ARCHITECTURES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_NUMBERS: Final = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
}
_OUTER_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def is_gguf(path: str | Path) -> bool:
    """Whether a path is a GGUF file's. Whether there is one, and whole, `import_gguf` finds out."""
    return Path(path).suffix == ".gguf"


def import_gguf(path: str | Path) -> Path:
    """A folder with the model of a GGUF file: config.json, tokenizer.json, tokenizer_config.json and safetensors.

    It lies in ``$HEADRACE_CACHE/gguf`` (``~/.cache/headrace/gguf``) under the file's SHA-256, and is made if it is
    not there. It appears there whole or not at all.

    Raises:
        ModelLoadError: the file is broken, its architecture or tokenizer is not read, or there is no room for it.
    """
    file = read_gguf(path)
    folder = _cache() / f"{sha256_of(file.path)}-{_CONVERSION}"
    if folder.is_dir():
        return folder
    config = _config(file)
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        draft.mkdir(parents=True)
        _write(file, config, draft)
        _put(draft, folder)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be converted into {folder}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _cache() -> Path:
    root = os.environ.get("HEADRACE_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "headrace") / "gguf"


def _put(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same content
            raise


def _write(file: GgufFile, config: dict[str, Any], draft: Path) -> None:
    (draft / "config.json").write_text(json.dumps(config, indent=1))
    (draft / "tokenizer.json").write_text(gguf_tokenizer(file.metadata).to_str(), "utf-8")
    beside = gguf_tokenizer_config(file.metadata, config["max_position_embeddings"])
    (draft / "tokenizer_config.json").write_text(json.dumps(beside, indent=1))
    shards = _Shards(draft)
    for name, target in _names(file, config).items():
        shards.add(target, _exact(_in_order(file.values(name), name, config)))
    shards.close()


def _config(file: GgufFile) -> dict[str, Any]:
    """What `config.json` says, in transformers' words."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelLoadError(f"{file.path} is of architecture {architecture!r}; {', '.join(_ARCHITECTURES)} are read")
    if (scaling := file.metadata.get(f"{architecture}.rope.scaling.type", "none")) != "none":
        raise ModelLoadError(f"{file.path} scales its rotary positions by {scaling!r}, which is not read")
    numbers = {name: _number(file, f"{architecture}.{key}") for name, key in _NUMBERS.items()}
    heads = numbers["num_attention_heads"]
    head_size = file.metadata.get(f"{architecture}.attention.key_length", numbers["hidden_size"] // heads)
    return {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        **numbers,
        "num_key_value_heads": _number(file, f"{architecture}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "vocab_size": file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        "rms_norm_eps": file.metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": file.metadata.get(f"{architecture}.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "dtype": "float32",
        **{name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")},
    }


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ModelLoadError(f"{file.path} says {key} is {value!r}; it should be a number above 0")
    return value


def _names(file: GgufFile, config: dict[str, Any]) -> dict[str, str]:
    """Each tensor's name in the file and in transformers.

    Raises:
        ModelLoadError: a tensor is none of those that these architectures have. To leave it out would give a model
            that answers, and answers wrongly.
    """
    prefixes = dict(_OUTER_NAMES)
    for block in range(config["num_hidden_layers"]):
        for name, target in _BLOCK_NAMES.items():
            if f"blk.{block}.{name}.weight" in file.tensors:
                prefixes[f"blk.{block}.{name}"] = f"model.layers.{block}.{target}"
    found = {}
    for name in file.tensors:
        prefix, _, part = name.rpartition(".")
        if prefix not in prefixes or part not in ("weight", "bias"):
            raise ModelLoadError(f"{file.path} has a tensor {name!r}, which a {config['model_type']} has not")
        found[name] = f"{prefixes[prefix]}.{part}"
    return found


def _in_order(values: NDArray[np.float32], name: str, config: dict[str, Any]) -> NDArray[np.float32]:
    """Rows of queries and keys as transformers orders them.

    llama.cpp rotates neighbours, transformers the two halves of a head; so the converter of `llama` files moved rows.
    """
    heads = {".attn_q.": "num_attention_heads", ".attn_k.": "num_key_value_heads"}
    wanted = [count for part, count in heads.items() if part in name]
    if config["model_type"] != "llama" or not wanted:
        return values
    count = config[wanted[0]]
    if values.shape[0] % (2 * count):
        raise ModelLoadError(f"{name} has {values.shape[0]} rows, which are not {count} heads")
    return values.reshape(count, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _exact(values: NDArray[np.float32]) -> Tensor:
    """The values in the fewest bytes that hold them all."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(values))
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


class _Shards:
    """Writes a model's tensors, a file as soon as there is enough for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        self._waiting[name] = tensor
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _SHARD_BYTES:
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        if len(self._written) == 1:
            (self._folder / _shard(0)).rename(self._folder / "model.safetensors")
            return
        where = {name: _shard(at) for at, names in enumerate(self._written) for name in names}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))

    def _flush(self) -> None:
        from safetensors.torch import save_file

        path = self._folder / _shard(len(self._written))
        save_file(self._waiting, path, metadata={"format": "pt"})
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._written.append(list(self._waiting))
        self._waiting, self._bytes = {}, 0


def _shard(at: int) -> str:
    return f"model-{at + 1:05d}.safetensors"
