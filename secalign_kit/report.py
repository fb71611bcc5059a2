"""One self-contained HTML file for a run: what was measured, on how much, and what it does not say.

One datum: `render_report(summary, {"diagram": png_bytes}, examples, config, notes)` is a string
that opens in any browser, offline, light or dark; `write_report("report.html", html)` saves it.

Everything from models, data and attackers is hostile: Jinja escapes it (autoescape is on for every
value), control, bidi and zero-width characters are written visibly, and the page holds no script;
a content policy in its head forbids loading anything.

Limits: the report repeats the numbers it is given and computes none except before/after
differences; readings under the figures are templates around those numbers, not judgements.
"""

import base64
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from .figures import PALETTE
from .figures.rates import field
from .samples import write_text
from .visible import one_line as visible

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes")
LIMITS = (
    "Attack success was measured with the attacks listed, whose texts do not adapt to this model. "
    "An attacker who optimizes against it, for example with gradients, will do better.",
    "Intervals are 95% Wilson intervals over samples. They do not cover other random seeds, "
    "other data or other ways of asking.",
    "A rate of 0% over n samples means fewer than about 3/n with 95% confidence, not never.",
    "The defence rests on the delimiters: it assumes that a front end keeps untrusted text behind "
    "the data delimiter and deletes reserved tokens from it.",
)
_TITLES = {
    "training": "Training",
    "shift": "The shift, pair by pair",
    "tokens_chosen": "The shift, token by token: chosen",
    "tokens_rejected": "The shift, token by token: rejected",
    "token": "The shift, token by token",
    "asr": "Attack success rate",
}
_STARTS = {  # where a loss stands before the first step
    "dpo": "The DPO loss starts at log 2, where policy and reference agree.",
    "ipo": "The IPO loss starts at 1 / (4 beta\u00b2), where policy and reference agree.",
    "kto": "The KTO loss starts at one half, where policy and reference agree.",
    "orpo": "The ORPO loss knows no reference; it starts where the insecure model stands.",
    "simpo": "The SimPO loss knows no reference; it starts where the insecure model stands.",
    "sft": "The supervised loss starts at the insecure model's mean negative log p of a chosen "
    "token, in nats.",
}
_ROWS = (("clean_utility", "Utility without attack"), ("retention", "Same request, as instruction"))


def render_report(
    summary: Mapping,
    figures: Mapping[str, bytes],
    examples: Sequence[Mapping],
    config: Mapping,
    notes: Sequence[str] = (),
) -> str:
    """The report as one HTML string.

    `summary`: {"insecure": {"clean_utility", "retention", "asr": {attack: rate},
    "accuracy_under_attack": {attack: rate}}, "secure": same, "logprob": {"chosen": {"before",
    "after"}, "rejected": ...} in nats per response, "seconds": float}; a rate has `value`, `n`,
    `low`, `high`. What is missing is shown as "not measured". `figures`: name -> PNG bytes, in
    the order to show; "diagram" opens the page, and names that begin with training, shift, token
    or asr get a title and a reading that fit. `examples`: instruction, data, injection_start,
    injection_end (a span of data), insecure, secure, expected. `config`: setting -> value, shown
    as a table; `loss` and `sft_weight` decide what is said about the training curve. Raises
    ValueError for a span outside its data or bytes that are no PNG.
    """
    images = [_image(name, data, summary, config) for name, data in figures.items()]
    opening = [image for image in images if image["name"] == "diagram"]
    return _template().render(
        palette=PALETTE,
        lead=_lead(summary),
        diagram=opening,
        table=_table(summary),
        shift=_shift(summary),
        images=[image for image in images if image["name"] != "diagram"],
        examples=[_example(i, example) for i, example in enumerate(examples)],
        config=[(str(key), str(value)) for key, value in config.items()],
        versions=_versions(),
        seconds=summary.get("seconds"),
        limits=[*LIMITS, *map(str, notes)],
    )


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["visible"] = visible
    return environment.from_string(_PAGE)


def write_report(path: str | os.PathLike, html: str) -> Path:
    """Write `html` to `path` in one move, so that a reader never sees half a page."""
    path = Path(path)
    write_text(path, html)
    return path


