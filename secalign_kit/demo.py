"""The main job: an insecure model becomes a secure one, end to end, on held-out data.

One datum: `summary.json` in the run folder, with `secure.asr.naive == {"value": 0.0, "n": 300,
"low": 0.0, "high": 0.013}`.

samples -> pairs -> insecure evaluation -> DPO training -> secure evaluation -> figures -> report.
"""

import time
from dataclasses import asdict
from pathlib import Path

from . import evaluation, figures, logprobs, report, training
from .config import RunConfig, recipe
from .injections import POSITIONS
from .models import Bundle

NOTES = [
    "The embedded model knows a small generated world; its rates say nothing about large models.",
    "The attacks are fixed texts. An attacker who adapts to the defense is stronger than these.",
    "Both models sit behind the same front-end filter, which deletes typed delimiters from data.",
]


def _plain(summary: dict) -> dict:
    """Rates as dictionaries, for JSON."""
    return {key: asdict(value) if isinstance(value, evaluation.Rate) else
            _plain(value) if isinstance(value, dict) else value for key, value in summary.items()}


def draw(diagram: dict, metrics: list[dict], shift, summary: dict) -> dict:
    """The report's figures by name."""
    drawn = {
        "diagram": figures.diagram(diagram),
        "training": figures.training_curves(metrics),
        "shift": figures.shift_scatter(shift),
        "asr": figures.asr_bars(summary),
    }
    for side in ("chosen", "rejected"):
        part = diagram["tokens"][diagram["tokens"]["response"] == side]
        drawn[f"tokens_{side}"] = figures.token_strip(
            part["token"].tolist(), part["before"].tolist(), part["after"].tolist(),
            f"{side}: log p per token, before and after",
        )
    return drawn


def run_demo(output: str | Path | None = None, config: RunConfig | None = None,
             n: int | None = None, bundle: Bundle | None = None) -> dict:
    """Runs the whole job, writes the run folder and returns the summary as it is stored.

    The folder gets `report.html`, `figures/`, `adapter/`, `records_insecure.jsonl`,
    `records_secure.jsonl`, `shift.csv` and `summary.json`. A finished training is taken up again,
    not repeated.
    """
    began = time.perf_counter()
    config = config or recipe("demo")
    config = config.replace(output=str(output)) if output else config
    training.refuse_other_run(config)  # before its records would be overwritten
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = bundle or training.base_model(config)
    items = [*evaluation.evaluation_items(bundle, n=n), evaluation.diagram_item()]
    insecure = evaluation.evaluate(bundle, items, progress="insecure model")
    evaluation.save_records(insecure, folder / "records_insecure.jsonl")
    run = training.train(config, training.training_pairs(config, bundle=bundle),
                         training.probe_pairs(config, "validation", 64), bundle)
    secure = evaluation.evaluate(run.bundle, items, progress="secure model")
    evaluation.save_records(secure, folder / "records_secure.jsonl")
    shift = logprobs.shift_table(run.bundle, training.probe_pairs(config, "heldout", 300))
    shift.to_csv(folder / "shift.csv", index=False)
    summary = {
        "insecure": evaluation.summarize(insecure[:-1]),
        "secure": evaluation.summarize(secure[:-1]),
        "logprob": logprobs.mean_shift(shift),
        "logprob_pairs": len(shift),
        "diagram": {"insecure": insecure[-1]["response"], "secure": secure[-1]["response"]},
        "training_seconds": run.seconds,
    }
    diagram = logprobs.measure_diagram(run.bundle, items[-1], insecure[-1]["response"],
                                       secure[-1]["response"])
    pngs = {name: figures.png(figure) for name, figure in
            draw(diagram, run.metrics, shift, summary).items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, data in pngs.items():
        (folder / "figures" / f"{name}.png").write_bytes(data)
    summary["seconds"] = time.perf_counter() - began
    stored = _plain(summary)
    training.write_json(folder / "summary.json", stored)
    place = (f"Injections stood {POSITIONS[config.position]} of the data in training, "
             "and stand at its end in this test.")
    html = report.render_report(
        summary, pngs, evaluation.examples(insecure, secure), asdict(config), [*NOTES, place]
    )
    report.write_report(folder / "report.html", html)
    return stored
