"""Loading language models: which runner takes them, in what precision, and what is said of those that none takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.errors import ModelLoadError
from headrace_workers import node
from headrace_workers.generation.loading import kv_pages, load_decoder
from headrace_workers.generation.runner import RunnerInfo
from headrace_workers.generation.runner_check import greedy, is_exact, probes_of
from headrace_workers.kernels.library import support
from headrace_workers.models.source import find_source
from headrace_workers.models.tokenizer import load_tokenizer

TinyModel = Callable[..., Path]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2}
GROUPED: dict[str, Any] = {**SPECIAL, "num_key_value_heads": 1}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


def test_a_model_is_loaded_and_says_what_runs_it(tiny_model: TinyModel) -> None:
    """A Llama goes to the native runner wherever that is; the other one is for everything else."""
    runner, details = load_decoder(find_source(tiny_model("Llama", "ForCausalLM", **GROUPED)))
    assert details["precision"] == "int8"
    assert details["runner"] == ("native" if support().isas else "torch")
    assert details["quantized"]["bytes_after"] < details["quantized"]["bytes_before"] / 3
    assert runner.info.exact
    runner.allocate(kv_pages(runner.info, None, slots=4))
    prompt = np.array([5, 6, 7], np.int32)
    assert greedy(runner, prompt, 5) == greedy(runner, prompt, 5)


@pytest.mark.skipif(not support().isas, reason="the promise is the native kernels'")
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(("make", "head"), [("GPT2", "LMHeadModel"), ("OPT", "ForCausalLM")])
def test_another_architecture_answers_alike_in_any_company(
    make: str, head: str, precision: Any, tiny_model: TinyModel
) -> None:
    """To the last bit, since it computes in int8 or adds in one order: a seeded job goes on elsewhere as it began."""
    folder = tiny_model(make, head, **SPECIAL, ffn_dim=128, word_embed_proj_dim=64)
    runner, details = load_decoder(find_source(folder), precision=precision)
    assert details["runner"] == "torch"
    assert "is not one of" in details["not_native_because"]
    assert runner.info.exact
    assert is_exact(runner, probes_of(1200, runner.info.max_positions))
    assert any("affine4" in shape for shape in details["kernels"]) == (precision == "int4")
    assert "fp32" not in {choice["kernel"] for choice in details["kernels"].values()}


def test_full_precision_stays_with_torch(tiny_model: TinyModel) -> None:
    """And is the same model: nothing is quantized."""
    _, details = load_decoder(find_source(tiny_model("Llama", "ForCausalLM", **GROUPED)), precision="fp32")
    assert details["runner"] == "torch"
    assert "fp32" in details["not_native_because"]
    assert "quantized" not in details


def test_a_context_can_be_shorter_than_the_models_but_not_longer(tiny_model: TinyModel) -> None:
    """130 positions is what the tiny one has."""
    source = find_source(tiny_model("Llama", "ForCausalLM", **GROUPED))
    for asked, given in ((1, 1), (40, 40), (4000, 130), (None, 130)):
        assert load_decoder(source, max_tokens=asked)[0].info.max_positions == given


def test_a_model_in_several_files_is_one_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Sharded safetensors, as large models come; and one with a file missing is named."""
    import transformers

    folder = tiny_model("GPT2", "LMHeadModel", **SPECIAL)
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    prompt = np.array([5, 6, 7], np.int32)
    one, several = (load_decoder(find_source(at), precision="fp32")[0] for at in (folder, tmp_path))
    assert greedy(one, prompt, 8) == greedy(several, prompt, 8)
    shards[0].unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_decoder(find_source(tmp_path))


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_model_with_broken_weights_is_refused(precision: Any, tiny_model: TinyModel) -> None:
    """Rounded to int8, NaN would look like any other weight."""
    folder = tiny_model("Llama", "ForCausalLM", **GROUPED)
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.up_proj.weight holds NaN"):
        load_decoder(find_source(folder), precision=precision)


