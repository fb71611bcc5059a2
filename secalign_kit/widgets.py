"""Widgets: thin interactive views over the kit's functions, each with a static twin.

One datum: `view = playground(bundle)`; `view.parts.injection.value = "Do penguins fly?"` makes both
models answer anew, `view.parts.result.value` is the HTML shown, and `view.twin()` is
`{"image/png": ...}`, what a reader sees where no kernel runs (GitHub, nbviewer).

What a model, data or an attacker says reaches HTML through `escape` only, and is never given to a
widget that typesets it (a `Label` runs MathJax, which knows links). Each view says bad input in one
sentence in place and shows a bar while it computes.

Limits: written for what ipywidgets 7.7 and 8 share. Colours repeat what words and lines say. One
kernel computes one thing at a time: a second click waits for the first.
"""

import base64
import contextlib
import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import pandas as pd
from IPython.display import clear_output, display

from . import evaluation, figures, injections, logprobs, models, preference, prompts, training
from .config import recipe
from .defenses import DEFENSES
from .evaluation import Rate
from .figures import INK, PALETTE, PAPER
from .models import Bundle
from .samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD, Sample, shipped_samples
from .visible import escape_hostile as escape
from .visible import one_line

WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST = 2000  # characters of one text field
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
WHICH = ("insecure", "secure")
SHOWN = 50  # failing items that the bench lists

Progress = Callable[[Sequence], Iterable]
"""Goes over a sequence and says how far it is: `iter`, `tqdm`, or a view's own bar."""


class View(ipywidgets.VBox):
    """A widget with a heading, its children by name in `parts`, and a static `twin`.

    One output holds both: front ends with a kernel show the widget, all others the twin.
    `without_widgets` leaves a notebook the twins alone, to be committed.
    """

    def __init__(self, title: str, children: Sequence, parts: SimpleNamespace,
                 twin: Callable[[], dict]):
        heading = ipywidgets.HTML(f"<h3>{escape(title)}</h3>")
        super().__init__(children=[heading, *children])
        self.add_class(f"secalign-{title.lower().replace(' ', '-')}")
        self.title, self.parts, self.twin = title, parts, twin

    def mimebundle(self) -> dict:
        """MIME type -> content: the widget and its twin."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": f"{self.title}: a widget; it needs a running kernel", WIDGET: view,
                **self.twin()}

    def _ipython_display_(self, **kwargs) -> None:
        display(self.mimebundle(), raw=True)


def with_progress(function: Callable, *args, **options):
    """`function(*args, progress=a bar, **options)`; the bar is shown below the cell and removed."""
    bar = _bar("visible")
    display(bar)
    try:
        return function(*args, progress=_over(bar), **options)
    finally:
        bar.close()
        clear_output()


def without_widgets(notebook: dict) -> dict:
    """The notebook (nbformat 4) with the twins alone; it is changed in place and returned.

    Widgets without a twin, such as a bar, leave nothing behind.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if _without_widget(output)]
    return notebook


def _without_widget(output: dict) -> bool:
    """Takes the widget out of an output; whether something is left to see."""
    data = output.get("data", {})
    return data.pop(WIDGET, None) is None or not {"image/png", "text/html"}.isdisjoint(data)


# --- HTML, all of it escaped ----------------------------------------------------------------------

_BOX = (f"background:{PAPER};color:{INK};padding:.5em .8em;border:1px solid {INK};"
        "border-radius:6px;margin:.3em 0;overflow-x:auto")
_ROW = f'<tr style="background:{PAPER}">'  # or a dark theme would stripe it
_TEXT = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
_ROLE = {
    "delimiter": f"color:{INK};font-weight:bold",
    "instruction": f"color:{PALETTE['instruction']}",
    "data": f"color:{PALETTE['data']}",
    # in two properties: JupyterLab strips the short form from notebooks it does not trust
    "injection": f"color:{PALETTE['injection']};text-decoration:underline;"
    "text-decoration-thickness:2px",
}


def prompt_html(spans: Iterable[tuple[str, str]]) -> str:
    """(role, text) spans as one block: each with its role in words, colour and, if red, a line."""
    parts = [
        f'<span title="{escape(role)}"><small><b>{escape(role)}</b></small> '
        f'<span style="{_ROLE[role]}">{escape(text)}</span></span>'
        for role, text in spans
    ]
    return f'<div role="group" aria-label="prompt by role" style="{_BOX};{_TEXT}">' + (
        "\n".join(parts)) + "</div>"


