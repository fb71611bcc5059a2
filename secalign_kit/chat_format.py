"""Prompt formats from chat templates: the slots of any chat model, exact or refused.

One datum: for a ChatML tokenizer, `chat_format(tokenizer).data` is
`"<|im_end|>\\n<|im_start|>user\\n"`.

A template is a program, so it is run on sentinels and cut at them; whether the parts then give the
template's own text and ids is checked with other texts. Three layouts, the first that the template
knows and that keeps the slots apart by something reserved:

- instruction in the user turn, data in an `input` turn, if the template names that role (Meta
  SecAlign, arXiv 2507.02735);
- instruction in the system turn, data in the user turn (SecAlign, section 4.1);
- both in one user turn, the data under a heading, `### input:`. For templates without a system
  turn, and those that write it into the user's with no mark between the two, so that only the
  heading, which the front-end deletes from data, tells them apart.

Options of templates are fixed: no reasoning (`enable_thinking=False`), and the date below, so that
a prompt is the same tomorrow.

Limits: a text that begins or ends in whitespace stays apart from the delimiter, where the model's
own tokenizer may join the two.
"""

import datetime
import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import astuple, replace

from jinja2 import TemplateError

from .prompts import FORMATS, PromptFormat, encode, encode_response, render
from .tokenization import added_tokens

HEADING = "\n\n### input:\n"
INSTRUCTION, DATA, ANSWER = "SlotOfInstruction", "SlotOfData", "SlotOfAnswer"
DATE = datetime.date(2024, 7, 26)
OPTIONS = {"enable_thinking": False, "date_string": DATE.strftime("%d %b %Y")}

Turns = Callable[[str, str], list[dict]]


def _turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _user_input(instruction: str, data: str) -> list[dict]:
    return [_turn("user", instruction)] + ([_turn("input", data)] if data else [])


def _system_user(instruction: str, data: str) -> list[dict]:
    return [_turn("system", instruction)] + ([_turn("user", data)] if data else [])


def _one_turn(instruction: str, data: str) -> list[dict]:
    return [_turn("user", instruction + (HEADING + data if data else ""))]


CHAT: dict[str, Turns | None] = {
    "chat": None, "chat-input": _user_input, "chat-system": _system_user, "chat-user": _one_turn,
}
"""Names of formats from the tokenizer's template: the first that fits, or a certain layout."""


def chat_format(tokenizer, name: str = "chat") -> PromptFormat:
    """The prompt format of the tokenizer's chat template, in a layout of `CHAT`.

    Its name ends in a hash of its strings. Warns where the model's own tokenizer would join a
    delimiter to some texts. Raises ValueError if there is no template, or none of its layouts can
    be written exactly.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer has no chat template for format {name!r}; choose one of "
                         f"{', '.join(FORMATS)}")
    template, layouts = _template(tokenizer), [name] if CHAT[name] else list(CHAT)[1:]
    if not CHAT[name] and not _NAMES_INPUT.search(template):
        layouts.remove("chat-input")  # most templates write any role, known to the model or not
    for layout in layouts:
        if fmt := _derived(tokenizer, layout):
            _check(tokenizer, fmt, CHAT[layout])
            return fmt
    raise ValueError(f"the tokenizer's chat template cannot keep instruction and data apart as "
                     f"{' or '.join(layouts)}; choose one of {', '.join(FORMATS)}")


def _messages_text(tokenizer, messages: list[dict], answer: str | None = None, ids: bool = False):
    if answer is not None:
        messages = [*messages, _turn("assistant", answer)]
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=_template(tokenizer), add_generation_prompt=answer is None,
            tokenize=ids, return_dict=False, **OPTIONS)
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template refuses turns of {roles} ({error}); choose one of "
                         f"{', '.join(FORMATS)}") from None


def _template(tokenizer) -> str:
    """The template, with `DATE` in place of today."""
    def date(call: re.Match) -> str:
        return repr(DATE.strftime(call[2]))

    text = re.sub(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", date, tokenizer.get_chat_template())
    if "strftime_now(" in text:
        raise ValueError("the chat template writes today's date in a way that cannot be fixed, so "
                         f"prompts would change by the day; choose one of {', '.join(FORMATS)}")
    return text


def _written(tokenizer, messages: list[dict]) -> str:
    """The template's text, "" if it refuses these roles."""
    try:
        return _messages_text(tokenizer, messages)
    except ValueError:
        return ""


