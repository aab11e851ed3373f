"""What a producer says, as the tokens that the model reads: a prompt as it is, or messages in the model's chat form.

The chat form is the model's own: a Jinja template that came with it, and therefore not ours to trust. transformers
renders it in Jinja's immutable sandbox, sees to it that templates are given plain data only, and encodes control tokens
which a user writes in a message (`<|im_end|>`) as the text they are, so that nobody speaks in another's role.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any, Final, NamedTuple

from headrace.errors import FailureCode, ModelLoadError
from headrace_workers.engines.base import ItemError
from headrace_workers.generation.params import DEFAULT_MAX_TOKENS, GenerationParams
from headrace_workers.models.source import ModelSource
from headrace_workers.models.tokenizer import serialized_tokenizer

__all__ = ["Prompt", "PromptReader", "end_tokens"]

_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles that messages may have, and what templates call them."""
_MOST_MESSAGES: Final = 1024
_LONGEST_REASON: Final = 200
_TURN_ENDS: Final = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}
)
"""What ends an answer in the chat forms of well-known families, whatever a model's files say (as llama.cpp has it)."""


class Prompt(NamedTuple):
    """What the model reads, and how much it may write."""

    tokens: list[int]
    """At least one."""
    max_tokens: int
    """At least one; with `tokens` it fits the context."""


class PromptReader:
    """Reads the inputs of jobs. May be used from any thread.

    Args:
        source: the model's files.
        max_positions: the model's context in tokens, of prompt and answer together.

    Raises:
        ModelLoadError: the model has no tokenizer that can be run.
    """

    def __init__(self, source: ModelSource, max_positions: int) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        self.max_positions = max_positions
        settings = source.read_map("tokenizer_config.json")
        serialized = serialized_tokenizer(source).decode()
        self.tokenizer = Tokenizer.from_str(serialized)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        special = {name: _content(settings.get(name)) for name in _SPECIAL}
        self._template = _chat_template(source, settings)
        self._rendering: dict[str, Any] = {"chat_template": self._template, "add_generation_prompt": True}
        self._begin = self.tokenizer.token_to_id(special["bos_token"]) if special["bos_token"] else None
        self._chat = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(serialized),
            **{name: token for name, token in special.items() if token is not None},
        )
        added = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]
        self._added = re.compile("|".join(re.escape(token) for token in added) or "(?!)")
        self._one_chat = threading.Lock()  # encoding control tokens as text switches the tokenizer over and back

    def read(self, value: Any, params: GenerationParams) -> Prompt:
        """The tokens of a job's input, and how many may follow them.

        Args:
            value: a prompt, a list of messages, or a map with one of them as `prompt` or `messages`.
            params: the job's `max_tokens` and `truncate`.

        Raises:
            ItemError: it is empty, of the wrong type or not what the chat template takes (`INVALID_INPUT`), too long
                (`INPUT_TOO_LONG`), or `max_tokens` is more than the context (`INVALID_PARAMS`).
        """
        self._check_max_tokens(params)
        kind, content = _kind_and_content(value)
        tokens = self._prompt_tokens(content) if kind == "prompt" else self._chat_tokens(content)
        if not tokens:
            raise _invalid("the prompt is empty", hint="submit at least one word")
        return self._fitted(tokens, params)

    def _check_max_tokens(self, params: GenerationParams) -> None:
        if params.max_tokens is not None and params.max_tokens >= self.max_positions:
            raise ItemError(
                FailureCode.INVALID_PARAMS,
                f"parameter 'max_tokens' is {params.max_tokens:,}; the model's context has {self.max_positions:,} "
                "tokens, prompt included",
                hint=f"ask for fewer than {self.max_positions:,}",
            )

    def _prompt_tokens(self, text: Any) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(_checked_text(text, "the prompt")).ids
        return tokens

    def _chat_tokens(self, messages: Any) -> list[int]:
        if self._template is None:
            raise _invalid("the model has no chat template, so it takes no messages", hint="submit a prompt")
        plain = _checked_messages(messages)
        try:
            if any(self._added.search(message["content"]) for message in plain):
                return self._sanitized(plain)
            return self._encoded(self._chat.apply_chat_template(plain, **self._rendering, tokenize=False))
        except Exception as error:  # whatever a template can raise
            reason = str(error)[:_LONGEST_REASON]
            raise _invalid(f"the model's chat template refuses the messages: {reason}") from None

    def _encoded(self, chat: str) -> list[int]:
        """A chat whose control tokens are all the template's, four times as fast as `_sanitized`."""
        tokens: list[int] = self.tokenizer.encode(chat, add_special_tokens=False).ids
        return tokens

    def _sanitized(self, messages: list[dict[str, str]]) -> list[int]:
        """Messages in which a user wrote what looks like control tokens."""
        with self._one_chat:
            tokens: list[int] = self._chat.apply_chat_template(
                messages, **self._rendering, sanitize_control_tokens=True, return_dict=False
            )
        return tokens

    def _fitted(self, tokens: list[int], params: GenerationParams) -> Prompt:
        room = self.max_positions - (params.max_tokens or 1)
        if len(tokens) > room:
            if not params.truncate:
                raise _too_long(len(tokens), room, params.max_tokens, self.max_positions)
            tokens = self._cut(tokens, room)
        return Prompt(tokens, params.max_tokens or min(DEFAULT_MAX_TOKENS, self.max_positions - len(tokens)))

    def _cut(self, tokens: list[int], room: int) -> list[int]:
        """The end of a prompt, which is what the answer follows; the token that every prompt begins with stays."""
        if room > 1 and tokens[0] == self._begin:
            return tokens[:1] + tokens[1 - room :]
        return tokens[-room:]


