"""Prompts: instruction and data in their delimiters, filtered, and encoded with a role per token.

One datum: `render(FORMATS["toy"], "Count the words.", "red, owl.") ==
"<instruction_delimiter>Count the words.<data_delimiter>red, owl.<response_delimiter>"`

The secure front-end (StruQ, section 4.3; SecAlign, section 3.2) is two things here. `filter_data`
deletes every reserved string from the data until none is left, and `encode` tokenizes the data
apart from the delimiters with added tokens switched off. `frontend=False` switches both off, to
show what an attacker gains who can write real delimiters.

Limits: the front-end guards the delimiters, not the meaning: a plain "Do dinosaurs exist?" passes.
The format "mistral" has no data delimiter of its own, only a space. The format "text" uses ordinary
characters, so its filter also deletes "##" from honest data (headings). Only the data slot is
filtered; whoever writes the instruction is trusted. The formats here are the papers' layouts and
those of base models; `chat_format` reads a chat model's own.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .tokenization import added_tokens, cached, reader, refuse_unknown


@dataclass(frozen=True)
class PromptFormat:
    """The strings around instruction, data and response, with their line breaks.

    A prompt is begin + instruction delimiter + instruction [+ data delimiter + data] + response
    delimiter. The data delimiter closes the instruction where a format closes turns, so a prompt
    without data just leaves it out, unless `alone` says what then follows the instruction.
    `reserved` strings may not occur in data. `margin` is what the model itself writes before and
    after an answer, `trimmed` are the slots whose text loses the whitespace around it.
    """

    name: str
    instruction: str
    data: str
    response: str
    end: str
    reserved: tuple[str, ...]
    begin: str = ""
    alone: str = ""
    margin: tuple[str, str] = ("", "")
    trimmed: tuple[str, ...] = ()

    @property
    def delimiters(self) -> tuple[str, str, str]:
        """(instruction, data, response) as a completion attack forges them.

        Where the format closes turns, the forged instruction first closes the forged answer.
        """
        close = self.end if self.data.startswith(self.end) else ""
        return close + self.instruction, self.data, self.response


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids and, for each, its role: "delimiter", "instruction" or "data"."""

    ids: tuple[int, ...]
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


_ALL = (
    PromptFormat(
        "toy", "<instruction_delimiter>", "<data_delimiter>", "<response_delimiter>", "<|end|>",
        ("<instruction_delimiter>", "<data_delimiter>", "<response_delimiter>", "<|end|>",
         "<|pad|>"),
    ),
    PromptFormat(
        "text", "### instruction:\n", "\n\n### input:\n", "\n\n### response:\n", "</s>",
        ("### instruction:", "### input:", "### response:", "##", "<s>", "</s>"), "<s>",
    ),
    PromptFormat(
        "secalign", "[MARK] [INST][COLN]\n", "\n\n[MARK] [INPT][COLN]\n",
        "\n\n[MARK] [RESP][COLN]\n", "</s>",
        ("[MARK]", "[INST]", "[INPT]", "[RESP]", "[COLN]", "##", "<s>", "</s>"), "<s>",
    ),
    # As in SecAlign: the system turn holds the instruction, the user turn the data.
    PromptFormat(
        "llama3", _header("system"), "<|eot_id|>" + _header("user"),
        "<|eot_id|>" + _header("assistant"), "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
         "<|begin_of_text|>", "<|end_of_text|>", "<|python_tag|>"), "<|begin_of_text|>",
    ),
    PromptFormat(
        "chatml", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    ),
    PromptFormat(
        "mistral", "[INST] ", " ", " [/INST]", "</s>", ("[INST]", "[/INST]", "<s>", "</s>"), "<s>",
        margin=(" ", ""),
    ),
)
FORMATS: dict[str, PromptFormat] = {fmt.name: fmt for fmt in _ALL}


def for_tokenizer(fmt: PromptFormat, tokenizer) -> PromptFormat:
    """The format with the tokenizer's own begin and end tokens, both reserved.

    For "text" and "secalign" on a base model whose begin and end are not "<s>" and "</s>".
    Raises ValueError if the tokenizer has no end token.
    """
    begin, end = tokenizer.bos_token or "", tokenizer.eos_token
    if not end:
        raise ValueError(f"the tokenizer for format {fmt.name!r} has no eos_token; set one.")
    reserved = tuple(dict.fromkeys((*fmt.reserved, *filter(None, (begin, end)))))
    return replace(fmt, begin=begin, end=end, reserved=reserved)


