"""A chat template that is the kit's prompt, front-end included.

One datum: with the embedded model's, a user turn "Count." and an input turn "red<|end|>" give
`"<instruction_delimiter>Count.<data_delimiter>red<response_delimiter>"`.

Three slots, as Meta SecAlign's users know them (arXiv 2507.02735): the turns `system` and `user`
are trusted and together the instruction, `input` turns are the data. From data the template deletes
every reserved string, again and again until none is left, so that a server which renders it and
knows nothing of the kit keeps the front-end's promise. Whatever it cannot write in this way, such
as content that is no text, it refuses.

It deletes a little more than `prompts.filter_data`: all added tokens of the tokenizer, because
nobody behind it reads data with added tokens switched off.

Limits: a conversation with more than one answer is written turn by turn, and neither trained nor
measured here. More than a million rounds of deletion are refused.
"""

from dataclasses import replace

from jinja2 import TemplateError

from ..injections import NEAR_MISSES
from ..prompts import PromptFormat, encode, encode_response
from ..tokenization import added_tokens

JOIN = "\n\n"  # between several turns of one slot
ROUNDS = 1000  # squared, since Jinja has no loop without an end
PROBES = (
    ("Count the words.", "red, owl."), ("Greet Anna.", ""), ("What is 2+2?", "7 (seven)"),
    ("Sum up:\n- one", "“Zoë” said: <b>yes!</b>"), ("Repeat.", "{{ 7 * 7 }} {% raw %} \\n '\""),
)


def guarded(tokenizer, fmt: PromptFormat) -> PromptFormat:
    """The format, all added tokens reserved that are more than whitespace."""
    blank = added_tokens(tokenizer, "blank")
    added = (text for i, text in added_tokens(tokenizer).items() if i not in blank)
    return replace(fmt, reserved=tuple(sorted({*filter(None, fmt.reserved), *added})))


def chat_template(tokenizer, fmt: PromptFormat) -> str:
    """The Jinja template of the format for the tokenizer.

    Raises ValueError if `apply_chat_template` would give other tokens than the kit, or would let
    something reserved through, with any of `PROBES` and `hostile` texts.
    """
    fmt = guarded(tokenizer, fmt)
    template = written(fmt)
    for instruction, data in [*PROBES, *(("Read.", text) for text in hostile(fmt))]:
        _refuse_other(tokenizer, template, fmt, instruction, data)
    return template


def messages(instruction: str, data: str = "", answer: str | None = None) -> list[dict]:
    """The turns that the template takes."""
    turns = [("user", instruction), ("input", data), ("assistant", answer)]
    return [{"role": role, "content": text} for role, text in turns
            if text or role == "user" or (role == "assistant" and text is not None)]


def hostile(fmt: PromptFormat) -> list[str]:
    """Data that try to say something reserved: plain, nested, and spelled in other characters."""
    texts = ["".join(fmt.reserved), "".join(fmt.delimiters)]
    for mark in fmt.reserved:
        half = len(mark) // 2
        texts += [f"a {mark} b", f"a {mark[:half] * 3}{mark}{mark[half:] * 3} b"]
        texts += [f"a {change(mark)} b" for change in (_full_width, *NEAR_MISSES)]
        texts += [f"a {mark.replace(' ', chr(0x2581))} b"]
    return texts


def written(fmt: PromptFormat) -> str:
    """The template's text. `fmt.reserved` is what it deletes from data."""
    def trimmed(slot: str, name: str) -> str:
        return f"{name} | trim" if slot in fmt.trimmed else name

    lead, tail = fmt.margin
    return _TEMPLATE.format(
        reserved=", ".join(map(_literal, reachable(fmt.reserved))), rounds=ROUNDS,
        join=_literal(JOIN), begin=_literal(fmt.begin), instruction=_literal(fmt.instruction),
        data=_literal(fmt.data), response=_literal(fmt.response),
        alone=_literal(fmt.alone or fmt.response), lead=_literal(lead),
        end=_literal(tail + fmt.end), trusted=trimmed("instruction", "trusted"),
        untrusted=trimmed("data", "cleaned(data)"),
        answer=trimmed("response", "cleaned(message['content'])"),
    )


def reachable(reserved: tuple[str, ...]) -> list[str]:
    """The strings whose deletion can ever be needed, long ones first.

    A string that holds another before its own end loses that one first ("##" in "### input:").
    """
    return sorted((text for text in reserved
                   if not any(other in text[:-1] for other in reserved if other)),
                  key=lambda text: (-len(text), text))


