"""The adapter dial: the adapter's strength from 0 to 1.5, on one prompt and on held-out sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import ipywidgets

from .. import evaluation, figures, logprobs, models, preference, training
from ..config import recipe
from ..evaluation import Rate
from ..models import Bundle
from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from ..visible import number
from .html import message_html, meters_html, prompt_html, table_html
from .inputs import own_item, sample_items, verdict
from .playground import role_spans
from .view import Progress, View, answering, common, dashed, image, row, text_field, wide

CONFIG = recipe("demo")  # whose beta makes the margins
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


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
                      progress: Progress = iter) -> list[Point]:
    """Each strength measured on `n` held-out samples (clean and under every attack) and `n` pairs.

    The margin's reference is strength 0, the insecure model. Raises ValueError for n < 1.
    """
    items = sample_items(bundle, evaluation.ATTACKS, n)
    pairs = training.probe_pairs(CONFIG, "heldout", n)
    rows = logprobs.encode_pairs(bundle, pairs, CONFIG.max_length)
    with models.strength(bundle, 0.0):
        reference = logprobs.score_pairs(bundle, rows)
    points = []
    for value in progress(strengths):
        with models.strength(bundle, value):
            records = evaluation.evaluate(bundle, items, verdict_only=True)
            policy = logprobs.score_pairs(bundle, rows)
        margins = preference.dpo_loss(*policy, *reference, CONFIG.beta)[1]
        summary = evaluation.summarize(records)
        points.append(Point(value, summary["asr"], summary["clean_utility"],
                            float(margins.mean()), float((policy[0] - policy[1]).mean()),
                            len(rows)))
    return points


def sets_html(points: Sequence[Point], strength: float, attack: str) -> str:
    """ASR, utility and margin of the nearest measured strength, as bars with numbers.

    Nothing is interpolated.
    """
    point = min(points, key=lambda point: abs(point.strength - strength))
    highest = max(1e-9, *(abs(p.margin) for p in points))
    rows = (
        (f"ASR {attack.replace('_', '-')}", point.asr[attack].value, str(point.asr[attack])),
        ("utility", point.utility.value, str(point.utility)),
        ("mean margin", point.margin / highest,
         f"{number(point.margin, sign='+')}, beta times nats ({point.pairs} pairs)"),
    )
    return meters_html(rows, f"Held-out sets, measured at strength {point.strength:.2f}")


def dial_twin(points: Sequence[Point]) -> dict:
    """Every measured strength, with the attack that succeeds most often there, as a PNG."""
    strongest = [max(p.asr, key=lambda name, p=p: p.asr[name].value) for p in points]
    rows = [{"strength": p.strength, "asr": p.asr[attack], "attack": attack,
             "utility": p.utility, "preference": p.preference}
            for p, attack in zip(points, strongest, strict=True)]
    return image(figures.strength_dial(rows))


@dataclass(frozen=True)
class Live:
    """One prompt at one strength: the answer, its verdict, log-probs (nats), margin."""

    answer: str
    verdict: str
    chosen: float
    rejected: float
    margin: float


def dial_prompt(bundle: Bundle, item: evaluation.Item, value: float) -> Live:
    """The answer and the margin against strength 0 of one prompt. ValueError without adapter."""
    row = logprobs.encode_pair(bundle, item.instruction, item.data, item.expected, item.witness)
    with models.strength(bundle, 0.0):
        reference = [float(x[0]) for x in logprobs.score_pairs(bundle, [row])]
    with models.strength(bundle, value):
        policy = [float(x[0]) for x in logprobs.score_pairs(bundle, [row])]
        answer = evaluation.generate(bundle, [(item.instruction, item.data)])[0]
    margin = preference.plain_dpo_loss(*policy, *reference, CONFIG.beta)[1]
    return Live(answer, verdict(answer, item), *policy, margin)


def live_html(live: Live, strength: float) -> str:
    """One prompt at one strength, as a table."""
    rows = (("answer", live.answer or "(nothing)"), ("verdict", live.verdict),
            ("log p(chosen)", f"{number(live.chosen)} nats"),
            ("log p(rejected)", f"{number(live.rejected)} nats"),
            ("margin", f"{number(live.margin, sign='+')}, beta times nats"))
    return table_html(("", f"at strength {strength:.2f}"), rows, "The prompt above, live")


def adapter_dial(bundle: Bundle, points: Sequence[Point] | None = None) -> View:
    """One slider for the adapter's strength, 0 to 1.5; answer, margin, ASR and utility follow.

    `points` come from `measure_strengths`; without them, or for another number of samples, the
    button measures. Parts: instruction, data, injection, strength, attack, samples, measure
    (button), prompt, live, sets, message, progress.
    """
    parts = SimpleNamespace(
        instruction=text_field("instruction", DINOSAUR_HOST.instruction),
        data=text_field("data", DINOSAUR_HOST.data),
        injection=text_field("injection", DINOSAUR_PAYLOAD.request),
        strength=wide(ipywidgets.FloatSlider, "strength", value=1.0, min=0.0, max=1.5, step=0.05,
                      continuous_update=False),
        attack=wide(ipywidgets.Dropdown, "attack on sets", options=dashed(evaluation.ATTACKS)),
        samples=wide(ipywidgets.IntSlider, "samples", value=20, min=5, max=100, step=5),
        measure=ipywidgets.Button(description="Measure the sets",
                                  tooltip="measure every strength on held-out samples"),
        prompt=ipywidgets.HTML(), live=ipywidgets.HTML(), sets=ipywidgets.HTML(), **common(),
    )
    fields = (parts.instruction, parts.data, parts.injection)
    state = {"points": list(points or []), "item": None}

    def read(_=None) -> None:
        with answering(parts, "prompt", "live"):
            state["item"] = None
            item = state["item"] = own_item(bundle, *(field.value for field in fields))
            parts.prompt.value = prompt_html(
                role_spans(bundle, item.instruction, item.data, item.start))
        if state["item"]:
            turn()

    def turn(_=None) -> None:
        if state["item"]:
            with answering(parts, "live") as progress:
                for value in progress((parts.strength.value,)):
                    live = dial_prompt(bundle, state["item"], value)
                    parts.live.value = live_html(live, value)
        show()

    def show(_=None) -> None:
        if state["points"]:
            parts.sets.value = sets_html(state["points"], parts.strength.value, parts.attack.value)
        else:
            parts.sets.value = message_html("The sets are not measured yet; press the button.")

    def measure(_=None) -> None:
        with answering(parts, "sets") as progress:
            state["points"] = measure_strengths(bundle, parts.samples.value, progress=progress)
            show()

    def twin() -> dict:
        if not state["points"]:
            return {"text/html": parts.live.value}
        return dial_twin(state["points"])

    for field in fields:
        field.observe(read, "value")
    parts.strength.observe(turn, "value")
    parts.attack.observe(show, "value")
    parts.measure.on_click(measure)
    read()
    return View("Adapter dial", [*fields, parts.message, parts.prompt, parts.strength, parts.live,
                                 parts.attack, parts.sets, parts.samples,
                                 row(parts.measure, parts.progress)], parts, twin)