def filter_data(text: str, fmt: PromptFormat) -> str:
    """The text after recursive deletion of the format's reserved strings.

    One pass: whenever what has been kept ends in a reserved string, that string is removed, and
    what stood before it can meet what follows. So the kept text never holds one, however deeply
    an attacker nests them ("<data_de<data_delimiter>limiter>"), and time stays linear.
    Case-sensitive, as tokens are.
    """
    return filtered(text, fmt)[0]


def filtered(text: str, fmt: PromptFormat) -> tuple[str, list[str]]:
    """`filter_data` of the text, and the strings that it deleted, in order."""
    found, by_last = _search(fmt.reserved)
    kept: list[str] = []
    deleted: list[str] = []
    if not found(text):
        return text, deleted
    for character in text:
        kept.append(character)
        for size, strings in by_last.get(character, ()):
            if (end := "".join(kept[-size:])) in strings:
                del kept[-size:]
                deleted.append(end)
                break
    return "".join(kept), deleted


@functools.lru_cache(maxsize=64)
def _search(reserved: tuple[str, ...]):
    """A search for any of the strings; by last character, (length, strings), long ones first."""
    by_last: dict[str, dict[int, set[str]]] = {}
    for string in sorted(filter(None, reserved), key=len, reverse=True):
        by_last.setdefault(string[-1], {}).setdefault(len(string), set()).add(string)
    pattern = "|".join(map(re.escape, filter(None, reserved)))
    return (re.compile(pattern or r"(?!)").search,
            {last: tuple(sizes.items()) for last, sizes in by_last.items()})


def render(fmt: PromptFormat, instruction: str, data: str = "", frontend: bool = True) -> str:
    """The prompt as one text, for people to read.

    Models should get `encode`: in one text, nothing tells a delimiter from the attacker's copy.
    """
    return "".join(_segments(fmt, instruction, data, frontend))


def messages_to_parts(messages: Sequence[dict]) -> tuple[str, str]:
    """(instruction, data) of a prompt column: a "user" message, then perhaps an "input" message.

    Raises ValueError for any other sequence of roles.
    """
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["user", "input"]):
        raise ValueError(f"the prompt has the roles {roles}; "
                         "give a 'user' message and at most one 'input' message after it.")
    contents = [message["content"] for message in messages]
    return contents[0], contents[1] if len(contents) == 2 else ""


def encode(
    tokenizer, fmt: PromptFormat, instruction: str, data: str = "", frontend: bool = True
) -> EncodedPrompt:
    """The prompt as ids with roles; every segment is tokenized apart from its neighbours.

    So no token joins data to a delimiter, and a role is exact; only the space in which a delimiter
    ends ("[INST] ") goes to the text after it, as tokenizers that join spaces to words read it.
    With the front-end, added tokens spelled in the data become ordinary pieces; without it they
    become the real ids, which is the vulnerability.

    Raises ValueError if the data could be read as a delimiter in spite of the front-end, if the
    tokenizer cannot write the format, and for an added token that the model has no row for.
    """
    layout = _layout(tokenizer, fmt)
    instruction, data = _contents(fmt, instruction, data, frontend)
    parts = [(layout.instruction, "delimiter"),
             *_roles(tokenizer, layout, "instruction", instruction)]
    if data:
        read = _roles(tokenizer, layout, "data", data, "blank" if frontend else "all")
        if frontend:
            _refuse_forged(tokenizer, layout, data, read[1][0])
        parts += [(layout.data, "delimiter"), *read]
    parts.append((layout.response if data else layout.alone, "delimiter"))
    flat = tuple(i for ids, _ in parts for i in ids)
    refuse_unknown(tokenizer, flat)
    return EncodedPrompt(flat, tuple(role for ids, role in parts for _ in ids))