def test_a_model_that_no_runner_takes_is_refused_by_name(tiny_model: TinyModel) -> None:
    """Bloom tells nobody's positions but its own."""
    folder = tiny_model("Bloom", "ForCausalLM", **SPECIAL)
    with pytest.raises(ModelLoadError, match=r"BloomForCausalLM cannot be run in steps: .* positions"):
        load_decoder(find_source(folder), max_tokens=50)


def test_an_encoder_is_no_decoder(minilm: Path) -> None:
    """Its files have no head that says next tokens."""
    with pytest.raises(ModelLoadError):
        load_decoder(find_source(minilm))


def test_a_precision_that_would_be_emulated_is_refused(tiny_model: TinyModel) -> None:
    """Before anything is loaded."""
    source = find_source(tiny_model("Llama", "ForCausalLM", **GROUPED))
    with pytest.raises(ModelLoadError, match="fp16 is for GPUs"):
        load_decoder(source, precision="fp16")
    if not torch.cuda.is_available():
        with pytest.raises(ModelLoadError, match="no GPU"):
            load_decoder(source, device="cuda")


def test_a_real_model_speaks(smollm2: Path) -> None:
    """SmolLM2 in int8."""
    source = find_source(smollm2)
    runner, details = load_decoder(source, max_tokens=256)
    assert details["precision"] == "int8"
    prompt = load_tokenizer(source, 256)(["The capital of France is"])[0].ids.astype(np.int32)
    said, _ = greedy(runner, prompt, 6)
    import tokenizers

    assert "Paris" in tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json")).decode(said)


# -- memory ---------------------------------------------------------------------------------------------

INFO = RunnerInfo(vocabulary=10, max_positions=100, page_bytes=1000, device="cpu", exact=True, details={})


def test_pages_fill_what_they_are_given() -> None:
    """A bound is in bytes; a sequence of 100 tokens takes four pages."""
    assert kv_pages(INFO, 4000, slots=32) == 4
    assert kv_pages(INFO, 12_999, slots=1) == 12


def test_unless_told_there_are_pages_for_every_slot() -> None:
    """Of short sequences; of long ones a quarter of memory."""
    assert kv_pages(INFO, None, slots=8) == 32
    many = kv_pages(INFO, None, slots=1 << 40)
    assert 0.1 < many * INFO.page_bytes / node.available_memory_bytes() < 0.5


def test_a_bound_below_one_sequence_is_an_error_that_says_what_would_do() -> None:
    """Neither a hang nor an out-of-memory later on."""
    with pytest.raises(ModelLoadError, match=r"4,000 bytes, and 3,999 are allowed: .* max_tokens to 96 or less"):
        kv_pages(INFO, 3999, slots=1)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {}, 8 << 30),
        ("0::/pod", {"pod/memory.max": "max", "pod/memory.current": "5", "pod/memory.stat": "anon 5"}, 8 << 30),
        (
            "0::/pod/a",
            {"pod/memory.max": "1000", "pod/memory.current": "700", "pod/memory.stat": "anon 500\ninactive_file 100"},
            400,
        ),
        (
            "4:memory:/x\n0::/",
            {
                "memory/x/memory.limit_in_bytes": "900",
                "memory/x/memory.usage_in_bytes": "950",
                "memory/x/memory.stat": "",
            },
            0,
        ),
    ],
)
def test_memory_is_what_the_cgroups_leave(cgroup: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    """Version 2 and 1, the tightest of those around; a container is told nothing by the system's own figure."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {8 << 20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert node.available_memory_bytes(tmp_path) == expected


@on_gpu
@pytest.mark.parametrize("precision", ["int8", "int4", "fp32", "bf16", "fp16"])
def test_on_a_gpu_it_answers_as_on_the_cpu(precision: Any, tiny_model: TinyModel) -> None:
    """Loading compares them, and fails where they differ."""
    source = find_source(tiny_model("GPT2", "LMHeadModel", **SPECIAL))
    runner, details = load_decoder(source, precision=precision, device="cuda")
    assert runner.info.device == "cuda"
    assert details["distance_to_fp32"] < 0.05
