"""The playground: instruction, data, injection and attack; both models answer side by side."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from types import SimpleNamespace

import ipywidgets
import pandas as pd

from .. import evaluation, figures, injections, logprobs, prompts
from ..models import Bundle
from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from ..visible import number
from .choices import ABSENT, Choice, choices
from .html import cards_html, message_html, prompt_html, table_html
from .inputs import WHICH, own_item, switched, verdict
from .searcher import searcher
from .view import Progress, View, answering, common, dashed, image, row, text_field, wide


@dataclass(frozen=True)
class Play:
    """One attacked prompt, both answers, and the log-probs of the two continuations.

    `item` is as the front-end leaves it, which deleted `deleted` reserved tokens, and
    `item.data[item.start:]` is the attacker's. `chosen` and `rejected` are what the insecure model
    says to the instruction and to the injection alone.
    """

    item: evaluation.Item
    insecure: str
    secure: str
    tokens: pd.DataFrame
    deleted: int = 0

    @property
    def chosen(self) -> str:
        return self.item.expected

    @property
    def rejected(self) -> str:
        return self.item.witness

    def logprobs(self) -> dict[str, float]:
        """`chosen_before` and so on, summed nats."""
        sums = self.tokens.groupby("response")[["before", "after"]].sum()
        return {f"{side}_{when}": float(sums.loc[side, when])
                for side in ("chosen", "rejected") for when in ("before", "after")}


def play(bundle: Bundle, instruction: str, data: str, injection: str, attack: str = "naive",
         found: str = "", seed: int = 0, progress: Progress = iter) -> Play:
    """Attacks the data, lets both models answer, and scores both continuations.

    The arguments, and ValueErrors, are those of `inputs.own_item`.
    """
    item, answers = own_item(bundle, instruction, data, injection, attack, found, seed), []
    for which in progress(WHICH):
        with switched(bundle, which):
            answers += evaluation.generate(bundle, [(instruction, item.data)])
    tokens = logprobs.token_table(bundle, instruction, item.data, item.expected, item.witness)
    deleted = _reserved(bundle, instruction, item.data)
    read = prompts.filter_data(item.data, bundle.format)
    item = replace(item, data=read, start=_border(bundle, item.data, item.start), end=len(read))
    return Play(item, *answers, tokens, deleted)


def _reserved(bundle: Bundle, instruction: str, data: str) -> int:
    """How many reserved tokens are typed in the data."""
    typed = prompts.encode(bundle.tokenizer, bundle.format, instruction, data, frontend=False)
    return len(prompts.audit(bundle.tokenizer, bundle.format, typed))


def deleted_words(count: int) -> str:
    """What the front-end did, in words; nothing if it had nothing to do."""
    return f"{count} delimiter{'s' * (count > 1)} deleted by the front-end." if count else ""


def _border(bundle: Bundle, data: str, start: int) -> int:
    """Where the attacker's text begins once the front-end has deleted delimiters."""
    return len(os.path.commonprefix([prompts.filter_data(text, bundle.format)
                                     for text in (data, data[:start])]))


def role_spans(bundle: Bundle, instruction: str, data: str, start: int) -> list[tuple[str, str]]:
    """The prompt as (role, text), from the roles of its tokens; `data[start:]` is "injection"."""
    prompt = prompts.encode(bundle.tokenizer, bundle.format, instruction, data)
    texts = []
    for role, group in itertools.groupby(zip(prompt.ids, prompt.roles, strict=True), itemgetter(1)):
        if role == "data":  # a token may join the two, so the border is one of characters
            parts = ("data", data[:start]), ("injection", data[start:])
            texts += [(name, text) for name, text in parts if text]
        else:
            texts.append((role, bundle.tokenizer.decode([token for token, _ in group])))
    return texts


def play_html(result: Play, names: Sequence[str] = WHICH) -> str:
    """Both answers as cards and side by side, and log p of both continuations (summed nats).

    `names` are those of the two models.
    """
    answers, sums = (result.insecure, result.secure), result.logprobs()
    verdicts = [verdict(text, result.item) for text in answers]
    rows = [("answer", *(text or "(nothing)" for text in answers)), ("verdict", *verdicts)]
    rows += [(f"log p({side})", number(sums[f"{side}_before"]), number(sums[f"{side}_after"]))
             for side in ("chosen", "rejected")]
    head = ("", f"{names[0]} (before)", f"{names[1]} (after)")
    continuations = (("chosen: to the instruction alone", result.chosen or "(nothing)"),
                     ("rejected: to the injection alone", result.rejected or "(nothing)"))
    told = message_html(deleted_words(result.deleted))
    return cards_html(zip(names, verdicts, answers, strict=True)) + told + table_html(
        head, rows, "Answers, and log p in nats per response") + table_html(
        ("", f"the {names[0]} model says"), continuations, "The two continuations")


