"""Text comes as its tokens come, whole at the end, and never past a stop string."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas_lab.api.output import Output, Piece
from prfaas_lab.api.tokenizer import ByteTokenizer, FileTokenizer, tokenizer_for
from prfaas_lab.errors import LabError

TOKENS = st.lists(st.integers(0, 383), min_size=1, max_size=40)
STOPS = st.lists(st.text("ab\u00e9", min_size=1, max_size=3), max_size=3)


def pieces(tokens: list[int], *, stop: list[str] = [], stop_ids: tuple[int, ...] = ()) -> list[Piece]:  # noqa: B006
    output = Output(ByteTokenizer().detokenizer(), output_tokens=len(tokens), stop_ids=stop_ids, stop=stop)
    taken = []
    for token in tokens:
        taken.append(output.take(token))
        if taken[-1].finish:
            break
    return taken


def text_of(taken: list[Piece]) -> str:
    return "".join(piece.text for piece in taken)


@given(st.text())
def test_text_goes_round(text: str) -> None:
    tokens = ByteTokenizer().encode(text)
    assert not tokens or text_of(pieces(tokens)) == text


@given(TOKENS)
def test_however_bytes_are_cut_the_text_is_that_of_the_whole(tokens: list[int]) -> None:
    whole, run = "", b""
    for token in [*tokens, 0]:
        if 3 <= token < 259:
            run += bytes([token - 3])
        elif token >= 259:
            whole, run = whole + run.decode("utf-8", "replace") + f"<extra_id_{token - 259}>", b""
    assert text_of(pieces(tokens)) == whole + run.decode("utf-8", "replace")


@given(st.text("abé", max_size=30), STOPS)
def test_nothing_is_shown_from_the_first_stop_string_on(text: str, stops: list[str]) -> None:
    tokens = ByteTokenizer().encode(text) or [3]
    text = text or "\x00"
    taken = pieces(tokens, stop=stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    if ends:
        shown = text_of(taken)
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
        assert taken[-1].finish == "stop"
    else:
        assert text_of(taken) == text
        assert taken[-1].finish == "length"


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    taken = pieces(ByteTokenizer().encode("abcabd"), stop=["abd"])
    assert [piece.text for piece in taken] == ["", "", "abc", "", "", ""]
    assert taken[-1].finish == "stop"


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=20))
def test_every_token_of_a_paced_engine_shows_as_a_letter(tokens: list[int]) -> None:
    tokenizer, _ = tokenizer_for(None, paced=True)
    stream = tokenizer.detokenizer()
    assert all(len(stream.put(token)) == 1 for token in tokens)
    assert tokenizer.eos_ids == ()


def test_a_stop_token_ends_the_output_without_text() -> None:
    taken = pieces([*ByteTokenizer().encode("hi"), 1, 70], stop_ids=(1,))
    assert [(piece.text, piece.finish) for piece in taken] == [("h", None), ("i", None), ("", "stop")]


def test_a_character_cut_off_by_the_length_shows_as_such() -> None:
    assert text_of(pieces(ByteTokenizer().encode("世")[:2])) == "\ufffd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["the quick brown fox"] * 3,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet),
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]"
    config = {"eos_token": {"content": "<end>"}, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_models_own_tokenizer_goes_round_and_knows_its_end(folder: Path) -> None:
    tokenizer, words = tokenizer_for(str(folder))
    assert "tokenizer.json" in words
    assert tokenizer.eos_ids == (0,)
    text = "the quick 世界 fox"
    stream = tokenizer.detokenizer()
    assert "".join(stream.put(token) for token in tokenizer.encode(text)) + stream.end() == text


def test_a_models_own_chat_template_is_used(folder: Path) -> None:
    tokenizer = FileTokenizer(folder)
    tokens = tokenizer.encode_chat([("user", "the fox")])
    assert tokens.count(0) == 1
    stream = tokenizer.detokenizer()
    assert "".join(map(stream.put, tokens)) == "[user]the fox[assistant]"


def test_a_template_that_reaches_outside_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="template refuses"):
        FileTokenizer(folder).encode_chat([("user", "hi")])


def test_a_broken_tokenizer_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LabError, match="cannot read the tokenizer"):
        tokenizer_for(str(tmp_path))


def test_a_model_without_a_tokenizer_speaks_bytes(tmp_path: Path) -> None:
    tokenizer, words = tokenizer_for(str(tmp_path))
    assert isinstance(tokenizer, ByteTokenizer)
    assert "has no tokenizer.json" in words