# --- Numbers to words ----------------------------------------------------------------------------


def _percent(rate) -> dict | None:
    """A rate as strings for one table cell; None where it was not measured."""
    if rate is None:
        return None
    value, low, high = (100 * field(rate, name) for name in ("value", "low", "high"))
    return {
        "value": f"{value:.1f}%",
        "interval": f"{low:.1f} to {high:.1f}%",
        "n": str(field(rate, "n")),
    }


def _table(summary: Mapping) -> list[dict]:
    """Rows of the main table: words, which direction is better, and the two cells."""
    both = [summary.get(which, {}) for which in ("insecure", "secure")]
    rows = [
        {"name": words, "better": "higher", "cells": [_percent(m.get(key)) for m in both]}
        for key, words in _ROWS
    ]
    groups = (
        ("asr", "Attack obeyed", "lower"),
        ("accuracy_under_attack", "Right answer under attack", "higher"),
    )
    for key, words, better in groups:
        for attack in dict.fromkeys(a for m in both for a in m.get(key, {})):
            cells = [_percent(m.get(key, {}).get(attack)) for m in both]
            name = f"{words}: {attack}".replace("_", " ")
            rows.append({"name": name, "better": better, "cells": cells})
    return rows


def _lead(summary: Mapping) -> str:
    """The finding in one or two sentences, made of numbers only."""
    utility = [_percent(summary.get(w, {}).get("clean_utility")) for w in ("insecure", "secure")]
    parts = [_lead_security(summary)]
    if all(utility):
        parts.append(
            f"Without attack, {utility[0]['value']} of answers were right before training and "
            f"{utility[1]['value']} after."
        )
    return " ".join(filter(None, parts)) or "Not enough was measured to compare the two models."


def _lead_security(summary: Mapping) -> str:
    before, after = (_worst(summary.get(w, {}).get("asr", {})) for w in ("insecure", "secure"))
    if not before or not after:
        return ""
    named = f"on {after[1]} against the secure one ({after[0]})"
    if not any(field(rate, "value") for rate in summary["secure"]["asr"].values()):
        named = f"none succeeds against the secure one ({after[1]})"
    return (
        f"The strongest attack measured succeeds on {before[1]} of samples against the insecure "
        f"model ({before[0]}) and {named}."
    )


def _worst(rates: Mapping) -> tuple[str, str] | None:
    if not rates:
        return None
    attack = max(rates, key=lambda name: field(rates[name], "value"))
    return visible(attack).replace("_", " "), _percent(rates[attack])["value"]


def _shift(summary: Mapping) -> list[dict]:
    rows = []
    for role in ("chosen", "rejected"):
        pair = summary.get("logprob", {}).get(role) or {}
        if pair.get("before") is None or pair.get("after") is None:
            continue
        before, after = float(pair["before"]), float(pair["after"])
        numbers = [f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
        numbers = [number.replace("-", "\u2212") for number in numbers]
        rows.append({"role": role, "numbers": numbers, "moved": _direction(after - before)})
    return rows


def _direction(change: float) -> str:
    return "rose" if change > 0 else "fell" if change < 0 else "did not move"


def _start(config: Mapping) -> str:
    """Where the run's loss starts, in words; nothing if the configuration does not name the loss.

    Supervised tuning is nothing but the chosen answers' log-likelihood, so there is none to add.
    """
    loss, weight = config.get("loss"), config.get("sft_weight")
    if loss in _STARTS and loss != "sft" and weight:
        return (f"{_STARTS[loss]} This run adds {weight:g} times the mean negative log p of a "
                "chosen token, in nats, so its curve starts higher.")
    return _STARTS.get(loss, "")


def _training(summary: Mapping, config: Mapping) -> str:
    moved = _moved(summary)
    end = (f"Over the scored pairs {moved} on average." if moved
           else "Margin and log-probabilities show what moved.")
    return f"{_start(config)} {end}".strip()


def _moved(summary: Mapping) -> str:
    return " and ".join(
        f"log p({row['role']}) {row['moved']} ({row['numbers'][2]} nats)"
        for row in _shift(summary)
    )


def _reading(name: str, summary: Mapping, config: Mapping) -> str:
    """One sentence on how to read a figure, with its numbers where the summary has them."""
    readings = {
        "diagram": "One pair of the method, with its log-probabilities before and after training: "
        "the response to the instruction is preferred over the response to the injection.",
        "training": _training(summary, config),
        "shift": "Each point is one pair; the lower right quadrant is the intended one, "
        "and left of the vertical line the wanted response lost probability as well.",
        "token": "Where in the response the change sits; the sum is that of the whole response.",
        "asr": _lead_security(summary) or "How often each attack was obeyed.",
    }
    for key, reading in readings.items():
        if name.startswith(key):
            return reading
    return "See the axis labels for quantities and units."


def _image(name: str, data: bytes, summary: Mapping, config: Mapping) -> dict:
    if not isinstance(data, bytes) or not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"figure {name!r} is not PNG bytes: pass figures.png(fig).")
    known = next((title for key, title in _TITLES.items() if name.startswith(key)), None)
    title = known or visible(name).replace("_", " ").capitalize()
    reading = _reading(name, summary, config)
    return {
        "name": name,
        "title": title,
        "reading": reading,
        "alt": _alternative(name, title, reading, summary),
        "base64": base64.b64encode(data).decode("ascii"),
    }