def _derived(tokenizer, layout: str) -> PromptFormat | None:
    """The format of a layout, None if the template does not keep its slots apart."""
    turns = CHAT[layout]
    prompt = _written(tokenizer, turns(INSTRUCTION, DATA))
    start, _, rest = prompt.partition(INSTRUCTION)
    data, _, response = rest.partition(DATA)
    if prompt != start + INSTRUCTION + data + DATA + response:
        return None
    if INSTRUCTION in data + response or DATA in start + response:
        return None
    if not _marks(tokenizer, data):
        return None
    lead, tail, end = _answer(tokenizer, turns, prompt)
    alone = _alone(tokenizer, turns, start, layout)
    if lead.strip():  # as in a finished conversation, e.g. an empty block of thoughts
        response, alone, lead = response + lead, alone + lead, ""
    texts = start, data, response, alone
    bos = tokenizer.bos_token
    begin = _closed(start, end, bos if bos and bos not in data else None)  # some begin every turn
    plain = added_tokens(tokenizer, "unspecial").values()
    reserved = set(_tokens(tokenizer)).difference(plain)
    reserved = reserved.union({end}, *(_marks(tokenizer, text) for text in texts))
    fmt = PromptFormat(
        layout, start[len(begin):], data, response, end, tuple(sorted(reserved)), begin,
        "" if alone == response else alone, (lead, tail), _trimmed(tokenizer, turns),
    )
    digest = hashlib.blake2b(repr(astuple(fmt)).encode(), digest_size=4).hexdigest()
    return replace(fmt, name=f"{layout}-{digest}")


def _answer(tokenizer, turns: Turns, prompt: str) -> tuple[str, str, str]:
    """What the template writes before an answer and after it, and its end token."""
    finished = _messages_text(tokenizer, turns(INSTRUCTION, DATA), ANSWER)
    if not finished.startswith(prompt):
        raise ValueError(f"the chat template ends a prompt in {prompt[-40:]!r}, and writes no "
                         "answer after that in a finished conversation, so none can be scored; "
                         f"choose one of {', '.join(FORMATS)}")
    lead, found, rest = finished[len(prompt):].partition(ANSWER)
    if not found:
        raise ValueError("the chat template leaves out the assistant's answer; choose one of "
                         f"{', '.join(FORMATS)}")
    tokens = _tokens(tokenizer)
    end = re.match(rf"(\s*)({'|'.join(map(re.escape, tokens))})", rest) if tokens else None
    if end:
        return lead, *end.groups()
    if not tokenizer.eos_token:
        raise ValueError("neither the chat template nor the tokenizer says which token ends an "
                         "answer; set the tokenizer's eos_token")
    return lead, "", tokenizer.eos_token


def _alone(tokenizer, turns: Turns, start: str, layout: str) -> str:
    """What follows the instruction of a prompt without data."""
    candidates = [turns(INSTRUCTION, "")]
    if layout == "chat-system":  # some templates want a user turn, if an empty one
        candidates.append([_turn("system", INSTRUCTION), _turn("user", "")])
    for messages in candidates:
        text = _written(tokenizer, messages)
        if text.startswith(start + INSTRUCTION):
            return text[len(start + INSTRUCTION):]
    raise ValueError("the chat template writes no prompt without data in the same turns; choose "
                     f"one of {', '.join(FORMATS)}")


def _closed(start: str, end: str, bos: str | None) -> str:
    """The part of the text before the instruction that belongs to no turn, or to earlier ones."""
    if end in start:
        cut = start.rfind(end) + len(end)
        return start[:cut] + re.match(r"\s*", start[cut:])[0]
    return bos if bos and start.startswith(bos) else ""