def encode_response(tokenizer, fmt: PromptFormat, answer: str) -> tuple[int, ...]:
    """The ids of an answer and of the format's end token, which closes it.

    Special tokens spelled in the answer become ordinary pieces, so the end token is the only one.
    Raises ValueError if the end string is not one token of the tokenizer, and as `encode` does.
    """
    layout = _layout(tokenizer, fmt)
    answer = answer.strip() if "response" in fmt.trimmed else answer
    text = fmt.margin[0] + answer + fmt.margin[1]
    ids = reader(tokenizer, "unspecial", "response" in layout.spaced).ids(text)
    refuse_unknown(tokenizer, ids)
    return (*ids, cached(tokenizer, ("end", fmt), lambda: _end(tokenizer, fmt)))


def audit(tokenizer, fmt: PromptFormat, encoded: EncodedPrompt) -> list[int]:
    """Positions of data tokens (from 0) that are, or are part of, something reserved.

    Reserved are the ids of the tokenizer's added tokens, unless they are whitespace, and the id
    sequences of the format's reserved strings. An empty list means that the data cannot be read as
    a delimiter; `encode` refuses other data if the front-end is on. For reserved strings of
    ordinary text a sequence may also be spelled by other ids, unseen here.
    """
    layout = _layout(tokenizer, fmt)
    return [i for i in _reserved_positions(layout, encoded.ids) if encoded.roles[i] == "data"]


def data_marks(tokenizer, fmt: PromptFormat) -> tuple[tuple[int, ...], frozenset[int]]:
    """The ids of the data delimiter, and the reserved ids; the first of these ends the data.

    So ids alone say which tokens of a prompt are data, as `encode` does, even while it is read: no
    data hold a reserved id. Raises ValueError for a format that marks the data otherwise.
    """
    layout = _layout(tokenizer, fmt)
    if (layout.lead["data"] or layout.reserved.isdisjoint(layout.data)
            or layout.response[0] not in layout.reserved):
        raise ValueError(f"format {fmt.name!r} has no reserved tokens right before and behind the "
                         "data, so that ids do not say which tokens are data; choose another "
                         "format, or beside=none")
    return layout.data, layout.reserved


@dataclass(frozen=True)
class _Layout:
    """A format in the ids of a tokenizer.

    `spaced` are the slots before which the tokenizer writes a space of its own; `lead` maps a slot
    to the spaces that go to its text from the delimiter before. `marks` are the reserved strings of
    ordinary text, as the vocabulary sees them.
    """

    instruction: tuple[int, ...]
    data: tuple[int, ...]
    response: tuple[int, ...]
    alone: tuple[int, ...]
    spaced: frozenset[str]
    lead: dict[str, str]
    reserved: frozenset[int]
    sequences: tuple[tuple[int, ...], ...]
    marks: tuple[str, ...]


def _layout(tokenizer, fmt: PromptFormat) -> _Layout:
    return cached(tokenizer, fmt, lambda: _make_layout(tokenizer, fmt))


def _make_layout(tokenizer, fmt: PromptFormat) -> _Layout:
    """Tokenizes whole prompts with the words below, and takes their ids out of the result."""
    texts = {"instruction": fmt.begin + fmt.instruction, "data": fmt.data}
    lead = {slot: text[len(text.rstrip(" ")):] for slot, text in texts.items()}
    words = {slot: lead[slot] + word for slot, word in _WORDS.items()}
    head = texts["instruction"] + _WORDS["instruction"]
    whole = head + texts["data"] + _WORDS["data"] + fmt.response
    spaced: set[str] = set()
    first, second, response = _cut(tokenizer, fmt, whole, words, spaced)
    _, alone = _cut(tokenizer, fmt, head + (fmt.alone or fmt.response),
                    {"instruction": words["instruction"]}, spaced)
    answer = "".join((fmt.margin[0], "fig", fmt.margin[1]))
    ids, written = (reader(tokenizer, prefix=True).ids(text) for text in (whole, whole + answer))
    if written == ids + reader(tokenizer, prefix=True).ids(answer):
        spaced.add("response")
    known = set(added_tokens(tokenizer).values())
    marks = [string for string in filter(None, fmt.reserved) if string not in known]
    read = reader(tokenizer)
    sequences = [tuple(read.ids(string)) for string in marks]
    return _Layout(
        first, second, response, alone, frozenset(spaced), lead,
        frozenset(added_tokens(tokenizer)) - added_tokens(tokenizer, "blank").keys()
        - {tokenizer.unk_token_id},
        tuple(s for s in sequences if s and tokenizer.unk_token_id not in s),
        tuple(map(read.normalized, marks)),
    )


