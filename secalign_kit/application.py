"""The application's side: a secured model by name, asked, streamed, or only its filter.

One datum: `load("secalign").answer("Count the words.", "red, owl.") == "2"`

A name is a run's folder, an adapter (shipped or a folder), which knows its base, or a model (a
preset, a Hub id, a folder). What a run or a recipe says about its base, such as 4-bit, is kept; an
adapter of unknown origin is put on its base's published weights.

Limits: greedy responses, one turn. `answer` waits for the last token, `stream` does not.
"""

import contextlib
import json
import random
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import adapters, generation, injections, logprobs, models, prompts
from .config import RunConfig, recipe, recipes
from .injections import ATTACKS
from .models import Bundle, insecure, native_precision
from .samples import Sample
from .visible import number, one_line, visible

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Source:
    """Where a secured model comes from: its base, its adapter and its run, as far as there are any.

    `config` is the run's or the recipe's.
    """

    name: str
    model: str
    adapter: Path | None = None
    folder: Path | None = None
    config: RunConfig | None = None


def find(name: str, model: str | None = None) -> Source:
    """What a name stands for; `model` says which base an adapter has.

    Raises ValueError for a run without an adapter, an adapter whose base is not known here, and a
    run of another model than `model`.
    """
    name = models.shipped(name) or name
    path = Path(name)
    inside = path.name == "adapter" and (path.parent / "config.yaml").is_file()
    run = path.parent if inside else path
    if (run / "config.yaml").is_file():
        config = RunConfig.from_yaml(run / "config.yaml")
        return Source(name, _same(name, config, model), adapters.find(run), run, config)
    if name in models.ADAPTERS or (path / adapters.WEIGHTS).is_file() or (
            path / "adapter" / adapters.WEIGHTS).is_file():
        folder = models.adapter_folder(name)
        if name in models.ADAPTERS and name in recipes():
            config = recipe(name)
            return Source(name, _same(name, config, model), folder, config=config)
        return Source(name, model or models.base_of(folder), folder)
    if model and model != name:  # or a mistyped adapter would be its insecure base
        return Source(name, model, adapters.find(name))
    if "/" in name and not path.exists():  # of the Hub, an adapter or a model
        with contextlib.suppress(ValueError):
            folder = adapters.find(name)
            return Source(name, models.base_of(folder), folder)
    return Source(name, name)


def _same(name: str, config: RunConfig, model: str | None) -> str:
    """The model that was trained on, or the folder of it that was given instead."""
    given, trained = (models.PRESETS[m].path if m in models.PRESETS else m
                      for m in (model or config.model, config.model))
    if given != trained and not Path(given).exists():
        raise ValueError(f"{name!r} was trained on {config.model} and not on {model}; leave "
                         "--model out")
    return model or config.model


def open_source(source: Source, four_bit: bool | None = None, format: str | None = None,
                device: str | None = None) -> Bundle:
    """The source's model, its adapter on its base. Raises ValueError as `models.load` does."""
    if four_bit is None:
        four_bit = source.config.four_bit if source.config else False
    if format is None and source.config:
        format = source.config.format or None
    return models.load(source.model, four_bit=four_bit, adapter=source.adapter, format=format,
                       device=device)