def _trimmed(tokenizer, turns: Turns) -> tuple[str, ...]:
    """The slots whose text loses the whitespace around it."""
    spaced = [f" \n {slot} \n " for slot in (INSTRUCTION, DATA, ANSWER)]
    text = _messages_text(tokenizer, turns(*spaced[:2]), spaced[2])
    slots = ("instruction", "data", "response")
    lost = [slot for slot, s in zip(slots, spaced, strict=True) if s not in text]
    return tuple(lost)


_BRACKETED = re.compile(r"[<\[{|]+[^\s<>\[\]{}|]*\w[^\s<>\[\]{}|]*[>\]}|]+")  # [INST], <<SYS>>
_LABEL = re.compile(r"((?:#+ *)?\w[\w ]{0,24}:)\s*$")  # USER:, ### Response:


def _tokens(tokenizer) -> list[str]:
    """The added tokens that are more than whitespace, long ones first."""
    tokens = added_tokens(tokenizer)
    blank = added_tokens(tokenizer, "blank")
    texts = {text for i, text in tokens.items() if i not in blank} - {tokenizer.unk_token}
    return sorted(texts, key=len, reverse=True)


def _marks(tokenizer, delimiter: str) -> set[str]:
    """What data may not hold: the delimiter's added tokens, bracketed words, and last label."""
    found = {token for token in _tokens(tokenizer) if token in delimiter}
    for token in found:
        delimiter = delimiter.replace(token, "\n")
    label = _LABEL.search(delimiter.rpartition("\n")[2] or delimiter.strip().rpartition("\n")[2])
    return found | set(_BRACKETED.findall(delimiter)) | ({label[1]} if label else set())


_NAMES_INPUT = re.compile(r"""role\b['"\]]*\s*(?:==|in\b)[^%}]*['"]input['"]""")

PROBES = (
    ("Count the words", "red owl"), ("Count the words", ""),
    ("Count the words.", "red, owl."), ("What is 2+2?", "7 (seven)"), ("Greet Anna.", ""),
    ("Sum up:\n- one", "“Zoë” said: <b>yes!</b>"), ("\n Sum up:\n", "\n one\n "),
)


def _check(tokenizer, fmt: PromptFormat, turns: Turns) -> None:
    """Raises ValueError unless the parts give the template's text and ids; see `chat_format`."""
    apart = None
    for number, (instruction, data) in enumerate(PROBES):
        instruction, data = (text.strip() if slot in fmt.trimmed else text
                             for slot, text in (("instruction", instruction), ("data", data)))
        text = render(fmt, instruction, data, frontend=False)
        messages = turns(instruction, data)
        if not data and fmt.alone.startswith(fmt.data):
            messages.append(_turn("user", ""))
        if not _messages_text(tokenizer, messages, "Yes").startswith(text):
            raise ValueError(f"the chat template writes {instruction!r} with {data!r} in another "
                             f"way than other texts; choose one of {', '.join(FORMATS)}")
        if instruction != instruction.strip():  # joined to delimiters by nearly every tokenizer
            continue
        prompt = list(encode(tokenizer, fmt, instruction, data, frontend=False).ids)
        asked = _messages_text(tokenizer, messages, ids=True)
        finished = _messages_text(tokenizer, messages, "Yes", ids=True)
        # the same, unless the delimiter has more than the template writes to ask for an answer
        exact = prompt in (asked, finished[: len(prompt)])
        if not exact and number < 2:
            raise ValueError(f"the tokens of {text!r} change when instruction and data are kept "
                             f"apart; choose one of {', '.join(FORMATS)}")
        whole = [*prompt, *encode_response(tokenizer, fmt, "Yes")]
        if not exact or finished[: len(whole)] != whole:
            apart = apart or text
    if apart:
        warnings.warn(f"the model's tokenizer would join a delimiter of {apart!r} to the text "
                      "beside it, or to the answer; here they stay apart", stacklevel=4)
