"""The main job: an insecure model becomes a secure one, end to end, on held-out data.

One datum: `summary.json` in the run folder, with `secure.places.start.obeyed["unseen frames"] ==
{"value": 0.0, "n": 280, "low": 0.0, "high": 0.014}`.

samples -> pairs -> insecure evaluation -> DPO training -> secure evaluation -> figures -> report.
"""

import time
from dataclasses import asdict
from pathlib import Path

from . import evaluation, figures, injections, logprobs, report, training
from .config import RunConfig, recipe
from .evaluation import Item, Rate
from .injections import POSITIONS
from .models import Bundle
from .samples import write_json

NOTES = [
    "The embedded model knows a small generated world; its rates say nothing about large models.",
    "The attacks are texts written beforehand. An attacker who adapts to the defense is stronger.",
    "Both models sit behind the same front-end filter, which deletes typed delimiters from data.",
]


def plain(summary: dict) -> dict:
    """Rates as dictionaries, for JSON."""
    return {key: asdict(value) if isinstance(value, Rate) else
            plain(value) if isinstance(value, dict) else value for key, value in summary.items()}


def draw(diagram: dict, metrics: list[dict], shift, summary: dict) -> dict[str, bytes]:
    """The report's figures by name, as PNG."""
    drawn = {
        "diagram": figures.diagram(diagram),
        "training": figures.training_curves(metrics),
        "shift": figures.shift_scatter(shift),
        "asr": figures.asr_bars(summary),
        "places": figures.attack_places({which: summary[which]["places"]
                                         for which in ("insecure", "secure")}),
    }
    for side, part in diagram["tokens"].groupby("response"):
        drawn[f"tokens_{side}"] = figures.token_strip(
            part["token"].tolist(), part["before"].tolist(), part["after"].tolist(),
            f"{side}: log p per token, before and after",
        )
    return {name: figures.png(figure) for name, figure in drawn.items()}


def questions(bundle: Bundle, n: int | None) -> list[Item]:
    """What both models are asked: everything clean, and `n` samples attacked at every place.

    By the five attacks and by held-out kinds of frames, for the witness and for other samples'
    answers. The diagram's example is the last.
    """
    attacks = [*evaluation.ATTACKS, *injections.unseen_attacks("heldout").items()]
    items = evaluation.evaluation_items(bundle, n=n, position="all", attacks=attacks,
                                        targets=("witness", "payload"))
    return [*items, evaluation.diagram_item()]


def measured(records: list[dict]) -> dict:
    """The rates of a model: attack by attack for the five at the end of the data, pooled by place
    for all, of the attack that succeeds most often, and what was answered under all of them."""
    plain = [r for r in records if r["attack"] in ("none", "retention") or (
        r["attack"] in evaluation.ATTACKS and r["position"] == "end" and r["target"] == "witness")]
    attack, rate = evaluation.worst(records)
    answers = evaluation.kinds_of_answers(r for r in records if r["position"])
    return evaluation.summarize(plain) | {"places": evaluation.by_place(records),
                                          "worst": {"attack": attack, "rate": rate},
                                          "answers": answers}


def answer(bundle: Bundle, items: list[Item], folder: Path, which: str) -> list[dict]:
    """The records of a model, also written to `records_<which>.jsonl`.

    What that file already holds of this model is not asked again.
    """
    path = folder / f"records_{which}.jsonl"
    records = evaluation.evaluate_file(bundle, items, path, chunk=len(items),
                                       progress=f"{which} model")
    evaluation.save_records(records, path)  # no others, such as those of another n
    return records


def run_demo(config: RunConfig | None = None, n: int | None = 40) -> dict:
    """Runs the whole job, writes the run folder and returns the summary as it is stored.

    `n` samples are attacked (None: all), each by every attack at every place. The folder gets
    `report.html`, `figures/`, `adapter/`, `records_insecure.jsonl`, `records_secure.jsonl`,
    `shift.csv` and `summary.json`. A finished training is taken up again, not repeated.
    """
    began = time.perf_counter()
    config = config or recipe("demo")
    training.refuse_other_run(config)  # before its records would be overwritten
    bundle = training.base_model(config)
    items = questions(bundle, n)  # may refuse, before anything is written
    folder = Path(config.output)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    insecure = answer(bundle, items, folder, "insecure")
    run = training.train(config, training.training_pairs(config, bundle=bundle),
                         training.probe_pairs(config, "validation", 64), bundle)
    secure = answer(run.bundle, items, folder, "secure")
    shift = logprobs.shift_table(run.bundle, training.probe_pairs(config, "heldout", 300),
                                 config.max_length)
    shift.to_csv(folder / "shift.csv", index=False)
    said = {"insecure": insecure[-1]["response"], "secure": secure[-1]["response"]}
    summary = {
        "insecure": measured(insecure[:-1]),
        "secure": measured(secure[:-1]),
        "logprob": logprobs.mean_shift(shift),
        "logprob_pairs": len(shift),
        "diagram": said,
        "training_seconds": run.seconds,
    }
    diagram = logprobs.measure_diagram(run.bundle, items[-1], **said)
    pictures = draw(diagram, run.metrics, shift, summary)
    for name, png in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(png)
    summary["seconds"] = time.perf_counter() - began
    write_json(folder / "summary.json", plain(summary))
    place = f"In training, injections stood {POSITIONS[config.position]} of the data."
    closest = evaluation.closest_calls(run.bundle, secure)
    page = report.render_report(summary, pictures, evaluation.examples(insecure, secure, 1),
                                asdict(config), [*NOTES, place], closest)
    report.write_report(folder / "report.html", page)
    return plain(summary)
