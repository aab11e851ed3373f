"""The tokenizer that a GGUF file describes, as the `tokenizers` library runs it.

A file names the vocabulary, the merges and, by a word, how text is cut before they are applied. A word that is not
known is refused, as llama.cpp refuses it: a tokenizer that cuts otherwise gives a model tokens it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import ModelLoadError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["gguf_tokenizer", "gguf_tokenizer_config"]

_CONTROL, _USER_DEFINED = 3, 4
"""GGUF's numbers for tokens that stand for no text, and for text that is never cut."""

_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: Final = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2}
"""What cuts a text before merges are applied, by `tokenizer.ggml.pre`."""
_DIGIT_BY_DIGIT: Final = ("smollm", "starcoder", "refact", "command-r")
_PLAIN: Final = ("gpt-2", "default")
_BOS_UNLESS_SAID: Final = ("llama-bpe", "llama3")

_SPECIAL: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def gguf_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer of a file's metadata: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`).

    Raises:
        ModelLoadError: it is of another kind, or its vocabulary is incomplete.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelLoadError("the GGUF file has no vocabulary (tokenizer.ggml.tokens)")
    if kind not in _BUILDERS:
        raise ModelLoadError(f"the GGUF file's tokenizer is of the kind {kind!r}; {', '.join(_BUILDERS)} are read")
    try:
        tokenizer = _BUILDERS[kind](metadata, tokens)
        _add_whole_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type") or [])
        _add_begin(tokenizer, metadata, tokens)
    except ModelLoadError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ModelLoadError(f"the GGUF file's tokenizer cannot be built: {error}") from None
    return tokenizer


def gguf_tokenizer_config(metadata: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """What Hugging Face keeps beside a tokenizer: special tokens, the chat template, the longest text in tokens."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config = {name: _token(metadata, tokens, key) for name, key in _SPECIAL.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
        **{name: token for name, token in config.items() if token is not None},
    }


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, processors

    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    cut = str(metadata.get("tokenizer.ggml.pre", "default"))
    model = models.BPE(vocab=_ids(tokens), merges=merges, ignore_merges=cut in _BOS_UNLESS_SAID)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _cutter(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _cutter(cut: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut not in _SPLITS)
    if cut in _PLAIN:
        return words
    if cut in _DIGIT_BY_DIGIT:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if cut in _SPLITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLITS[cut]), behavior="isolated"), words])
    known = ", ".join([*_PLAIN, *_DIGIT_BY_DIGIT, *_SPLITS])
    raise ModelLoadError(f"the GGUF file's tokenizer cuts text as {cut!r} does; {known} are known")


def _sentence_piece(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ModelLoadError(f"the GGUF file has {len(scores)} scores for {len(tokens)} tokens")
    model = models.BPE(
        vocab=_ids(tokens),
        merges=_merges(tokens, scores),
        unk_token=_token(metadata, tokens, "unknown_token_id"),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefixed else "never", split=False)
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(joined + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece stores none: whatever two pieces make a third may be merged, the best third first."""
    ids = _ids(tokens)
    found = [
        (-score, ids[token[:at]], ids[token[at:]], (token[:at], token[at:]))
        for token, score in zip(tokens, scores, strict=True)
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    return [pair for *_, pair in sorted(found)]


_BUILDERS: Final = {"gpt2": _byte_level, "llama": _sentence_piece}


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: at for at, token in enumerate(tokens)}


def _token(metadata: dict[str, Any], tokens: list[str], key: str) -> str | None:
    at = metadata.get(f"tokenizer.ggml.{key}")
    if at is None:
        return None
    if not isinstance(at, int) or not 0 <= at < len(tokens):
        raise ModelLoadError(f"the GGUF file's {key} is {at!r}, and its vocabulary has {len(tokens)} tokens")
    return tokens[at]


def _add_whole_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Tokens that merges must not cut."""
    from tokenizers import AddedToken

    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [token for token, kind in zip(tokens, kinds, strict=False) if kind == wanted]
        added = [AddedToken(token, normalized=False, special=special) for token in chosen]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _add_begin(tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str]) -> None:
    """Put the beginning token before every text, where the model wants it."""
    from tokenizers import processors

    sentence_piece = metadata["tokenizer.ggml.model"] == "llama"
    default = sentence_piece or metadata.get("tokenizer.ggml.pre") in _BOS_UNLESS_SAID
    begin = _token(metadata, tokens, "bos_token_id")
    if begin is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    ids = [(begin, tokens.index(begin))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", f"{begin} $A {begin} $B", ids)