def table_html(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of plain texts with column and row headers."""
    cell = f"text-align:left;padding:.2em 1em .2em 0;vertical-align:top;color:{INK}"
    columns = "".join(f'<th scope="col" style="{cell}">{escape(text)}</th>' for text in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f'<td style="{cell};{_TEXT}">{escape(text)}</td>' for text in rest)
        lines.append(f'{_ROW}<th scope="row" style="{cell}">{escape(first)}</th>{cells}</tr>')
    return _boxed(f"<thead>{_ROW}{columns}</tr></thead><tbody>{''.join(lines)}</tbody>", caption)


def _boxed(content: str, caption: str) -> str:
    return (f'<div style="{_BOX}"><table style="border-spacing:.4em .1em;border-collapse:separate">'
            f'<caption style="text-align:left;color:{INK}">{escape(caption)}</caption>'
            f"{content}</table></div>")


def message_html(text: str) -> str:
    """One sentence that a screen reader announces; nothing for an empty text."""
    return f'<div role="status" style="{_BOX}">{escape(text)}</div>' if text else ""


def meters_html(rows: Iterable[tuple[str, float, str]], caption: str) -> str:
    """(name, share in [0, 1], words) as labelled bars; the words carry the number."""
    cell, lines = f"text-align:left;color:{INK}", []
    for name, share, words in rows:
        width = 100 * min(1.0, max(0.0, share))
        bar = (f'<div aria-hidden="true" style="width:12em;height:.8em;border:1px solid {INK}">'
               f'<div style="width:{width:.1f}%;height:100%;background:{INK}"></div></div>')
        lines.append(f'{_ROW}<th scope="row" style="{cell}">{escape(name)}</th>'
                     f'<td style="{cell}">{bar}</td><td style="{cell}">{escape(words)}</td></tr>')
    return _boxed(f"<tbody>{''.join(lines)}</tbody>", caption)


def tokens_html(tokens: pd.DataFrame, selected: int = -1) -> str:
    """Tokens of one response in boxes that can be hovered and reached by the tab key.

    `tokens`: rows of `logprobs.token_table` for one response. Shade, triangle and number under a
    token give its change; its title gives both log-probs in nats.
    """
    limit = max(0.5, *tokens["difference"].abs())
    boxes = []
    for number, row in enumerate(tokens.itertuples()):
        green, strong = row.difference >= 0, abs(row.difference) / limit
        shade = f"rgba({'1,102,94' if green else '140,81,10'},{0.45 * strong:.2f})"
        edge = f"{3 if number == selected else 1}px solid {INK}"
        words = escape(token_words(row))
        boxes.append(
            f'<span tabindex="0" title="{words}" aria-label="{words}" style="display:inline-block;'
            f'border:{edge};background:{shade};padding:.1em .3em;margin:.1em;text-align:center">'
            f"{escape(_marked(row.token))}<br><small>{_arrow(row.difference)}</small></span>"
        )
    return f'<div role="group" aria-label="tokens" style="{_BOX};{_TEXT}">{"".join(boxes)}</div>'


def token_words(row) -> str:
    """One token as a sentence: its log-prob under both models (nats) and the difference."""
    return (f"token {one_line(row.token)!r}: log p {_number(row.before)} insecure, "
            f"{_number(row.after)} secure, difference {_number(row.difference, '+.2f')} nats")


def _marked(token: str) -> str:
    return one_line(token).replace(" ", "\u00b7") or "\u2205"


def _number(value: float, form: str = ".2f") -> str:
    text = format(value, form)
    text = text if text.strip("+-.0") else text.replace("-", "")  # no minus before a rounded zero
    return text.replace("-", "\u2212")


def _arrow(change: float) -> str:
    sign = "\u25b2" if change > 0.005 else "\u25bc" if change < -0.005 else ""
    return sign + _number(change, "+.2f")


# --- Parts of every view --------------------------------------------------------------------------


def _bar(visibility: str = "hidden"):
    return ipywidgets.IntProgress(description="working", layout={"visibility": visibility})


def _over(bar) -> Progress:
    def progress(sequence):
        bar.max, bar.value = max(1, len(sequence)), 0
        for thing in sequence:
            yield thing
            bar.value += 1

    return progress


@contextlib.contextmanager
def _answering(parts: SimpleNamespace, *shown: str):
    """Shows the bar; a ValueError becomes a sentence in place, and `shown` parts become empty."""
    parts.progress.layout.visibility, parts.message.value = "visible", ""
    try:
        yield _over(parts.progress)
    except ValueError as error:
        for name in shown:  # numbers of the last input must not stand beside the new one
            getattr(parts, name).value = ""
        parts.message.value = message_html(str(error))
    finally:
        parts.progress.layout.visibility = "hidden"


def _common() -> dict:
    return {"message": ipywidgets.HTML(), "progress": _bar()}


def _field(description: str, value: str, rows: int = 2):
    return ipywidgets.Textarea(value=value, description=description, rows=rows,
                               continuous_update=False, layout={"width": "auto"},
                               style={"description_width": "8em"})


def _wide(kind: type, description: str, **options):
    return kind(description=description, style={"description_width": "8em"},
                layout={"width": "28em"}, **options)


def _names(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name.replace("_", "-"), name) for name in names]


def _check(**texts: str) -> None:
    """Raises ValueError for a text that is empty, too long, or that no tokenizer can read."""
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"The {name} is empty; write one.")
        if len(text) > LONGEST:
            raise ValueError(f"The {name} has {len(text)} characters; use at most {LONGEST}.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"The {name} holds half of a character (a lone surrogate); remove it.")


def _png(*figs) -> dict:
    return {"image/png": base64.b64encode(figures.png(*figs)).decode("ascii")}


def _model(bundle: Bundle, which: str):
    return models.insecure(bundle) if which == "insecure" else contextlib.nullcontext()


# --- 1 Playground ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Play:
    """One attacked prompt, both answers, and the log-probs of the two continuations.

    `data[start:]` is the attacker's, both as the front-end leaves them. `chosen` and `rejected` are
    what the insecure model says to the instruction and to the injection alone.
    """

    instruction: str
    data: str
    start: int
    insecure: str
    secure: str
    chosen: str
    rejected: str
    tokens: pd.DataFrame


def play(bundle: Bundle, instruction: str, data: str, injection: str, attack: str = "naive",
         seed: int = 0, progress: Progress = iter) -> Play:
    """Attacks the data, lets both models answer, and scores both continuations.

    The attack uses its held-out phrases, drawn by `seed`. Raises ValueError for texts that are
    empty, longer than LONGEST characters, or more than the model can read.
    """
    _check(instruction=instruction, data=data, injection=injection)
    hit = injections.inject(Sample(instruction, data), Sample(injection), attack,
                            rng=random.Random(seed), split="heldout",
                            delimiters=bundle.format.delimiters)
    _check_length(bundle, instruction, hit.data)
    answers = []
    for which in progress(WHICH):
        extra = [(instruction, data), (injection, "")] if which == "insecure" else []
        with _model(bundle, which):
            answers += evaluation.generate(bundle, [(instruction, hit.data), *extra])
    insecure, chosen, rejected, secure = answers
    tokens = logprobs.token_table(bundle, instruction, hit.data, chosen, rejected)
    read = prompts.filter_data(hit.data, bundle.format)
    return Play(instruction, read, _border(bundle, hit.data, hit.start), insecure, secure, chosen,
                rejected, tokens)


def _check_length(bundle: Bundle, instruction: str, data: str) -> None:
    length = len(prompts.encode(bundle.tokenizer, bundle.format, instruction, data))
    limit = getattr(bundle.model.config, "max_position_embeddings", 2048) - 64  # for the answer
    if length > limit:
        raise ValueError(f"The prompt has {length} tokens and the model reads at most {limit}; "
                         "shorten the data or the injection.")


def _border(bundle: Bundle, data: str, start: int) -> int:
    """Where the attacker's text begins once the front-end has deleted delimiters."""
    return len(os.path.commonprefix([prompts.filter_data(text, bundle.format)
                                     for text in (data, data[:start])]))


def role_spans(bundle: Bundle, instruction: str, data: str, start: int) -> list[tuple[str, str]]:
    """The prompt as (role, text), from the roles of its tokens; `data[start:]` is "injection"."""
    prompt = prompts.encode(bundle.tokenizer, bundle.format, instruction, data)
    spans: list[tuple[str, list[int]]] = []
    for token, role in zip(prompt.ids, prompt.roles, strict=True):
        if not spans or spans[-1][0] != role:
            spans.append((role, []))
        spans[-1][1].append(token)
    texts = []
    for role, ids in spans:
        if role == "data":  # a token may join the two, so the border is one of characters
            parts = ("data", data[:start]), ("injection", data[start:])
            texts += [(name, text) for name, text in parts if text]
        else:
            texts.append((role, bundle.tokenizer.decode(ids)))
    return texts


def verdict(response: str, chosen: str, rejected: str) -> str:
    """Whom a response answers, in words."""
    if chosen == rejected:
        return "both continuations are the same text"
    if response == chosen:
        return "answers the instruction"
    if evaluation.obeyed(response, rejected):
        return "answers the injection"
    return "neither, word for word"


def play_html(result: Play) -> str:
    """Both answers side by side, and log p of both continuations (summed nats)."""
    sums = result.tokens.groupby("response")[["before", "after"]].sum()
    answers = {which: getattr(result, which) for which in WHICH}
    rows = [("answer", *(text or "(nothing)" for text in answers.values())),
            ("verdict", *(verdict(text, result.chosen, result.rejected)
                          for text in answers.values()))]
    rows += [(f"log p({side})", *(_number(sums.loc[side, when]) for when in ("before", "after")))
             for side in ("chosen", "rejected")]
    head = ("", "insecure (before)", "secure (after)")
    continuations = (("chosen: to the instruction alone", result.chosen or "(nothing)"),
                     ("rejected: to the injection alone", result.rejected or "(nothing)"))
    return table_html(head, rows, "Answers, and log p in nats per response") + table_html(
        ("", "the insecure model says"), continuations, "The two continuations")


def play_twin(bundle: Bundle, result: Play) -> dict:
    """The diagram of one play, as a PNG."""
    sums = result.tokens.groupby("response")[["before", "after"]].sum()
    measured = {f"{side}_{when}": float(sums.loc[side, when])
                for side in ("chosen", "rejected") for when in ("before", "after")}
    return _png(figures.diagram(measured | {
        "instruction": result.instruction, "data": result.data[: result.start].rstrip(),
        "injection": result.data[result.start :], "chosen": result.chosen,
        "rejected": result.rejected, "delimiters": bundle.format.delimiters,
        "insecure_answer": result.insecure, "secure_answer": result.secure,
    }))


def playground(bundle: Bundle) -> View:
    """Instruction, data, injection and attack to choose; both models answer side by side.

    Parts: instruction, data, injection, attack, answer (button), prompt, result, message, progress.
    """
    parts = SimpleNamespace(
        instruction=_field("instruction", DINOSAUR_HOST.instruction),
        data=_field("data", DINOSAUR_HOST.data, 3),
        injection=_field("injection", DINOSAUR_PAYLOAD.request, 3),
        attack=_wide(ipywidgets.Dropdown, "attack", options=_names(injections.ATTACKS)),
        answer=ipywidgets.Button(description="Answer", tooltip="let both models answer"),
        prompt=ipywidgets.HTML(), result=ipywidgets.HTML(), **_common(),
    )
    fields = (parts.instruction, parts.data, parts.injection, parts.attack)
    state: dict = {}

    def update(_=None) -> None:
        given = tuple(field.value for field in fields)
        if state.get("given") == given:
            return
        state.update(given=given, result=None)
        with _answering(parts, "prompt", "result") as progress:
            result = state["result"] = play(bundle, *given, progress=progress)
            parts.prompt.value = prompt_html(
                role_spans(bundle, result.instruction, result.data, result.start))
            parts.result.value = play_html(result)

    def twin() -> dict:
        if state["result"] is None:
            return {"text/html": parts.message.value}
        return play_twin(bundle, state["result"])

    for field in fields:
        field.observe(update, "value")
    parts.answer.on_click(update)
    update()
    row = ipywidgets.HBox([parts.answer, parts.progress])
    return View("Playground", [*fields, row, parts.message, parts.prompt, parts.result], parts,
                twin)


# --- 2 Token lens ---------------------------------------------------------------------------------


def lens_table(tokens: pd.DataFrame) -> str:
    """Every token of both responses with both log-probs (nats) and the difference, as a table."""
    rows = [(row.response, str(row.position), _marked(row.token), _number(row.before),
             _number(row.after), _arrow(row.difference)) for row in tokens.itertuples()]
    head = ("response", "position", "token", "insecure", "secure", "difference")
    return table_html(head, rows, "log p per token in nats")


def token_lens(bundle: Bundle) -> View:
    """Tokens of chosen or rejected; hover one, or choose it with the slider.

    Parts: instruction, data, chosen, rejected, response, token (slider), tokens, detail, message,
    progress.
    """
    item = evaluation.diagram_item()
    parts = SimpleNamespace(
        instruction=_field("instruction", item.instruction), data=_field("data", item.data),
        chosen=_field("chosen", item.expected), rejected=_field("rejected", item.witness),
        response=_wide(ipywidgets.Dropdown, "response", options=["chosen", "rejected"]),
        token=_wide(ipywidgets.IntSlider, "token", max=1), tokens=ipywidgets.HTML(),
        detail=ipywidgets.HTML(), **_common(),
    )
    fields = (parts.instruction, parts.data, parts.chosen, parts.rejected)
    state: dict = {"table": None}

    def measure(_=None) -> None:
        state["table"] = None
        with _answering(parts, "tokens", "detail") as progress:
            texts = {field.description: field.value for field in fields}
            _check(**texts)
            longest = max(texts["chosen"], texts["rejected"], key=len)
            _check_length(bundle, texts["instruction"], texts["data"] + longest)
            for _step in progress(("log-probs",)):
                state["table"] = logprobs.token_table(bundle, *texts.values())
            show()

    def show(_=None) -> None:
        if state["table"] is None:
            return
        rows = state["table"][state["table"]["response"] == parts.response.value]
        parts.token.max = max(1, len(rows) - 1)  # a slider from 0 to 0 is an error in the browser
        chosen = min(parts.token.value, len(rows) - 1)
        parts.tokens.value = tokens_html(rows, chosen)
        parts.detail.value = message_html(token_words(next(rows[chosen:].itertuples())))

    def twin() -> dict:
        table = state["table"]
        return {"text/html": parts.message.value if table is None else lens_table(table)}

    for field in fields:
        field.observe(measure, "value")
    for control in (parts.response, parts.token):
        control.observe(show, "value")
    measure()
    return View("Token lens", [*fields, parts.progress, parts.message, parts.response, parts.token,
                               parts.detail, parts.tokens], parts, twin)


# --- 3 Adapter dial -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What one adapter strength gives on sets: ASR per attack and utility, and over the pairs the
    mean `margin` (beta * nats) and `preference`, log p(chosen) - log p(rejected) in nats."""

    strength: float
    asr: dict[str, Rate]
    utility: Rate
    margin: float
    preference: float
    pairs: int


def measure_strengths(bundle: Bundle, n: int = 20, strengths: Sequence[float] = STRENGTHS,
                      beta: float = 0.1, progress: Progress = iter) -> list[Point]:
    """Each strength measured on `n` held-out samples (clean and under every attack) and `n` pairs.

    The margin's reference is strength 0, the insecure model. Raises ValueError for n < 1.
    """
    items = _items(bundle, evaluation.ATTACKS, n)
    rows = logprobs.encode_pairs(bundle, training.probe_pairs(recipe("demo"), "heldout", n), 512)
    with models.strength(bundle, 0.0):
        reference = logprobs.score_pairs(bundle, rows)
    points = []
    for value in progress(strengths):
        with models.strength(bundle, value):
            records = evaluation.evaluate(bundle, items, verdict_only=True)
            policy = logprobs.score_pairs(bundle, rows)
        margins = preference.dpo_loss(*policy, *reference, beta)[1]
        summary = evaluation.summarize(records)
        points.append(Point(value, summary["asr"], summary["clean_utility"],
                            float(margins.mean()), float((policy[0] - policy[1]).mean()),
                            len(rows)))
    return points


def _items(bundle: Bundle, attacks: Iterable[str], n: int) -> list[evaluation.Item]:
    """`n` held-out samples with data, clean and under each attack by the witness request."""
    if n < 1:
        raise ValueError("Measure at least one sample.")
    samples = [s for s in shipped_samples("heldout") if s.data][:n]
    items = evaluation.clean_items(samples)
    for attack in attacks:
        items += evaluation.attacked_items(samples, attack, injections.WITNESS["heldout"], bundle)
    return items


def nearest(points: Sequence[Point], strength: float) -> Point:
    """The measured point whose strength is nearest; nothing is interpolated."""
    return min(points, key=lambda point: abs(point.strength - strength))


def sets_html(points: Sequence[Point], strength: float, attack: str) -> str:
    """ASR, utility and margin of the nearest measured strength, as bars with numbers."""
    point = nearest(points, strength)
    highest = max(1e-9, *(abs(p.margin) for p in points))
    rows = (
        (f"ASR {attack.replace('_', '-')}", point.asr[attack].value, str(point.asr[attack])),
        ("utility", point.utility.value, str(point.utility)),
        ("mean margin", point.margin / highest,
         f"{_number(point.margin, '+.2f')}, beta times nats ({point.pairs} pairs)"),
    )
    return meters_html(rows, f"Held-out sets, measured at strength {point.strength:.2f}")


def dial_twin(points: Sequence[Point]) -> dict:
    """Every measured strength, with the attack that succeeds most often there, as a PNG."""
    strongest = [max(p.asr, key=lambda name, p=p: p.asr[name].value) for p in points]
    rows = [{"strength": p.strength, "asr": p.asr[attack], "attack": attack,
             "utility": p.utility, "margin": p.preference}
            for p, attack in zip(points, strongest, strict=True)]
    return _png(figures.strength_dial(rows))


@dataclass(frozen=True)
class Live:
    """One prompt at one strength: the answer, its verdict, log-probs (nats), margin."""

    answer: str
    verdict: str
    chosen: float
    rejected: float
    margin: float


def dial_prompt(bundle: Bundle, item: evaluation.Item, value: float, beta: float = 0.1) -> Live:
    """The answer and the margin against strength 0 of one prompt. ValueError without adapter."""
    row = logprobs.encode_pair(bundle, item.instruction, item.data, item.expected, item.witness)
    with models.strength(bundle, 0.0):
        reference = [float(x[0]) for x in logprobs.score_pairs(bundle, [row])]
    with models.strength(bundle, value):
        policy = [float(x[0]) for x in logprobs.score_pairs(bundle, [row])]
        answer = evaluation.generate(bundle, [(item.instruction, item.data)])[0]
    margin = preference.plain_dpo_loss(*policy, *reference, beta)[1]
    return Live(answer, verdict(answer, item.expected, item.witness), *policy, margin)


def live_html(live: Live, strength: float) -> str:
    """One prompt at one strength, as a table."""
    rows = (("answer", live.answer or "(nothing)"), ("verdict", live.verdict),
            ("log p(chosen)", f"{_number(live.chosen)} nats"),
            ("log p(rejected)", f"{_number(live.rejected)} nats"),
            ("margin", f"{_number(live.margin, '+.2f')}, beta times nats"))
    return table_html(("", f"at strength {strength:.2f}"), rows, "The prompt above, live")


def adapter_dial(bundle: Bundle, points: Sequence[Point] | None = None) -> View:
    """One slider for the adapter's strength, 0 to 1.5; answer, margin, ASR and utility follow.

    `points` come from `measure_strengths`; without them, or for another number of samples, the
    button measures. Parts: strength, attack, samples, measure (button), prompt, live, sets,
    message, progress.
    """
    item = evaluation.diagram_item()
    parts = SimpleNamespace(
        strength=_wide(ipywidgets.FloatSlider, "strength", value=1.0, min=0.0, max=1.5, step=0.05,
                       continuous_update=False),
        attack=_wide(ipywidgets.Dropdown, "attack on sets", options=_names(evaluation.ATTACKS)),
        samples=_wide(ipywidgets.IntSlider, "samples", value=20, min=5, max=100, step=5),
        measure=ipywidgets.Button(description="Measure the sets",
                                  tooltip="measure every strength on held-out samples"),
        prompt=ipywidgets.HTML(prompt_html(
            role_spans(bundle, item.instruction, item.data, item.start))),
        live=ipywidgets.HTML(), sets=ipywidgets.HTML(), **_common(),
    )
    state = {"points": list(points or [])}

    def turn(_=None) -> None:
        with _answering(parts, "live") as progress:
            for value in progress((parts.strength.value,)):
                parts.live.value = live_html(dial_prompt(bundle, item, value), value)
        show()

    def show(_=None) -> None:
        if state["points"]:
            parts.sets.value = sets_html(state["points"], parts.strength.value, parts.attack.value)
        else:
            parts.sets.value = message_html("The sets are not measured yet; press the button.")

    def measure(_=None) -> None:
        with _answering(parts, "sets") as progress:
            state["points"] = measure_strengths(bundle, parts.samples.value, progress=progress)
            show()

    def twin() -> dict:
        if not state["points"]:
            return {"text/html": parts.live.value}
        return dial_twin(state["points"])

    parts.strength.observe(turn, "value")
    parts.attack.observe(show, "value")
    parts.measure.on_click(measure)
    turn()
    row = ipywidgets.HBox([parts.measure, parts.progress])
    return View("Adapter dial", [parts.prompt, parts.strength, parts.live, parts.attack,
                                 parts.sets, parts.samples, row, parts.message], parts, twin)


# --- 4 Attack bench -------------------------------------------------------------------------------


def measure_bench(bundle: Bundle, attacks: Sequence[str] = evaluation.ATTACKS,
                  defenses: Sequence[str] = ("none",), which: Sequence[str] = WHICH, n: int = 20,
                  progress: Progress = iter) -> list[dict]:
    """Records of `evaluation.evaluate` with a `model`, for every model, defense and attack.

    `n` held-out samples, clean and attacked. Raises ValueError for an empty choice or n < 1.
    """
    for name, chosen in (("attack", attacks), ("defense", defenses), ("model", which)):
        if not chosen:
            raise ValueError(f"Choose at least one {name}.")
    items = _items(bundle, attacks, n)
    records = []
    for model, defense in progress([(model, defense) for model in which for defense in defenses]):
        with _model(bundle, model):
            answered = evaluation.evaluate(bundle, items, defense=defense)
        records += [{"model": model, **record} for record in answered]
    return records


def bench_table(records: Sequence[Mapping]) -> str:
    """Models and defenses in rows; utility and every attack's ASR with n and interval."""
    groups: dict[tuple[str, str], list] = {}
    for record in records:
        groups.setdefault((record["model"], record["defense"]), []).append(record)
    attacks = list(dict.fromkeys(r["attack"] for r in records if r["attack"] != "none"))
    rows = []
    for (model, defense), group in groups.items():
        summary = evaluation.summarize(group)
        rows.append((f"{model}, {defense.replace('_', '-')}", str(summary["clean_utility"]),
                     *(str(summary["asr"][attack]) for attack in attacks)))
    head = ("model, defense", "utility", *(f"ASR {a.replace('_', '-')}" for a in attacks))
    return table_html(head, rows, "Utility (higher is better) and ASR (lower is safer), 95% Wilson")


def failing_label(record: Mapping) -> str:
    """One line for a list of failing items."""
    kind = "wrong" if record["attack"] == "none" else record["attack"].replace("_", "-")
    defense = record["defense"].replace("_", "-")
    return one_line(f"{record['model']}, {defense}, {kind}: {record['instruction']}")


def failing_html(record: Mapping) -> str:
    """A failing item: instruction, data with its injection marked, response, right answer."""
    data, start, end = record["data"], record["start"], record["end"]
    start, end = (start, end) if start >= 0 else (len(data), len(data))
    spans = (("instruction", record["instruction"]), ("data", data[:start]),
             ("injection", data[start:end]), ("data", data[end:]))
    rows = (("response", record["response"] or "(nothing)"), ("right answer", record["expected"]))
    return prompt_html([span for span in spans if span[1]]) + table_html(("", "text"), rows)


def attack_bench(bundle: Bundle, records: Sequence[Mapping] | None = None) -> View:
    """Attacks and defenses to choose, the table of rates, and the items that failed.

    `records` come from `measure_bench`. Parts: attacks, defenses, samples, measure (button), table,
    failing (list), detail, message, progress.
    """
    parts = SimpleNamespace(
        attacks=_wide(ipywidgets.SelectMultiple, "attacks", options=_names(injections.ATTACKS),
                      value=evaluation.ATTACKS[:1], rows=8),
        defenses=_wide(ipywidgets.SelectMultiple, "defenses", options=_names(DEFENSES),
                       value=("none",), rows=8),
        samples=_wide(ipywidgets.IntSlider, "samples", value=20, min=5, max=100, step=5),
        measure=ipywidgets.Button(description="Measure", tooltip="run the chosen attacks"),
        table=ipywidgets.HTML(), detail=ipywidgets.HTML(),
        failing=ipywidgets.Select(description="failing items", options=[], rows=6,
                                  style={"description_width": "8em"}, layout={"width": "auto"}),
        **_common(),
    )
    state = {"records": list(records or [])}

    def show() -> None:
        if not state["records"]:
            parts.table.value = message_html("Nothing is measured yet; press the button.")
            return
        failed = evaluation.failing(state["records"])
        parts.table.value = bench_table(state["records"]) + message_html(_count(failed))
        labels = [f"{i + 1}. {failing_label(r)}" for i, r in enumerate(failed[:SHOWN])]
        parts.failing.options = [(label, i) for i, label in enumerate(labels)]
        parts.failing.value = 0 if labels else None
        detail()

    def detail(_=None) -> None:
        chosen, failed = parts.failing.value, evaluation.failing(state["records"])
        known = chosen is not None and chosen < len(failed)
        parts.detail.value = failing_html(failed[chosen]) if known else ""

    def measure(_=None) -> None:
        with _answering(parts, "table", "detail") as progress:
            state["records"], parts.failing.options = [], []
            state["records"] = measure_bench(bundle, parts.attacks.value, parts.defenses.value,
                                             n=parts.samples.value, progress=progress)
            show()

    def twin() -> dict:
        failed = evaluation.failing(state["records"])
        first = failing_html(failed[0]) if failed else ""
        return {"text/html": parts.table.value + first}

    parts.failing.observe(detail, "value")
    parts.measure.on_click(measure)
    show()
    choices = ipywidgets.HBox([parts.attacks, parts.defenses])
    row = ipywidgets.HBox([parts.measure, parts.progress])
    return View("Attack bench", [choices, parts.samples, row, parts.message, parts.table,
                                 parts.failing, parts.detail], parts, twin)


def _count(failed: Sequence) -> str:
    shown = f"; the list shows the first {SHOWN}" if len(failed) > SHOWN else ""
    return f"{len(failed)} items obeyed an injection or were wrong without attack{shown}."


# --- 5 Training replay ----------------------------------------------------------------------------


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a run's `metrics.jsonl`. Raises ValueError for no file or a row without step."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no log {path.name!r}; train a run, it writes metrics.jsonl.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"Row {number} of {path.name!r} is no record with a step; remove it.")
        rows.append(row)
    return rows


def recorded(metrics: Sequence[Mapping]) -> list[int]:
    """Indices of the rows in which both log-probs were measured."""
    keys = ("chosen_logprob", "rejected_logprob")
    return [i for i, row in enumerate(metrics) if all(row.get(key) is not None for key in keys)]


def replay_words(row: Mapping) -> str:
    """One recorded step as a sentence."""
    parts = [f"{words} {_number(row[key], form)}" for key, words, form in (
        ("loss", "loss", ".3f"), ("margin", "margin", "+.2f"),
        ("chosen_logprob", "mean log p(chosen)", ".2f"),
        ("rejected_logprob", "mean log p(rejected)", ".2f")) if row.get(key) is not None]
    return f"Step {row['step']}: " + ", ".join(parts) + " (log p in nats per response)."


def replay_figure(metrics: Sequence[Mapping], until: int):
    """The training curves up to row `until`, on the axes of the whole run."""
    whole, part = (figures.training_curves(rows) for rows in (metrics, metrics[: until + 1]))
    for axes, final in zip(part.axes, whole.axes, strict=True):
        axes.set_xlim(final.get_xlim())
        axes.set_ylim(final.get_ylim())
    return part


def clouds_figure(metrics: Sequence[Mapping], at: int):
    """The pairs of the probe at row `at`, on the axis of the whole run; None if only means were
    recorded.
    """
    row, keys = metrics[at], ("chosen_logprobs", "rejected_logprobs")
    if not all(row.get(key) for key in keys):
        return None
    low = min(value for other in metrics for key in keys for value in other.get(key) or [0.0])
    return figures.log_prob_clouds(*(row[key] for key in keys), low,
                                   f"Every pair of the probe at step {row['step']}")


def training_replay(metrics: Sequence[Mapping] | str | Path) -> View:
    """A slider over the recorded steps of a run: rows of a log, or the path of a metrics.jsonl.

    Parts: step (slider), image (curves), clouds (one point per pair), words, message, progress.
    """
    parts = SimpleNamespace(
        clouds=ipywidgets.Image(format="png", layout={"max_width": "100%"}),
        step=_wide(ipywidgets.SelectionSlider, "step", options=[("none", -1), ("yet", -2)],
                   continuous_update=False),
        image=ipywidgets.Image(format="png", layout={"max_width": "100%"}),
        words=ipywidgets.HTML(), **_common(),
    )
    rows: list[Mapping] = []

    def show(_=None) -> None:
        until = parts.step.value
        if until is None or until < 0:
            return
        with _answering(parts, "words") as progress:
            for index in progress((until,)):
                parts.image.value = figures.png(replay_figure(rows, index), dpi=90)
                cloud = clouds_figure(rows, index)
                parts.clouds.layout.display = None if cloud else "none"
                if cloud:
                    parts.clouds.value = figures.png(cloud, dpi=90)
                parts.words.value = message_html(replay_words(rows[index]))

    with _answering(parts):
        rows += read_metrics(metrics) if isinstance(metrics, str | Path) else metrics
        steps = recorded(rows)
        if len(steps) < 2:  # and a slider of one step is an error in the browser
            raise ValueError("The log holds fewer than two steps with log-probs; set probe_every.")
        parts.step.options = [(str(rows[index]["step"]), index) for index in steps]
        parts.step.value = steps[-1]
        show()

    def twin() -> dict:
        if parts.message.value:
            return {"text/html": parts.message.value}
        steps = recorded(rows)
        clouds = [clouds_figure(rows, index) for index in (steps[0], steps[-1])]
        return _png(replay_figure(rows, parts.step.value), *filter(None, clouds))

    parts.step.observe(show, "value")
    return View("Training replay", [parts.step, parts.progress, parts.message, parts.words,
                                    parts.clouds, parts.image], parts, twin)