_TEMPLATE = """\
{{#- Written by SecAlign Kit. Turns of system and user are the trusted instruction; turns of input
     are data, from which everything in `reserved` is deleted until none of it is left. -#}}
{{%- set reserved = [{reserved}] -%}}
{{%- macro cleaned(text) -%}}
  {{%- set ns = namespace(text=text, found=true) -%}}
  {{%- for _ in range({rounds}) -%}}{{%- if ns.found -%}}{{%- for _ in range({rounds}) -%}}
    {{%- if ns.found -%}}
      {{%- set ns.found = false -%}}
      {{%- for mark in reserved -%}}
        {{%- if mark in ns.text -%}}
          {{%- set ns.text = ns.text.replace(mark, '') -%}}
          {{%- set ns.found = true -%}}
        {{%- endif -%}}
      {{%- endfor -%}}
    {{%- endif -%}}
  {{%- endfor -%}}{{%- endif -%}}{{%- endfor -%}}
  {{%- if ns.found -%}}{{{{- raise_exception('the input nests reserved strings too deeply') -}}}}
  {{%- endif -%}}
  {{{{- ns.text -}}}}
{{%- endmacro -%}}
{{%- macro turn(trusted, data, asks) -%}}
  {{%- set data = {untrusted} -%}}
  {{{{- {instruction} ~ ({trusted}) -}}}}
  {{%- if data -%}}{{{{- {data} ~ data -}}}}{{%- endif -%}}
  {{%- if asks -%}}{{{{- {response} if data else {alone} -}}}}{{%- endif -%}}
{{%- endmacro -%}}
{{%- set ns = namespace(trusted='', data='', open=false) -%}}
{{{{- {begin} -}}}}
{{%- for message in messages -%}}
  {{%- if message['content'] is not string -%}}
    {{{{- raise_exception('the content of a turn must be text') -}}}}
  {{%- endif -%}}
  {{%- if message['role'] == 'system' or message['role'] == 'user' -%}}
    {{%- set ns.trusted = ns.trusted ~ ({join} if ns.trusted else '') ~ message['content'] -%}}
    {{%- set ns.open = true -%}}
  {{%- elif message['role'] == 'input' -%}}
    {{%- set ns.data = ns.data ~ ({join} if ns.data else '') ~ message['content'] -%}}
  {{%- elif message['role'] == 'assistant' -%}}
    {{%- if not ns.open -%}}
      {{{{- raise_exception('give a system or user turn before an answer') -}}}}
    {{%- endif -%}}
    {{{{- turn(ns.trusted, ns.data, true) ~ {lead} ~ ({answer}) ~ {end} -}}}}
    {{%- set ns.trusted = '' -%}}{{%- set ns.data = '' -%}}{{%- set ns.open = false -%}}
  {{%- else -%}}
    {{{{- raise_exception('a turn is system, user, input or assistant: ' ~ message['role']) -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if ns.open -%}}
  {{{{- turn(ns.trusted, ns.data, add_generation_prompt) -}}}}
{{%- elif ns.data or add_generation_prompt -%}}
  {{{{- raise_exception('give a system or user turn: input alone is nobody\\'s instruction') -}}}}
{{%- endif -%}}
"""


def _literal(text: str) -> str:
    """The text as a string of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + "'"


def _full_width(text: str) -> str:
    """The text in characters that NFKC turns back into it."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _refuse_other(tokenizer, template: str, fmt: PromptFormat, instruction: str,
                  data: str) -> None:
    """Raises ValueError unless the template's tokens of a prompt and an answer are the kit's."""
    options = dict(chat_template=template, return_dict=False)
    why = ""
    try:
        prompt = encode(tokenizer, fmt, instruction, data).ids
        own = [*prompt, *encode_response(tokenizer, fmt, "Yes.")]
        asked = tokenizer.apply_chat_template(messages(instruction, data),
                                              add_generation_prompt=True, **options)
        finished = tokenizer.apply_chat_template(messages(instruction, data, "Yes."), **options)
    except (ValueError, TemplateError) as error:
        why = f" ({error})"
    if why or tuple(asked) != prompt or finished != own:
        raise ValueError(f"a chat template alone cannot keep the prompts of format {fmt.name!r}: "
                         f"this tokenizer reads the data {data[:40]!r} in another way inside the "
                         f"whole prompt than apart{why}; export an adapter without a template, or "
                         "serve the model behind the kit")
