"""One self-contained HTML file for a run: what was measured, on how much, and what it does not say.

One datum: `render_report(summary, {"diagram": png_bytes}, examples, config, notes)` is a string
that opens in any browser, offline, light or dark; `write_report("report.html", html)` saves it.

    page.html.jinja   the page and all its words
    __init__          what is put into it

Everything from models, data and attackers is hostile: the Jinja environment makes every value of
the page visible (control, bidi and zero-width characters as their code points) and escapes it. The
page holds no script, and a content policy in its head forbids loading anything.

Limits: the report repeats the numbers it is given and computes none except before/after
differences; readings under the figures are templates around those numbers, not judgements.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import training
from ..evaluation import Rate
from ..figures import PALETTE, shown_width
from ..samples import write_text
from ..visible import number, one_line, visible

LIMITS = (
    "Attack success was measured with the attacks listed, whose texts do not adapt to this model. "
    "An attacker who optimizes against it, for example with gradients, will do better.",
    "Intervals are 95% Wilson intervals over samples. They do not cover other random seeds, "
    "other data or other ways of asking.",
    "A rate of 0% over n samples means fewer than about 3/n with 95% confidence, not never.",
    "The defense rests on the delimiters: it assumes that a front-end keeps untrusted text behind "
    "the data delimiter and deletes reserved tokens from it.",
)
STARTS = {  # where a loss stands before the first step
    "dpo": "The DPO loss starts at log 2, where policy and reference agree.",
    "ipo": "The IPO loss starts at 1 / (4 beta\u00b2), where policy and reference agree.",
    "kto": "The KTO loss starts at one half, where policy and reference agree.",
    "orpo": "The ORPO loss knows no reference; it starts where the insecure model stands.",
    "simpo": "The SimPO loss knows no reference; it starts where the insecure model stands.",
    "sft": "The supervised loss starts at the insecure model's mean negative log p of a chosen "
    "token, in nats.",
}
WHICH = ("insecure", "secure")


def render_report(summary: Mapping, figures: Mapping[str, bytes], examples: Sequence[Mapping],
                  config: Mapping, notes: Sequence[str] = (),
                  closest: Sequence[Mapping] = ()) -> str:
    """The report as one HTML string.

    `summary`: {"insecure": {"clean_utility", "retention", "asr": {attack: Rate},
    "accuracy_under_attack": {attack: Rate}}, "secure": same, "logprob": {"chosen": {"before",
    "after"}, "rejected": ...} in nats per response, "seconds": float}. What is missing is shown as
    "not measured". `figures`: name -> PNG bytes, in the order to show; "diagram" opens the page,
    and names that begin with training, shift, token or asr get a title and a reading that fit.
    A model may also have "places", as `evaluation.by_place` gives them, "worst": {"attack",
    "rate"}, and "answers", as `evaluation.kinds_of_answers` gives them. `closest` are records of
    `evaluation.closest_calls`. `examples`: instruction, data, injection_start, injection_end (a
    span of data), insecure, secure, expected. `config`: setting -> value, shown as a table; `loss`
    and `sft_weight` decide what is said about the training curve. Raises ValueError for a span
    outside its data or bytes that are no PNG.
    """
    _check(figures, examples)
    models = {which: summary.get(which, {}) for which in WHICH}
    page = _environment().get_template("page.html.jinja")
    return page.render(
        palette=PALETTE,
        strongest={which: _strongest(model.get("asr", {})) for which, model in models.items()},
        utility={which: model.get("clean_utility") for which, model in models.items()},
        table=_table(*models.values()),
        places=_places(*(model.get("places", {}) for model in models.values())),
        answers=_answers(*(model.get("answers", {}) for model in models.values())),
        worst={which: model.get("worst") for which, model in models.items()}, closest=closest,
        shift=_shift(summary.get("logprob", {})),
        images={name: base64.b64encode(data).decode("ascii") for name, data in figures.items()},
        widths={name: shown_width(data) for name, data in figures.items()},
        start=_start(config), examples=examples,
        config=config, seconds=summary.get("seconds"),
        versions=[" ".join(pair) for pair in training.versions().items()],
        limits=[*LIMITS, *notes],
    )


def write_report(path: str | os.PathLike, html: str) -> Path:
    """Write `html` to `path` in one move, so that a reader never sees half a page."""
    write_text(path, html)
    return Path(path)


def _environment() -> Environment:
    environment = Environment(loader=PackageLoader(__name__, "."), undefined=StrictUndefined,
                              trim_blocks=True, autoescape=True, finalize=_seen)
    environment.filters |= {"number": number, "percent": "{:.1%}".format}
    return environment


def _seen(value):
    """What Jinja does to every value before it escapes it; HTML of a macro keeps its lines."""
    return type(value)(visible(value)) if hasattr(value, "__html__") else one_line(value)


def _check(figures: Mapping, examples: Sequence[Mapping]) -> None:
    for name, data in figures.items():
        if not isinstance(data, bytes) or not data.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"figure {name!r} is not PNG bytes: pass figures.png(fig).")
    for row, example in enumerate(examples):
        data, start, end = (example[k] for k in ("data", "injection_start", "injection_end"))
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"example {row}: injection {start} to {end} lies outside its data of "
                             f"{len(data)} characters; pass the span that came with the attacked "
                             "sample.")


def _strongest(rates: Mapping[str, Rate]) -> tuple[str, Rate] | None:
    """The attack that succeeds most often, in words, and its rate."""
    attack = max(rates, key=lambda name: rates[name].value, default=None)
    return None if attack is None else (attack.replace("_", " "), rates[attack])


def _table(*models: Mapping) -> list[tuple[str, str, list[Rate | None]]]:
    """Rows of the main table: words, which direction is better, and a cell for each model."""
    rows = [(words, "higher", [model.get(key) for model in models]) for key, words in
            (("clean_utility", "Utility without attack"),
             ("retention", "Retention: same request, as instruction"))]
    for key, words, better in (("asr", "Attack obeyed", "lower"),
                               ("accuracy_under_attack", "Right answer under attack", "higher")):
        found = [model.get(key, {}) for model in models]
        rows += [(f"{words}: {attack.replace('_', ' ')}", better, [r.get(attack) for r in found])
                 for attack in dict.fromkeys(attack for rates in found for attack in rates)]
    return rows


def _places(*models: Mapping[str, Mapping]) -> list[tuple[str, str, list[Rate | None]]]:
    """Rows by place, as those of `_table`."""
    rows = []
    for place in dict.fromkeys(place for model in models for place in model):
        found = [model.get(place, {}) for model in models]
        obeyed = [f.get("obeyed", {}) for f in found]
        rows += [(f"{kind}, {place}", "lower", [rates.get(kind) for rates in obeyed])
                 for kind in dict.fromkeys(kind for rates in obeyed for kind in rates)]
        rows.append((f"right answer under all, {place}", "higher", [f.get("right") for f in found]))
    return rows


def _answers(*models: Mapping[str, Rate]) -> list[tuple[str, str, list[Rate | None]]]:
    """Rows of kinds that were answered, as those of `_table`."""
    better = {"obeyed": "lower", "obeyed in part": "lower", "right": "higher"}
    return [(kind, better.get(kind, ""), [rates.get(kind) for rates in models])
            for kind in dict.fromkeys(kind for rates in models for kind in rates)
            if any(rates.get(kind) and rates[kind].value for rates in models)]


def _shift(logprob: Mapping[str, Mapping[str, float]]) -> list[dict]:
    return [{"role": role, **logprob[role],
             "change": logprob[role]["after"] - logprob[role]["before"]}
            for role in ("chosen", "rejected") if role in logprob]


def _start(config: Mapping) -> str:
    """Where the run's loss starts, in words; nothing if the configuration does not name the loss.

    Supervised tuning is nothing but the chosen answers' log-likelihood, so there is none to add.
    """
    loss, weight = config.get("loss"), config.get("sft_weight")
    if loss in STARTS and loss != "sft" and weight:
        return (f"{STARTS[loss]} This run adds {weight:g} times the mean negative log p of a "
                "chosen token, in nats, so its curve starts higher.")
    return STARTS.get(loss, "")