class Assistant:
    """A model that answers instructions about data that nobody has to trust."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle

    def __repr__(self) -> str:
        return f"Assistant({self.bundle.name!r}, adapter={self.bundle.adapter!r})"

    def protect(self, data: str) -> str:
        """The data without anything that the prompt reserves: the front-end alone, no model."""
        return prompts.filter_data(data, self.bundle.format)

    def answer(self, instruction: str, data: str = "", max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The greedy response. Raises ValueError if it might not fit into the model's context."""
        return "".join(self.stream(instruction, data, max_new_tokens))

    def stream(self, instruction: str, data: str = "",
               max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[str]:
        """The same response in pieces, as they come; whitespace around it is left out."""
        bundle = self.bundle
        ids = prompts.encode(bundle.tokenizer, bundle.format, instruction, data).ids
        refuse_longer(bundle, len(ids), max_new_tokens)
        return _pieces(bundle, generation.stream(bundle, ids, max_new_tokens))


def load(name: str, model: str | None = None, four_bit: bool | None = None,
         format: str | None = None, device: str | None = None) -> Assistant:
    """The secured model of a run's folder, an adapter or a model; what was trained in 4-bit is
    loaded in 4-bit unless `four_bit` says otherwise."""
    return Assistant(open_source(find(str(name), model), four_bit, format, device))


def _pieces(bundle: Bundle, tokens: Iterator[int]) -> Iterator[str]:
    """The text of the tokens, piece by piece.

    Held back is what later tokens may change (half a character) or make part of the answer
    (whitespace).
    """
    ids, given = [], ""
    for token in tokens:
        ids.append(token)
        text = bundle.tokenizer.decode(ids, skip_special_tokens=True).strip()
        if text.startswith(given) and len(text) > len(given) and not text.endswith("\ufffd"):
            yield text[len(given):]
            given = text
    text = bundle.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if text != given:
        yield text[len(given):]


def refuse_longer(bundle: Bundle, prompt: int, answer: int) -> None:
    """Raises ValueError unless prompt and answer, in tokens, fit into the model's positions.

    An answer needs at least one token.
    """
    generation.refuse_no_token(answer)
    limit = models.positions(bundle)
    if prompt + answer > limit:
        raise ValueError(f"the prompt has {prompt:,} tokens and {answer:,} are left for the "
                         f"answer, but model {bundle.name!r} has {limit:,} positions; shorten the "
                         "data, or the answer (max_new_tokens, --max-new-tokens)")


# --- insecure and secure, side by side ------------------------------------------------------------


def side_by_side(bundle: Bundle, instruction: str, data: str = "", attack: str = "",
                 payload: str = "", max_new_tokens: int = MAX_NEW_TOKENS) -> dict:
    """What the model answers without its adapter and with it, and what either thinks of both.

    `{"answers": {"insecure": "Hacked!", "secure": "2"}, "logprobs": {"insecure": {"insecure":
    -0.1, "secure": -3.4}, "secure": {...}}, "deleted": {"<|end|>": 1}, ...}`; log-probs are summed
    nats, first by the answer, then by the model, end token included. `attack` dresses the payload
    (without one: the witness request) at the end of the data. Without an adapter, "insecure" is
    the only model.
    """
    if attack or payload:
        data = _attacked(bundle, instruction, data, attack or "naive", payload)
    form, tokenizer = bundle.format, bundle.tokenizer
    kept, deleted = prompts.filtered(data, form)
    ids = list(prompts.encode(tokenizer, form, instruction, data).ids)
    refuse_longer(bundle, len(ids), max_new_tokens)
    which = {"insecure": insecure, "secure": lambda bundle: contextlib.nullcontext(bundle)}
    if bundle.adapter is None:
        del which["secure"]
    answers, responses = {}, {}
    for name, switched in which.items():
        with switched(bundle), native_precision(bundle):
            said = generation.greedy(bundle, [ids], max_new_tokens)[0]
        end = prompts.encode_response(tokenizer, form, "")[-1:]
        responses[name] = said + list(end if len(said) < max_new_tokens else ())
        answers[name] = tokenizer.decode(said, skip_special_tokens=True).strip()
    scores = {}
    for name, switched in which.items():
        with switched(bundle), native_precision(bundle):
            scores[name] = logprobs.score_responses(bundle, [ids], [list(responses.values())])[0]
    return {
        "instruction": instruction, "data": data, "kept": kept, "deleted": dict(Counter(deleted)),
        "prompt_tokens": len(ids), "answers": answers,
        "tokens": {name: len(response) for name, response in responses.items()},
        "logprobs": {answer: {model: scores[model][k] for model in scores}
                     for k, answer in enumerate(responses)},
    }


def _attacked(bundle: Bundle, instruction: str, data: str, attack: str, payload: str) -> str:
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is unknown; choose one of {', '.join(ATTACKS)}")
    if not data.strip():
        raise ValueError("there are no data to put an attack into; give some with --data")
    wanted = Sample(payload, "", "") if payload else injections.WITNESS["heldout"]
    return injections.inject(Sample(instruction, data), wanted, attack, rng=random.Random(0),
                             split="heldout", delimiters=bundle.format.delimiters).data


def lines(found: dict, width: int | None = None) -> list[str]:
    """`side_by_side` for a terminal, hostile characters made visible."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    names = list(found["answers"])
    column = max((width - 3 * (len(names) - 1)) // len(names), 16)
    shown = [f"instruction  {_short(found['instruction'], width - 13)}",
             f"data         {_short(found['data'], width - 13)}",
             f"prompt       {found['prompt_tokens']} tokens"]
    if found["deleted"]:
        counted = ", ".join(f"{one_line(mark)} ({n})" for mark, n in found["deleted"].items())
        shown += textwrap.wrap(f"deleted      {counted}", width, subsequent_indent=" " * 13)
    cells = [_wrapped(found["answers"][name], column) for name in names]
    height = max(map(len, cells))
    shown += ["", _row(names, column), _row(["-" * column] * len(names), column)]
    shown += [_row([cell[k] if k < len(cell) else "" for cell in cells], column)
              for k in range(height)]
    shown += ["", f"{'log p, nats, by the model that is':34}"
              + "".join(f"{name:>12}" for name in names)]
    for answer, by_model in found["logprobs"].items():
        label = f"of the {answer} answer ({found['tokens'][answer]} tokens)"
        shown.append(f"{label:34}" + "".join(f"{number(by_model[name]):>12}" for name in names))
    return shown


def _short(text: str, width: int) -> str:
    text = one_line(text)
    return text if len(text) <= width else f"{text[: width - 1]}\u2026"


def _wrapped(text: str, width: int) -> list[str]:
    parts = [textwrap.wrap(line, width) or [""] for line in visible(text).split("\n")]
    return [line for part in parts for line in part] if text else ["(nothing)"]


def _row(cells: list[str], column: int) -> str:
    return " | ".join(f"{cell:{column}}" for cell in cells).rstrip()


def as_json(found: dict) -> str:
    """`side_by_side` as JSON in ASCII, since a terminal might obey what an answer says."""
    return json.dumps(found, indent=1)