def play_twin(bundle: Bundle, result: Play) -> dict:
    """The diagram of one play, as a PNG."""
    item = result.item
    return image(figures.diagram(result.logprobs() | {
        "instruction": item.instruction, "data": item.data[: item.start].rstrip(),
        "injection": item.data[item.start :], "chosen": result.chosen,
        "rejected": result.rejected, "delimiters": bundle.format.delimiters,
        "insecure_answer": result.insecure, "secure_answer": result.secure,
    }))


def playground(bundle: Bundle) -> View:
    """Instruction, data, injection and attack to choose; both models answer side by side.

    `found` is what a search found, and stands behind the injection. A real model that is on this
    machine can be chosen in place of the bundle, and is loaded then. Parts: model, absent (how to
    get the real model), examples (a row of buttons), instruction, data, injection, attack, found,
    answer (button), search (a view), prompt, result, message, progress.
    """
    offered = choices(bundle)
    parts = SimpleNamespace(
        model=wide(ipywidgets.Dropdown, "model", options=list(offered.items())),
        absent=ipywidgets.HTML("" if len(offered) > 1 else message_html(ABSENT)),
        instruction=text_field("instruction", DINOSAUR_HOST.instruction),
        data=text_field("data", DINOSAUR_HOST.data, 3),
        injection=text_field("injection", DINOSAUR_PAYLOAD.request, 3),
        attack=wide(ipywidgets.Dropdown, "attack", options=dashed(injections.ATTACKS)),
        found=text_field("found text", ""),
        answer=ipywidgets.Button(description="Answer", tooltip="let both models answer"),
        examples=row(), prompt=ipywidgets.HTML(), result=ipywidgets.HTML(), **common(),
    )
    fields = (parts.instruction, parts.data, parts.injection, parts.attack, parts.found)
    state: dict = {}

    def update(_=None) -> None:
        choice, *given = (field.value for field in (parts.model, *fields))
        if state.get("given") == (choice, given) or state.get("filling"):
            return
        state.update(given=(choice, given), result=None)
        if state.get("searched") != (choice, given[:-1]):  # or a verdict on other texts would stand
            parts.search.parts.cards.value = parts.search.parts.live.value = ""
        with answering(parts, "prompt", "result") as progress:
            result = state["result"] = play(choice.load(), *given, progress=progress)
            item = result.item
            parts.prompt.value = prompt_html(
                role_spans(choice.load(), item.instruction, item.data, item.start))
            parts.result.value = play_html(result, choice.names)

    def fill(*values: str) -> None:
        state["filling"] = True  # one answer for all fields
        for field, value in zip(fields, (*values, ""), strict=True):
            field.value = value
        state["filling"] = False
        update()

    def show_examples() -> None:
        parts.examples.children = [
            ipywidgets.Button(description=name, tooltip="fill in this example")
            for name in parts.model.value.examples]
        for button in parts.examples.children:
            button.on_click(lambda button: fill(*parts.model.value.examples[button.description]))

    def choose(_=None) -> None:
        show_examples()
        fill(*next(iter(parts.model.value.examples.values())))

    def ask() -> tuple[Choice, evaluation.Item]:
        choice, *given = (field.value for field in (parts.model, *fields[:-1]))
        state["searched"] = choice, given
        return choice, own_item(choice.load(), *given)

    def take(found: str) -> None:
        parts.found.value = found

    def twin() -> dict:
        if state["result"] is None:
            return {"text/html": parts.message.value}
        return play_twin(parts.model.value.load(), state["result"])

    show_examples()
    parts.search = searcher(ask, take, lambda: (
        parts.model, *parts.examples.children, *fields, parts.answer))
    parts.model.observe(choose, "value")
    for field in fields:
        field.observe(update, "value")
    parts.answer.on_click(update)
    update()
    return View("Playground", [parts.model, parts.absent, parts.examples, *fields,
                               row(parts.answer, parts.progress), parts.message, parts.result,
                               parts.prompt, parts.search], parts, twin)