def _alternative(name: str, title: str, reading: str, summary: Mapping) -> str:
    """What someone who cannot see the figure needs: its kind and its numbers."""
    shift = "; ".join(
        f"log p of {row['role']} from {row['numbers'][0]} to {row['numbers'][1]} nats"
        for row in _shift(summary)
    )
    if name == "diagram":
        return (
            "Diagram: an insecure instruct model is fine-tuned with preference optimization on a "
            "prompt of instruction, data and an injection marked red inside the data, preferring "
            "the chosen over the rejected response, and becomes a secure model."
        )
    if name.startswith("asr"):
        return f"Bar chart of attack success rates; the numbers are in the table above. {reading}"
    if name.startswith(("training", "shift")) and shift:
        return f"{title}. Mean over the scored pairs: {shift}."
    return f"{title}. {reading}"


def _example(row: int, example: Mapping) -> dict:
    """Data cut at the injection; every text visible. The template escapes them."""
    data, start, end = example["data"], example["injection_start"], example["injection_end"]
    if not 0 <= start <= end <= len(data):
        raise ValueError(
            f"example {row}: injection {start} to {end} lies outside its data of {len(data)} "
            "characters; pass the span that came with the attacked sample."
        )
    texts = {key: visible(example[key]) for key in ("instruction", "expected")}
    for which in ("insecure", "secure"):
        texts[which] = visible(example[which]) or "(nothing)"
        texts[f"{which}_right"] = str(example[which]).strip() == str(example["expected"]).strip()
    return texts | {
        "before": visible(data[:start]),
        "injection": visible(data[start:end]),
        "after": visible(data[end:]),
    }


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for library in LIBRARIES:
        try:
            found.append((library, metadata.version(library)))
        except metadata.PackageNotFoundError:
            found.append((library, "not installed"))
    return found


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>SecAlign Kit: report of a run</title>
<style>
:root { --ink: #1a1a1a; --paper: #ffffff; --soft: #f4f4f2; --line: #c9c9c9; --quiet: #4d4d4d;
 --injection: {{ palette.injection }}; --injection-soft: #fdecee; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #16181b; --soft: #22262b;
 --line: #4a4f57; --quiet: #b8b8b8; --injection: #ff8a94; --injection-soft: #451820; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
 max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; } .quiet { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem 1.6rem .35rem 0; text-align: left;
 vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); } td.number { white-space: nowrap; }
td small { color: var(--quiet); }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em;
 border: 1px solid var(--ink); }
