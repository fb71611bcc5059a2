"""Whatever the data hold, nothing reserved is read in them, for every kind of tokenizer.

`pytest tests/test_frontend.py --hypothesis-profile nightly` tries 5,300 texts for each of
nineteen, 100,700 in all.
"""

import unicodedata

import pytest
import tokenizer_kinds as kinds
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from secalign_kit import evaluation, logprobs, models, prompts
from secalign_kit.chat_format import chat_format
from secalign_kit.pairs import pairs_dataset
from secalign_kit.prompts import FORMATS, encode, filter_data
from secalign_kit.samples import Sample

INSTRUCTION = "Count the words."
INVISIBLE = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u2066", "\u00ad", "\x00", "\x1b"]


def nfkc():
    """Like Qwen's tokenizer, but it writes compatibility forms as plain ones."""
    return kinds.byte_level(kinds.IM, kinds.THINK, normalizers.NFKC(), eos_token="<|im_end|>",
                            pad_token="<|endoftext|>", chat_template=kinds.CHATML)


def embedded():
    return models._tokenizer(models.PRESETS["toy"].path)


MADE = {**kinds.FAMILIES, "nfkc": nfkc}
FRONT_ENDS = {name: (tokenizer, chat_format(tokenizer))
              for name, tokenizer in ((name, make()) for name, make in MADE.items())}
FRONT_ENDS["embedded"] = embedded(), FORMATS["toy"]


def wide(text: str) -> str:
    """The text in full-width forms, which NFKC turns back."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def pieces(name: str) -> list[str]:
    """Reserved strings, their parts, variants of case and form, and characters nobody sees."""
    tokenizer, form = FRONT_ENDS[name]
    reserved = [*form.reserved, *tokenizer.get_added_vocab(), *filter(None, form.delimiters)]
    parts = [part for r in reserved for part in (
        r, r[: len(r) // 2], r[len(r) // 2 :], r[:1], r.upper(), r.title(), wide(r),
        r[: len(r) // 2] + r + r[len(r) // 2 :], unicodedata.normalize("NFD", r))]
    hidden = [r[:2] + mark + r[2:] for r in reserved for mark in INVISIBLE]
    return [*parts, *hidden, *INVISIBLE, "\n", " ", "\r\n", "red owl"]


def data(name: str):
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.lists(st.sampled_from(pieces(name)) | texts, max_size=10).map("".join)


def front_end(name: str):
    """Asserts the promise for one text, by another way than the front-end's own audit."""
    tokenizer, form = FRONT_ENDS[name]
    reserved = {i for text, i in tokenizer.get_added_vocab().items() if text.strip()}
    reserved -= {tokenizer.unk_token_id}
    plain = encode(tokenizer, form, INSTRUCTION, "owl")
    head = plain.ids[: plain.roles.index("data")]

    def holds(text: str) -> None:
        filtered = filter_data(text, form)
        assert filter_data(filtered, form) == filtered
        try:
            found = encode(tokenizer, form, INSTRUCTION, text)
        except ValueError as error:  # another spelling of something reserved
            assert "remove these data" in str(error)
            return
        assert not reserved & {i for i, r in zip(found.ids, found.roles, strict=True)
                               if r == "data"}
        if "data" in found.roles:
            assert found.ids[: found.roles.index("data")][: len(head) - 1] == head[:-1]

    return holds


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_nothing_reserved_is_ever_read_in_data(name):
    holds = front_end(name)
    given(data(name))(holds)()


def test_a_delimiter_that_comes_through_stops_training_and_evaluation(toy, monkeypatch):
    """Both halves of the front-end are broken; what checks the ids is not."""
    own = prompts._roles
    monkeypatch.setattr(prompts, "filter_data", lambda text, form: text)
    monkeypatch.setattr(prompts, "_roles", lambda *args: own(*args[:4]))
    host = Sample("Count the words.", f"red {toy.format.reserved[0]} owl", "2")
    dataset = pairs_dataset([host, Sample("Say it.", "", "no")], seed=0)
    with pytest.raises(ValueError, match="remove these data"):
        logprobs.encode_pairs(toy, dataset, 256)
    with pytest.raises(ValueError, match="remove these data"):
        evaluation.evaluate(toy, evaluation.clean_items([host]))


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_ordinary_text_passes_unchanged(name):
    tokenizer, form = FRONT_ENDS[name]
    for text in ("red owl, blue fox.", "3 < 4 and 5 > 2", "caf\u00e9 \u4f60\u597d \U0001f600",
                 "Dear Ann,\n\nthe price is $4 | 5%.\nYours, Bo"):
        assert filter_data(text, form) == text
        encoded = encode(tokenizer, form, INSTRUCTION, text)
        ids = [i for i, r in zip(encoded.ids, encoded.roles, strict=True) if r == "data"]
        assert "".join(tokenizer.decode(ids).split()) == "".join(text.split())


@pytest.mark.parametrize("name", ["embedded", "chatml", "llama 2"])
def test_a_megabyte_of_nested_delimiters_is_filtered(name):
    tokenizer, form = FRONT_ENDS[name]
    mark = max(form.reserved, key=len)
    depth = 500_000 // len(mark)
    text = mark[:-1] * depth + "owl" + mark[-1] * depth + mark * depth
    filtered = filter_data(text, form)
    assert len(text) > 900_000 and not any(r in filtered for r in form.reserved)
    assert filter_data(filtered, form) == filtered


@pytest.mark.parametrize("name", ["embedded", "chatml", "llama 2", "nfkc"])
def test_half_a_surrogate_pair_is_refused(name):
    tokenizer, form = FRONT_ENDS[name]
    with pytest.raises(ValueError, match="surrogate"):
        encode(tokenizer, form, INSTRUCTION, "red \ud800 owl")
    with pytest.raises(ValueError, match="surrogate"):
        encode(tokenizer, form, "red \udfff owl", "owl")
