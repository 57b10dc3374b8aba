"""What clients may ask, as frozen values. Fields that nobody here knows are let through unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_PROMPTS = 64
_INT64 = 2**63


class Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Asked):
    include_usage: bool | None = None


def _stops(value: Any) -> Any:
    """One or several non-empty strings; nothing is none."""
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("is neither a string nor a list of strings")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"takes at most {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters")
    return tuple(stop for stop in stops if stop)


_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_STOP = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MAX_STOPS}, {"type": "null"}]}
_PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS,
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
        },
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}

Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> Any:
    """A text, a list of texts, a list of token ids, or a list of those: one prompt each."""
    if isinstance(value, list) and value and all(_is_id(item) for item in value):
        value = [value]
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list | tuple) or not prompts:
        raise ValueError("is neither text, nor a list of texts or of token ids")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts are too many at once (at most {MAX_PROMPTS})")
    return tuple(_prompt(prompt) for prompt in prompts)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple) and value and all(_is_id(item) for item in value):
        return tuple(value)
    raise ValueError("a prompt is text or a list of token ids, and not empty")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class Generate(Asked):
    """What completions and chats have in common."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(_STOP)] = ()
    stop_token_ids: tuple[int, ...] | None = Field(default=None, max_length=256)
    ignore_eos: bool | None = Field(default=None, description="go on after the end-of-text token")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, description="1")
    best_of: int | None = Field(default=None, description="1")
    logprobs: Any = Field(default=None, description="not supported")
    echo: bool | None = Field(default=None, description="not supported")
    suffix: str | None = Field(default=None, description="not supported")
    tools: Any = Field(default=None, description="not supported")
    response_format: Any = Field(default=None, description="text")
    frequency_penalty: float | None = Field(default=None, description="0")
    presence_penalty: float | None = Field(default=None, description="0")
    repetition_penalty: float | None = Field(default=None, description="1")
    top_k: int | None = Field(default=None, description="0 or -1: all")
    min_p: float | None = Field(default=None, description="0")
    min_tokens: int | None = Field(default=None, description="0")

    @model_validator(mode="after")
    def _only_what_is_honoured(self) -> Generate:
        """What would change the answer is refused, rather than passed over."""
        for name, neutral in _NEUTRAL.items():
            value = getattr(self, name)
            # 0 is not False: as `logprobs` it asks for those of the tokens that were chosen.
            kinds = [each for each in neutral if isinstance(each, bool) == isinstance(value, bool)]
            if value is not None and value not in kinds:
                raise ValueError(f"{name}={value!r} is not supported by this server")
        return self

    @property
    def output_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "echo": (False,), "suffix": ("",), "tools": ([],),
    "response_format": ({"type": "text"},), "frequency_penalty": (0,), "presence_penalty": (0,),
    "repetition_penalty": (1,), "top_k": (0, -1), "min_p": (0,), "min_tokens": (0,),
}  # fmt: skip


class CompletionRequest(Generate):
    """POST /v1/completions."""

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_prompts), WithJsonSchema(_PROMPT)]


class TextPart(Asked):
    type: Literal["text"]
    text: str


class ChatMessage(Asked):
    role: str = Field(min_length=1, max_length=64)
    content: str | tuple[TextPart, ...] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Generate):
    """POST /v1/chat/completions."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def output_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