.insecure { background: repeating-linear-gradient(135deg, {{ palette.insecure }} 0 3px,
 #1a1a1a 3px 4px); }
.secure { background: {{ palette.secure }}; }
.chosen { background: {{ palette.chosen }}; } .rejected { background: {{ palette.rejected }}; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
 border-radius: 6px; padding: .4rem; box-sizing: border-box; }
figcaption { color: var(--quiet); margin-top: .3rem; }
.example { background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
 padding: .4rem 1rem; margin: 1rem 0; }
.example dt { font-weight: 600; margin-top: .5rem; } .example dd { margin: .1rem 0 .6rem; }
.text { font: 14px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { color: var(--injection); background: var(--injection-soft); border: 1px solid;
 padding: 0 .25em; text-decoration: underline; text-decoration-thickness: 2px; }
mark b { font: 600 12px system-ui, sans-serif; margin-right: .5em; text-decoration: none;
 display: inline-block; }
@media print { body { max-width: none; } figure, .example { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>From an insecure to a secure model</h1>
<p>{{ lead }}</p>
{% macro picture(image) %}
<figure>
<img src="data:image/png;base64,{{ image.base64 }}" alt="{{ image.alt }}">
<figcaption>{{ image.reading }}</figcaption>
</figure>
{% endmacro %}
{% for image in diagram %}{{ picture(image) }}{% endfor %}

<h2>Insecure and secure, measured</h2>
<div class="scroll">
<table>
<caption class="quiet">Rates with n and 95% Wilson interval.</caption>
<thead><tr><th scope="col">Measure</th><th scope="col">Better</th>
<th scope="col"><span class="key insecure"></span>Insecure</th>
<th scope="col"><span class="key secure"></span>Secure</th></tr></thead>
<tbody>
{% for row in table %}
<tr><th scope="row">{{ row.name | visible }}</th><td>{{ row.better }}</td>
{% for cell in row.cells %}
<td class="number">{% if cell %}<strong>{{ cell.value }}</strong> <small>n = {{ cell.n }}<br>
{{ cell.interval }}</small>{% else %}not measured{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if shift %}
<div class="scroll">
<table>
<caption class="quiet">Mean log-probability in nats per response.</caption>
<thead><tr><th scope="col">Response</th><th scope="col">Before</th><th scope="col">After</th>
<th scope="col">Change</th></tr></thead>
<tbody>
{% for row in shift %}
<tr><th scope="row"><span class="key {{ row.role }}"></span>{{ row.role }}</th>
{% for number in row.numbers %}<td class="number">{{ number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}

{% if images %}
<h2>Figures</h2>
{% for image in images %}
<h3>{{ image.title }}</h3>
{{ picture(image) }}
{% endfor %}
{% endif %}

<h2>Examples</h2>
<p>The injection is red, underlined and labelled. Characters that would be invisible are written
out: a newline as ↵, a tab as ⇥, others by their code point.</p>
{% for example in examples %}
<section class="example" aria-label="Example {{ loop.index }}">
<dl>
<dt>Instruction</dt><dd class="text">{{ example.instruction }}</dd>
<dt>Data</dt><dd class="text">{{ example.before }}
{%- if example.injection %}<mark><b>injection</b>{{ example.injection }}</mark>{% endif -%}
{{ example.after }}</dd>
<dt>Expected</dt><dd class="text">{{ example.expected }}</dd>
{% for which in ["insecure", "secure"] %}
<dt><span class="key {{ which }}"></span>{{ which | capitalize }} model
({{ "as expected" if example[which + "_right"] else "not as expected" }})</dt>
<dd class="text">{{ example[which] }}</dd>
{% endfor %}
</dl>
</section>
{% else %}
<p>No examples were given.</p>
{% endfor %}

<h2>Configuration and versions</h2>
{% if seconds is not none %}<p>The run took {{ "%.0f" | format(seconds) }} seconds.</p>{% endif %}
<div class="scroll">
<table>
<thead><tr><th scope="col">Setting</th><th scope="col">Value</th></tr></thead>
<tbody>
{% for key, value in config %}
<tr><th scope="row">{{ key | visible }}</th><td class="text">{{ value | visible }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="quiet">{% for name, version in versions %}{{ name }} {{ version }}
{{- "" if loop.last else ", " }}{% endfor %}</p>

<h2>What this does not show</h2>
<ul>
{% for limit in limits %}
<li>{{ limit | visible }}</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""