def end_tokens(source: ModelSource) -> frozenset[int]:
    """The tokens that end an answer: what the model's files name, and the ends of turns in its vocabulary."""
    found = [source.read_map(name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    ids = {id for ids in found for id in (ids if isinstance(ids, list) else [ids]) if isinstance(id, int)}
    names = _TURN_ENDS | {_content(source.read_map("tokenizer_config.json").get("eos_token"))}
    added = json.loads(serialized_tokenizer(source)).get("added_tokens", [])
    return frozenset(ids | {token["id"] for token in added if token["special"] and token["content"] in names})


def _content(token: Any) -> str | None:
    """A token in tokenizer_config.json is its text, or a map with it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _chat_template(source: ModelSource, settings: dict[str, Any]) -> str | None:
    """A file of its own, as transformers 5 writes it, or a setting: one template, or several by name."""
    path = source.folder / "chat_template.jinja"
    template = path.read_text("utf-8") if path.is_file() else settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise ModelLoadError(f"{source.name}: the chat template is {type(template).__name__}, not text")
    return template


def _kind_and_content(value: Any) -> tuple[str, Any]:
    if isinstance(value, str):
        return "prompt", value
    if isinstance(value, list):
        return "messages", value
    if isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in ("prompt", "messages"):
        return kind, value[kind]
    raise _invalid("the input is neither a prompt nor messages", hint='submit text, or {"messages": [...]}')


def _checked_text(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise _invalid(f"{what} is not text", hint="submit a string")
    if not text:
        raise _invalid(f"{what} is empty", hint="submit at least one word")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _invalid(f"{what} holds half a surrogate pair: not Unicode") from None
    return text


def _checked_messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages should be a list of at least one", hint='[{"role": "user", "content": "..."}]')
    if len(messages) > _MOST_MESSAGES:
        raise _invalid(f"there are {len(messages):,} messages; {_MOST_MESSAGES:,} are allowed")
    return [_checked_message(message, at) for at, message in enumerate(messages)]


def _checked_message(message: Any, at: int) -> dict[str, str]:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise _invalid(f"message {at} is not a map of role and content", hint='{"role": "user", "content": "..."}')
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        named = f"{role[:40]!r}" if isinstance(role, str) else f"of type {type(role).__name__}"
        raise _invalid(f"the role of message {at} is {named}", hint=f"known roles: {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _joined(message["content"], f"the content of message {at}")}


def _joined(content: Any, what: str) -> str:
    """A message's text: a string, or parts that are all text."""
    if not isinstance(content, list):
        return _checked_text(content, what)
    if not all(isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text" for part in content):
        raise _invalid(f"{what} has a part that is not text", hint='{"type": "text", "text": "..."}')
    return _checked_text("".join(_checked_text(part["text"], f"a part of {what}") for part in content), what)


def _invalid(message: str, hint: str = "") -> ItemError:
    return ItemError(FailureCode.INVALID_INPUT, message, hint=hint)


def _too_long(tokens: int, room: int, max_tokens: int | None, max_positions: int) -> ItemError:
    asked = f" less {max_tokens:,} for the answer" if max_tokens else " less one for the answer"
    return ItemError(
        FailureCode.INPUT_TOO_LONG,
        f"the prompt has {tokens:,} tokens; the model's context has {max_positions:,},{asked} leave {room:,}",
        hint='shorten it, ask for fewer max_tokens, or submit it with params={"truncate": true} to lose its beginning',
    )
