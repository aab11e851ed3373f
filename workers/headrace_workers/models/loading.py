"""Loading: from a model's files to a torch module that answers like the model, compressed or not.

transformers is imported here and nowhere at module level: it takes seconds, and engines without it should not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from headrace.errors import ArtifactError, ModelLoadError
from headrace_workers.artifacts.artifact import Task
from headrace_workers.kernels.layers import QuantizedEmbedding, QuantizedLinear
from headrace_workers.models.filling import fill
from headrace_workers.models.source import ModelSource
from headrace_workers.models.structure import apply_structure
from headrace_workers.telemetry.cold_start import phase

__all__ = ["LoadedModel", "load_model", "max_tokens_of", "quiet_transformers"]

_CLASS_OF_TASK: Final[dict[Task, str]] = {
    "embedding": "AutoModel",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "causal_lm": "AutoModelForCausalLM",
}
_CPU: Final = torch.device("cpu")
_ABSURD_TOKENS: Final = 1 << 20
"""transformers writes "no limit" as a number with thirty digits."""


@dataclass
class LoadedModel:
    """A model in memory."""

    module: nn.Module
    """Float32, or compressed with its `QuantizedLinear`s not yet prepared."""
    config: Any
    """Hugging Face's."""
    task: Task
    device: torch.device = _CPU

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it, in another precision where it is not quantized."""
        self.module.to(device, dtype)
        self.device = device

    @property
    def encoder(self) -> nn.Module:
        """The part that turns tokens into hidden states: all of it but the head."""
        return self.module if self.task == "embedding" else self.module.base_model  # type: ignore[return-value]

    @property
    def first_position(self) -> int:
        """The position id of a text's first token. RoBERTa and its kin count from behind their padding id."""
        for name, module in self.encoder.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return 0 if module.padding_idx is None else module.padding_idx + 1
        return 0

    @property
    def takes_positions(self) -> bool:
        """Whether the encoder can be told where in its text each token stands."""
        return "position_ids" in inspect.signature(self.encoder.forward).parameters

    @property
    def compressed(self) -> bool:
        """Whether it holds quantized weights."""
        return any(isinstance(module, (QuantizedLinear, QuantizedEmbedding)) for module in self.module.modules())


def load_model(source: ModelSource, task: Task, *, variant: str | None = None) -> LoadedModel:
    """Load a model for a task: an artifact's variant, its first if none is named, or a plain model in float32.

    Raises:
        ModelLoadError: it is no model that transformers knows, has no weights for the task, or only pickled ones.
        ArtifactError: the artifact's variant does not fit its configuration.
    """
    with phase("import"):
        _import_transformers()
    with quiet_transformers():
        config, kind = _config_and_class(source, task)
        module = (
            _plain(source, config, kind) if source.artifact is None else _from_variant(source, config, kind, variant)
        )
    if task == "embedding" and isinstance(getattr(module, "pooler", None), nn.Module):
        module._modules["pooler"] = None  # it feeds no sentence-transformers pooling
    return LoadedModel(module.eval().requires_grad_(False), config, task)


def _import_transformers() -> None:
    """All that its models have in common, torch's compiler included: twice as much as any model's own module."""
    import transformers.activations
    import transformers.modeling_layers
    import transformers.modeling_utils  # noqa: F401


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Progress bars and advice off: what matters of it becomes an error of ours."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _config_and_class(source: ModelSource, task: Task) -> tuple[Any, Any]:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            str(source.folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds for a config it does not like
        raise ModelLoadError(f"{source.name} has no configuration that transformers knows: {error}") from error
    return config, getattr(transformers, _CLASS_OF_TASK[task])


def _plain(source: ModelSource, config: Any, kind: Any) -> nn.Module:
    try:
        module, report = kind.from_pretrained(
            str(source.folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # as above
        hint = "" if list(source.folder.glob("*.safetensors")) else " (its weights must be safetensors, not pickles)"
        raise ModelLoadError(f"{source.name} cannot be loaded{hint}: {error}") from error
    _check_complete(source, set(report["missing_keys"]))
    loaded: nn.Module = module
    return loaded


def _check_complete(source: ModelSource, missing: set[str]) -> None:
    """A head without weights would be filled with random numbers and answer as if nothing were wrong."""
    lacking = sorted(name for name in missing if not name.startswith("pooler."))
    if lacking:
        raise ModelLoadError(
            f"{source.name} has no weights for {lacking[0]} and {len(lacking) - 1} more: another task?"
        )


def _from_variant(source: ModelSource, config: Any, kind: Any, name: str | None) -> nn.Module:
    from transformers.initialization import no_init_weights

    assert source.artifact is not None
    variant = source.artifact.variant(name)
    tensors = source.artifact.tensors(variant)
    try:
        # Not on the meta device: buffers that no file holds would be lost. Memory that is never written costs nothing.
        with no_init_weights():
            module: nn.Module = kind.from_config(config)
        module.tie_weights()  # type: ignore[operator]  # which it does only while it draws weights
        apply_structure(module, variant.structure, tensors)
        left = fill(module, variant, tensors)
    except (KeyError, AttributeError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{source.name}: variant {variant.name} does not fit config.json: {error}") from error
    _check_complete(source, left.missing)
    if left.unexpected:
        raise ArtifactError(f"{source.name}: variant {variant.name} has {left.unexpected[0]}, config.json has not")
    return module


def max_tokens_of(source: ModelSource, model: LoadedModel) -> int:
    """The longest text the model can take, in tokens: the least of what its files and its architecture say.

    Raises:
        ModelLoadError: none of them says anything.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [
        source.read_map("sentence_bert_config.json").get("max_seq_length"),
        source.read_map("tokenizer_config.json").get("model_max_length"),
        positions - model.first_position if isinstance(positions, int) else None,
    ]
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < _ABSURD_TOKENS]
    if not known:
        raise ModelLoadError(f"{source.name} says nowhere how many tokens it can take; set max_tokens")
    return min(known)
