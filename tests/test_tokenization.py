"""A part of a text is read as inside the whole, with no added token that is not asked for."""

import pytest
import tokenizer_kinds as kinds
from tokenizers import Tokenizer, models, pre_tokenizers

from secalign_kit.tokenization import ADDED, added_tokens, reader

SPACED = ["normalizer", "first", "always"]


@pytest.mark.parametrize("space", SPACED)
def test_parts_are_read_as_inside_the_whole(space):
    tokenizer = kinds.sentence_piece(space=space)
    parts = ["Count the words.\n", "red owl\n", "words"]
    read = [reader(tokenizer, prefix=not number).ids(part) for number, part in enumerate(parts)]
    assert sum(read, []) == tokenizer("".join(parts), add_special_tokens=False)["input_ids"]


def test_a_first_space_of_bytes_is_not_written_either():
    tokenizer = kinds.byte_level([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokens = [tokenizer.convert_ids_to_tokens(reader(tokenizer, prefix=prefix).ids("owl"))
              for prefix in (False, True)]
    assert "".join(tokens[0]) == "owl" and "".join(tokens[1]) == "Ġowl"


@pytest.mark.parametrize("space", SPACED)
def test_reading_leaves_the_tokenizer_as_it_was(space):
    tokenizer = kinds.sentence_piece(space=space)
    before = tokenizer.backend_tokenizer.to_str()
    reader(tokenizer).ids("x </s>"), reader(tokenizer, "blank").ids("x </s>")
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_reader_knows_the_added_tokens_that_it_is_asked_for():
    tokenizer = kinds.byte_level(["<s>"], ["<tool>", "\n\n"])
    known = {added: set(added_tokens(tokenizer, added).values()) for added in ADDED}
    assert known == {"all": {"<s>", "<tool>", "\n\n"}, "unspecial": {"<tool>", "\n\n"},
                     "blank": {"\n\n"}}
    for added, tokens in known.items():
        ids = reader(tokenizer, added).ids("a<s>b<tool>c\n\nd")
        assert set(tokenizer.convert_ids_to_tokens(ids)) & known["all"] == tokens
        assert tokenizer.decode(ids) == "a<s>b<tool>c\n\nd"


def test_added_tokens_keep_their_ids_though_others_are_left_out():
    tokenizer = kinds.byte_level([f"<{n}>" for n in range(9)], ["\n\n"])
    assert reader(tokenizer, "blank").ids("\n\n") == [tokenizer.convert_tokens_to_ids("\n\n")]


def test_a_token_added_later_is_known():
    tokenizer = kinds.chatml()
    assert len(reader(tokenizer).ids("<late>")) > 1
    tokenizer.add_tokens(["<late>"])
    assert reader(tokenizer).ids("<late>") == [tokenizer.convert_tokens_to_ids("<late>")]


class Slow:
    """Not of the `tokenizers` library."""

    def __len__(self):
        return 0


def test_a_tokenizer_of_another_library_is_refused():
    with pytest.raises(ValueError, match="tokenizer.json"):
        reader(Slow())


def test_unknown_characters_stay_unknown():
    backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>"))
    tokenizer = kinds.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert reader(tokenizer).ids("axa") == [1, 0, 1]