_WORDS = {"instruction": "zebra", "data": "quartz"}  # in no delimiter


def _cut(tokenizer, fmt, whole: str, words: dict[str, str], spaced: set[str]) -> list[tuple]:
    """The ids around the words; notes the slots where the tokenizer writes its own space."""
    rest = tuple(reader(tokenizer, prefix=True).ids(whole))
    if tokenizer.unk_token_id in rest:
        raise ValueError(f"this tokenizer lacks characters of format {fmt.name!r}: it reads "
                         f"{tokenizer.decode(rest)!r}; choose another format")
    pieces = []
    for slot, word in words.items():
        found = {}
        for prefix in (False, True):
            ids = tuple(reader(tokenizer, prefix=prefix).ids(word))
            found |= {at: (prefix, ids) for at in _starts(rest, ids)[:1] if at not in found}
        if not found:
            raise ValueError(f"this tokenizer joins delimiters of format {fmt.name!r} to the text "
                             f"between them, {tokenizer.decode(rest)!r}; choose another format")
        at = min(found)
        prefix, ids = found[at]
        spaced |= {slot} if prefix else set()
        pieces.append(rest[:at])
        rest = rest[at + len(ids):]
    return [*pieces, rest]


def _end(tokenizer, fmt: PromptFormat) -> int:
    end = reader(tokenizer).ids(fmt.end)
    if len(end) != 1 or end[0] == tokenizer.unk_token_id:
        raise ValueError(f"{fmt.end!r}, the end of format {fmt.name!r}, is not one token of this "
                         "tokenizer; use for_tokenizer(fmt, tokenizer).")
    return end[0]


def _roles(tokenizer, layout: _Layout, slot: str, text: str, added: str = "all") -> list[tuple]:
    """(ids, role) of the delimiter's last space, unless a token joins it to the text, and of the
    text."""
    read, lead = reader(tokenizer, added, slot in layout.spaced), layout.lead[slot]
    ids, space = read.ids(lead + text), read.ids(lead)
    border = len(space) if ids[: len(space)] == space else 0
    return [(ids[:border], "delimiter"), (ids[border:], slot)]


def _refuse_forged(tokenizer, layout: _Layout, data: str, ids: Sequence[int]) -> None:
    found = [tokenizer.decode([ids[i]]) for i in _reserved_positions(layout, ids)]
    read = reader(tokenizer, "blank")
    if not found and read.backend.normalizer:  # which may turn other characters into a mark
        normalized = read.normalized(data)
        found = [mark for mark in layout.marks if mark in normalized]
    if found:
        raise ValueError(f"the tokenizer reads {found[0]!r} in the data {data[:60]!r}, which the "
                         "format reserves; remove these data")


def _contents(fmt, instruction: str, data: str, frontend: bool) -> tuple[str, str]:
    data = filter_data(data, fmt) if frontend else data
    return tuple(text.strip() if slot in fmt.trimmed else text
                 for slot, text in (("instruction", instruction), ("data", data)))


def _segments(fmt, instruction, data, frontend) -> list[str]:
    instruction, data = _contents(fmt, instruction, data, frontend)
    head = [fmt.begin + fmt.instruction, instruction]
    return head + ([fmt.data, data, fmt.response] if data else [fmt.alone or fmt.response])


def _reserved_positions(layout: _Layout, ids: Sequence[int]) -> list[int]:
    present = set(ids)
    found = set()
    if not layout.reserved.isdisjoint(present):
        found |= {i for i, token in enumerate(ids) if token in layout.reserved}
    for sequence in layout.sequences:
        if present.issuperset(sequence):
            found |= {at + k for at in _starts(ids, sequence) for k in range(len(sequence))}
    return sorted(found)


def _starts(ids: Sequence[int], sequence: tuple[int, ...]) -> list[int]:
    size, ids = len(sequence), tuple(ids)
    return [i for i in range(len(ids) - size + 1) if ids[i : i + size] == sequence]
