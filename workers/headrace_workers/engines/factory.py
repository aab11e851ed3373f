"""The one place that turns a configuration into an engine.

Nothing heavy is imported here: the configuration is read by processes that never run a model.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace_workers.engines.base import Engine
from headrace_workers.telemetry.cold_start import phase

__all__ = ["EngineConfig", "make_engine"]

_KEYS: Final = {
    "echo": frozenset[str](),
    "custom": frozenset({"target", "options", "slots"}),
    "encoder": frozenset(
        {
            "model",
            "task",
            "precision",
            "variant",
            "max_tokens",
            "max_tokens_per_pass",
            "overlong",
            "kernels",
        }
    ),
    "decoder": frozenset(
        {
            "model",
            "precision",
            "variant",
            "max_tokens",
            "overlong",
            "kernels",
            "slots",
            "kv_cache_bytes",
            "prefill_rows",
            "prefix_cache",
            "draft",
        }
    ),
}
"""Which keys belong to which kind, besides `kind`."""


class EngineConfig(BaseModel):
    """Which engine, on what. `model_config` refuses unknown keys, and a key of another kind is refused by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    kind: Literal["encoder", "decoder", "echo", "custom"] = "encoder"
    """`encoder`: a Hugging Face encoder. `decoder`: a language model that generates. `custom`: a class of the user's.
    `echo`: answers with its input."""

    model: Annotated[str, Field(max_length=4096)] = ""
    """encoder, decoder: an artifact's directory, a Hugging Face folder, or a hub id; decoder: a GGUF file, too."""
    task: Literal["embedding", "sequence_classification", "token_classification"] | None = None
    """encoder: what to use the model for; None: what its files say."""
    precision: Literal["int8", "int4", "fp32", "bf16", "fp16"] = "int8"
    """encoder, decoder: what to compute in. A plain model is quantized as it is loaded. fp16 is for GPUs, which use it
    for int8 weights, too; int4 is the weights' alone, and a decoder's."""
    variant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] | None = None
    """encoder, decoder: which variant of an artifact. Unset, the first that is made for the node."""
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """encoder: the longest text; decoder: the longest prompt and its answer together; None: as long as the model can
    take."""
    max_tokens_per_pass: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """encoder: tokens that go through the model together; None: a good number for the caches."""
    overlong: Literal["error", "truncate"] = "error"
    """encoder, decoder: what happens to longer texts, unless their job says otherwise."""
    kernels: Literal["measured", "int8", "fp32"] = "measured"
    """encoder, decoder: choose kernels by measuring at load, or take these without."""

    slots: Annotated[int, Field(ge=1, le=1024)] = 32
    """decoder: jobs that generate together in one replica. custom: the same, for a class that generates; a class that
    answers whole batches has none."""
    kv_cache_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 46)] | None = None
    """decoder: memory for keys and values at most; None: what the slots may need, a quarter of memory at most."""
    prefill_rows: Annotated[int, Field(ge=1, le=1 << 16)] = 112
    """decoder: tokens of one step at most: longer prompts go through in pieces, beside the others' next tokens."""
    prefix_cache: bool = True
    """decoder: compute prompts that begin alike once."""
    draft: Annotated[str, Field(max_length=4096)] = ""
    """decoder: a smaller model of the same vocabulary that proposes tokens, used where that measured faster."""

    target: Annotated[str, Field(max_length=512)] = ""
    """custom: the class, as `package.module:ClassName`."""
    options: dict[str, Any] = {}
    """custom: its keyword arguments."""

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Self:
        strangers = self.model_fields_set - _KEYS[self.kind] - {"kind"}
        if strangers:
            raise ValueError(f"an engine of kind {self.kind} has no {', '.join(sorted(strangers))}")
        for kind, needed in (("encoder", "model"), ("decoder", "model"), ("custom", "target")):
            if self.kind == kind and not getattr(self, needed):
                raise ValueError(f"an engine of kind {kind} needs {needed}")
        if self.kind == "encoder" and self.precision == "int4":
            raise ValueError("an engine of kind encoder has no precision int4; take int8, or a decoder")
        return self

    @property
    def generates(self) -> bool:
        """Whether jobs run step by step, in slots, and end one by one."""
        return self.kind == "decoder" or (self.kind == "custom" and "slots" in self.model_fields_set)


def make_engine(config: EngineConfig, *, device: Literal["cpu", "cuda"] = "cpu") -> Engine:
    """The engine that the configuration asks for, in a process that `node.prepare_process` has set up.

    Args:
        config: which engine.
        device: where its model runs; an engine of the user's own finds its device itself.

    Raises:
        ModelLoadError: the model or class cannot be loaded, or does not do what is asked of it.
        ArtifactError: the artifact is broken.
    """
    if config.kind == "echo":
        from headrace_workers.engines.echo import EchoEngine

        return EchoEngine()
    if config.kind == "custom":
        from headrace_workers.engines.custom import load_engine

        return load_engine(config.target, config.options, generates=config.generates)
    if config.kind == "decoder":
        return _decoder(config, device)
    precision = config.precision
    assert precision != "int4", "the configuration has seen to that"
    with phase("import"):
        from headrace_workers.engines.encoder import EncoderEngine

    return EncoderEngine(
        config.model,
        task=config.task,
        precision=precision,
        variant=config.variant,
        max_tokens=config.max_tokens,
        max_tokens_per_pass=config.max_tokens_per_pass,
        overlong=config.overlong,
        kernels=config.kernels,
        device=device,
    )


def _decoder(config: EngineConfig, device: Literal["cpu", "cuda"]) -> Engine:
    with phase("import"):
        from headrace_workers.engines.decoder import DecoderEngine

    return DecoderEngine(
        config.model,
        precision=config.precision,
        variant=config.variant,
        max_tokens=config.max_tokens,
        slots=config.slots,
        kv_cache_bytes=config.kv_cache_bytes,
        prefill_rows=config.prefill_rows,
        prefix_cache=config.prefix_cache,
        overlong=config.overlong,
        kernels=config.kernels,
        draft=config.draft,
        device=device,
    )
