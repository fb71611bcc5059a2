"""Prompts: instruction and data in their delimiters, filtered, and encoded with a role per token.

One datum: `render(FORMATS["toy"], "Count the words.", "red, owl.") ==
"<instruction_delimiter>Count the words.<data_delimiter>red, owl.<response_delimiter>"`

The secure front-end (StruQ, section 4.3; SecAlign, section 3.2) is two things here. `filter_data`
deletes every reserved string from the data until none is left, and `encode` tokenizes the data
apart from the delimiters with special tokens switched off. `frontend=False` switches both off, to
show what an attacker gains who can write real delimiters.

Limits: the front-end guards the delimiters, not the meaning: a plain "Do dinosaurs exist?" passes.
The format "mistral" has no data delimiter of its own, only a space. The format "text" uses ordinary
characters, so its filter also deletes "##" from honest data (headings). Only the data slot is
filtered; whoever writes the instruction is trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

ROLES = ("delimiter", "instruction", "data")


@dataclass(frozen=True)
class PromptFormat:
    """The strings around instruction, data and response, with their line breaks.

    A prompt is begin + instruction delimiter + instruction [+ data delimiter + data] + response
    delimiter. The data delimiter closes the instruction where a format closes turns, so a prompt
    without data just leaves it out. `reserved` strings may not occur in data.
    """

    name: str
    instruction: str
    data: str
    response: str
    end: str
    reserved: tuple[str, ...]
    begin: str = ""

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
    by_last: dict[str, list[str]] = {}
    for string in sorted(filter(None, fmt.reserved), key=len, reverse=True):
        by_last.setdefault(string[-1], []).append(string)
    kept: list[str] = []
    for character in text:
        kept.append(character)
        for string in by_last.get(character, ()):
            if "".join(kept[-len(string):]) == string:
                del kept[-len(string):]
                break
    return "".join(kept)


def render(fmt: PromptFormat, instruction: str, data: str = "", frontend: bool = True) -> str:
    """The prompt as one text, for people to read.

    Models should get `encode`: in one text, nothing tells a delimiter from the attacker's copy.
    """
    return "".join(text for text, _ in _segments(fmt, instruction, data, frontend))


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

    So no token joins data to a delimiter, and a role is exact. With the front-end, special tokens
    spelled in the data become ordinary pieces; without it they become the real ids, which is the
    vulnerability. Tokenizers that put a space before a text do so for each segment.
    """
    ids: list[int] = []
    roles: list[str] = []
    for text, role in _segments(fmt, instruction, data, frontend):
        piece = _tokenize(tokenizer, text, plain=frontend and role == "data")
        ids += piece
        roles += [role] * len(piece)
    return EncodedPrompt(tuple(ids), tuple(roles))


def encode_response(tokenizer, fmt: PromptFormat, answer: str) -> tuple[int, ...]:
    """The ids of an answer and of the format's end token, which closes it.

    Special tokens spelled in the answer become ordinary pieces, so the end token is the only one.
    Raises ValueError if the end string is not one token of the tokenizer.
    """
    end = _tokenize(tokenizer, fmt.end, plain=False)
    if len(end) != 1 or end[0] == tokenizer.unk_token_id:
        raise ValueError(f"{fmt.end!r}, the end of format {fmt.name!r}, is not one token of this "
                         "tokenizer; use for_tokenizer(fmt, tokenizer).")
    return (*_tokenize(tokenizer, answer, plain=True), *end)


def audit(tokenizer, fmt: PromptFormat, encoded: EncodedPrompt) -> list[int]:
    """Positions of data tokens (from 0) that are, or are part of, something reserved.

    Reserved are the tokenizer's special ids and the id sequences of the format's reserved strings.
    An empty list means that the data cannot be read as a delimiter; with the front-end it is empty.
    For reserved strings of ordinary text a sequence may also be spelled by other ids, unseen here.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    found = {i for i, token in enumerate(encoded.ids) if token in special}
    for string in fmt.reserved:
        sequence = tuple(_tokenize(tokenizer, string, plain=False))
        if sequence and tokenizer.unk_token_id not in sequence:
            found |= _occurrences(encoded.ids, sequence)
    return sorted(i for i in found if encoded.roles[i] == "data")


def _segments(fmt, instruction, data, frontend) -> list[tuple[str, str]]:
    data = filter_data(data, fmt) if frontend else data
    segments = [(fmt.begin + fmt.instruction, "delimiter"), (instruction, "instruction")]
    if data:
        segments += [(fmt.data, "delimiter"), (data, "data")]
    return segments + [(fmt.response, "delimiter")]


def _tokenize(tokenizer, text: str, plain: bool) -> list[int]:
    """Ids of a text; `plain` reads special tokens as ordinary characters."""
    if not text:
        return []
    # Said in both cases: without it the tokenizer's own attribute would decide.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]


def _occurrences(ids: tuple[int, ...], sequence: tuple[int, ...]) -> set[int]:
    size = len(sequence)
    starts = (i for i in range(len(ids) - size + 1) if ids[i : i + size] == sequence)
    return {position for start in starts for position in range(start, start + size)}
