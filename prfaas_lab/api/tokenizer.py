"""Text to token ids and back, without torch: bytes for the shipped models, a model's own otherwise."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prfaas_lab.errors import LabError

if TYPE_CHECKING:
    import tokenizers

Message = tuple[str, str]
"""(role, text) of a chat."""


class Detokenizer(Protocol):
    """One output's tokens to text, as they come."""

    def put(self, token: int) -> str:
        """The text that is certain with this token; empty in the middle of a character."""
        ...

    def end(self) -> str:
        """What is left when no more tokens come."""
        ...


class Tokenizer(Protocol):
    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an output, unless a client wants more."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A prompt that ends where the assistant's answer begins. Raises ValueError."""
        ...

    def detokenizer(self) -> Detokenizer: ...


def plain_chat(messages: Iterable[Message]) -> str:
    """A chat as plain text, for a model that has no template of its own."""
    return "".join(f"{role}: {text}\n" for role, text in messages) + "assistant:"


class ByteTokenizer:
    """ByT5's 384 ids: pad, eos and unk, then the 256 bytes, then 125 sentinels. It needs no files.

    Nothing is added to a prompt. Specials have no text; a sentinel's is `<extra_id_N>`.
    """

    FIRST_BYTE, FIRST_SENTINEL = 3, 259
    eos_ids: tuple[int, ...] = (1,)

    def encode(self, text: str) -> list[int]:
        return [byte + self.FIRST_BYTE for byte in text.encode("utf-8", "replace")]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(plain_chat(messages))

    def detokenizer(self) -> Detokenizer:
        return _Bytes()


class _Bytes:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token: int) -> str:
        if token < ByteTokenizer.FIRST_BYTE:
            return ""
        if token < ByteTokenizer.FIRST_SENTINEL:
            return self._decoder.decode(bytes([token - ByteTokenizer.FIRST_BYTE]))
        return f"{self.end()}<extra_id_{token - ByteTokenizer.FIRST_SENTINEL}>"

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class PacedTokenizer(ByteTokenizer):
    """For engines that compute no tokens: a byte a prompt token, and a letter for whatever they emit, so
    that clients see every token come. None of them ends an output."""

    eos_ids: tuple[int, ...] = ()

    def detokenizer(self) -> Detokenizer:
        return _Letters()


class _Letters:
    def put(self, token: int) -> str:
        return chr(ord("a") + token % 26)

    def end(self) -> str:
        return ""


class FileTokenizer:
    """A model's own tokenizer (`tokenizer.json`), and its chat template if it has one."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise LabError(f"cannot read the tokenizer: {error}", where=str(folder)) from error
        self._config = _json(folder / "tokenizer_config.json")
        self._template = _template(folder, self._config)
        self.eos_ids: tuple[int, ...] = self._find_eos(folder)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text.encode("utf-8", "replace").decode()).ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            return self.encode(plain_chat(messages))
        text = self._template([{"role": role, "content": text} for role, text in messages])
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def detokenizer(self) -> Detokenizer:
        return _Pieces(self._tokenizer)

    def _find_eos(self, folder: Path) -> tuple[int, ...]:
        for file in ("generation_config.json", "config.json"):
            ids = _json(folder / file).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (int(ids),)
        token = self._config.get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        found = self._tokenizer.token_to_id(content) if content else None
        return () if found is None else (found,)


class _Pieces:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)

    def put(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""

    def end(self) -> str:
        return ""


def tokenizer_for(path: str | None, *, paced: bool = False) -> tuple[Tokenizer, str]:
    """The tokenizer of a model that is loaded from a path (None: a shipped one), and what it is in words.
    Paced engines have no model.

    Raises LabError when the model's own cannot be read.
    """
    if paced:
        return PacedTokenizer(), "letters that mean nothing (paced engines)"
    folder = _folder(path) if path is not None else None
    if folder is None:
        missing = "" if path is None else f", since {path} has no tokenizer.json"
        return ByteTokenizer(), f"bytes (ByT5's 384 ids{missing})"
    return FileTokenizer(folder), f"{folder / 'tokenizer.json'}"


def _folder(path: str) -> Path | None:
    """Where a model's tokenizer lies: in its folder, or in the local hub cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder if (folder / "tokenizer.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "tokenizer.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(f"is not JSON: {error}", where=str(file)) from error
    return found if isinstance(found, dict) else {}


def _template(folder: Path, config: dict[str, Any]) -> Callable[[list[dict[str, str]]], str] | None:
    """The chat template, in a sandbox: it comes with the weights, from whoever made them."""
    own = folder / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        return None
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(source)
    tokens = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")}

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True, **tokens)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses this chat: {error}") from error

    return render


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
