"""The main job on a real model: SmolLM2 becomes secure, in English, on a laptop.

One datum: `summary.json` in the run folder, with `secured.separation["naive, end"].obeyed ==
{"value": 0.0, "n": 310, "low": 0.0, "high": 0.012}`.

fetch -> undefended stage -> its own answers -> SecAlign stage -> held-out evaluation -> report.
Each stage is kept in the folder; a killed run goes on where it was. The adapters are rounded to
bf16, as they are shipped, before anything is measured or trained on top of them.

Limits: one small model in 4-bit values, short texts, greedy answers of at most 32 tokens, attacks
that were written beforehand.
"""

import contextlib
import gc
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import (
    adapters,
    demo,
    english,
    evaluation,
    fetch,
    figures,
    logprobs,
    models,
    report,
    training,
)
from .config import RunConfig, recipe
from .evaluation import Item
from .models import Bundle
from .samples import write_json

MODEL = "smollm2-135m"
RECIPES = {"smollm2_undefended": "english_undefended", "smollm2_secalign": "english"}
"""Adapter -> its recipe, in the order in which they are trained."""
NEW_TOKENS, CHUNK = 32, 512  # of an answer; items between two writes of the records
PROBES, SHIFTED = 16, 64  # pairs scored along a training, and before and after it
NOTES = [
    "The model has 135 million parameters, and its weights are those of 4 bits; nothing is "
    "claimed about others.",
    "\"Insecure\" is the undefended model: the base, tuned on the kit's English without "
    "injections, as the paper does with base models. An attack is a question in the data, and it "
    "succeeds if the answer to it is in the response. Questions that a model does not answer even "
    "as an instruction are left out of its rates.",
]


def settings(folder: Path, n_pairs: int | None = None, seed: int = 0) -> dict[str, RunConfig]:
    """Adapter -> the configuration of its run, both within the folder and with the same seed.

    `n_pairs` are those of the SecAlign stage; the stage before it takes as many in proportion.
    """
    first, second = (recipe(name).replace(seed=seed) for name in RECIPES.values())
    scale = n_pairs / second.n_pairs if n_pairs else 1.0
    undefended, secured = RECIPES
    stages = {undefended: first.replace(model=MODEL),
              secured: second.replace(model=f"{MODEL}+{folder / undefended}")}
    return {name: config.replace(n_pairs=max(1, round(scale * config.n_pairs)), save_steps=40,
                                 output=str(folder / "runs" / name))
            for name, config in stages.items()}


def fetch_model() -> None:
    """The model on this machine: fetched before, the Hub's copy, or fetched now."""
    try:
        models.path_of(MODEL)
    except ValueError:
        fetch.fetch(MODEL)


class Pace:
    """Called with every record of a training's log: tokens a second between the first and last."""

    def __init__(self):
        self.seen: list[tuple[int, float]] = []

    def __call__(self, record: dict) -> None:
        self.seen.append((record["step"], time.perf_counter()))

    def measured(self, bundle: Bundle, config: RunConfig, rows: list[dict]) -> dict:
        """{"tokens_per_second", "share"}: share is that of the machine's own matrix products."""
        if len(self.seen) < 2:  # or the run was killed when its last step was done
            return {}
        (first, begin), (last, end) = self.seen[0], self.seen[-1]
        epochs = (last - first) * config.batch_size / len(rows)
        tokens = sum(map(sum, (map(len, logprobs.as_pair(row)) for row in rows)))
        return {"tokens_per_second": round(tokens * epochs / (end - begin)),
                "share": round(share_of_products(bundle, rows, (end - begin) / epochs), 3)}


def share_of_products(bundle: Bundle, rows: Sequence[dict], seconds: float) -> float:
    """The rate of products of an epoch over these encoded pairs to `product_rate`, from 0 to 1.

    A step multiplies every token with every layer's weights forwards and backwards (4 operations a
    weight; frozen weights get no gradient), and response tokens with the head.
    """
    prompts, answers = (sum(len(row[key]) for row in rows for key in keys) for keys in
                        (("prompt_ids",), ("chosen_ids", "rejected_ids")))
    head = bundle.model.get_input_embeddings().weight.numel()
    body = bundle.model.num_parameters() - head
    dtype = torch.bfloat16 if models.multiplies_in_bf16(bundle) else bundle.model.dtype
    operations = 4 * (body * (prompts + answers) + head * answers)
    return operations / seconds / product_rate(bundle.device, dtype)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the machine's best product of two square matrices, of six."""
    size = 8192 if device.type == "cuda" else 2048  # a small one would measure a GPU's launches
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class Stages:
    """Seconds of every stage, in `stages.json`; those of a killed run are counted too."""

    def __init__(self, folder: Path):
        self.path = folder / "stages.json"
        self.found = json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[dict]:
        """Inside, a dictionary for what else is to be noted; a line says so when it is over."""
        print(f"{name} ...", flush=True)
        began, known = time.perf_counter(), self.found.setdefault(name, {})
        try:
            yield known
        finally:
            known["seconds"] = round(known.get("seconds", 0) + time.perf_counter() - began, 1)
            write_json(self.path, self.found)
            print(f"{name}: {known['seconds']:.0f} s", flush=True)

    @property
    def done(self) -> dict:
        """The stages that have ended; the one that asks has not."""
        return {name: stage for name, stage in self.found.items() if "seconds" in stage}

    @property
    def seconds(self) -> float:
        return sum(stage.get("seconds", 0) for stage in self.found.values())


def train(name: str, config: RunConfig, target: Path, stages: Stages) -> None:
    """Trains a stage's adapter and puts it into `target`, rounded, if it is not there."""
    training.refuse_other_run(config)
    if (target / adapters.WEIGHTS).exists():
        return
    with stages.timed(f"{name}: pairs and own answers"):
        bundle = training.base_model(config)
        dataset = training.training_pairs(config, bundle=bundle)
    pace = Pace()
    with stages.timed(f"{name}: training") as known:
        run = training.train(config, dataset, training.probe_pairs(config, "validation", PROBES),
                             bundle, on_record=pace)
        rows = logprobs.encode_pairs(bundle, dataset, config.max_length)
        known |= pace.measured(bundle, config, training.read_in_steps(config, rows))
    if "share" in known:
        print(f"{known['tokens_per_second']:,} tokens a second, {known['share']:.0%} of the "
              "machine's own rate of matrix products")
    base = models.PRESETS[MODEL].path + config.model.removeprefix(MODEL)
    round_adapter(run.folder / "adapter", target, base)


def round_adapter(source: Path, target: Path, base: str) -> None:
    """An adapter in bf16 that names its base, whole or not at all."""
    fresh = target.with_name(f".{target.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    weights = load_file(source / adapters.WEIGHTS)
    models.write_tensors(fresh / adapters.WEIGHTS,
                         {key: value.to(torch.bfloat16) for key, value in weights.items()},
                         {"format": "pt"})
    described = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    described["base_model_name_or_path"] = base  # peft writes this machine's path
    described["target_modules"].sort()  # a set to peft, which writes it in any order
    write_json(fresh / "adapter_config.json", described)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def ask(bundle: Bundle, n: int | None, path: Path, which: str) -> list[dict]:
    """A model's records of `evaluation.probe_items` and, at the end, of the diagram's example."""
    items: list[Item] = evaluation.probe_items(bundle, "heldout", n)
    items.append(evaluation.diagram_item())
    records = evaluation.evaluate_file(bundle, items, path, chunk=CHUNK, by_place=True,
                                       max_new_tokens=NEW_TOKENS, progress=f"{which} model")
    evaluation.save_records(records, path)  # no others, such as those of another n
    return records


def measured(records: list[dict]) -> dict:
    """`evaluation.probe_summary`, the cell that succeeds most often, and kinds of answers."""
    attack, rate = evaluation.worst(records)
    answers = evaluation.kinds_of_answers(r for r in records if r["position"])
    return evaluation.probe_summary(records) | {"worst": {"attack": attack, "rate": rate},
                                                "answers": answers}


def as_report(found: Mapping) -> dict:
    """A model's rates under the names that `report.render_report` reads."""
    cells = found["separation"]
    return {**found, "asr": {cell: rates["obeyed"] for cell, rates in cells.items()
                             if "obeyed" in rates},
            "accuracy_under_attack": {cell: rates["right"] for cell, rates in cells.items()}}


def run_real(folder: str | Path = "runs/real", n: int | None = None, n_pairs: int | None = None,
             base: bool = False, seed: int = 0) -> dict:
    """Runs the whole job and returns the summary as it is stored; see the top of this file.

    `n` held-out tasks are asked and attacked (None: all 378), `n_pairs` pairs train the SecAlign
    stage (None: the recipe's), and with `base` the model before both stages is measured too. The
    `seed` is that of both stages: their pairs, adapters and batches; the held-out test is the same
    for all seeds. The folder gets both adapters, `records_*.jsonl`, `summary.json`, `stages.json`,
    figures and `report.html`. Raises ValueError if it holds a run with other settings, for numbers
    below 1, for a negative seed, and for more tasks than there are.
    """
    refuse_numbers(n, n_pairs, seed)
    folder = Path(folder)
    configs = settings(folder, n_pairs, seed)
    for config in configs.values():
        training.refuse_other_run(config)
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(folder)
    with stages.timed("fetch"):
        fetch_model()
    for name, config in configs.items():
        train(name, config, folder / name, stages)
        gc.collect()
    stages.found.pop("report", None)  # it is always made anew
    undefended, secured = (folder / name for name in configs)
    records = {}
    if base:
        with stages.timed("evaluation: base"):
            records["base"] = ask(models.load(MODEL, four_bit=False), n,
                                  folder / "records_base.jsonl", "base")
    bundle = models.load(f"{MODEL}+{undefended}", four_bit=False, adapter=secured)
    with stages.timed("evaluation: undefended"), models.insecure(bundle):
        records["undefended"] = ask(bundle, n, folder / "records_undefended.jsonl", "undefended")
    with stages.timed("evaluation: secured"):
        records["secured"] = ask(bundle, n, folder / "records_secured.jsonl", "secured")
    with stages.timed("report"):
        found = {which: measured(kept[:-1]) for which, kept in records.items()}
        summary = write(folder, configs["smollm2_secalign"], bundle, records, found, stages)
    return summary


def refuse_numbers(n: int | None, n_pairs: int | None, seed: int) -> None:
    """Raises ValueError for numbers with which the job would fail, or mean something else."""
    for name, number in (("n", n), ("n_pairs", n_pairs)):
        if number is not None and number < 1:  # before half an hour of training
            raise ValueError(f"{name} is {number}; give a number above 0")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or a number above it")
    if n and n > (there := len(english.texts("heldout"))):
        raise ValueError(f"n is {n} and there are {there} held-out tasks; give {there} at most")


def machine(device: torch.device) -> str:
    """What a run's seconds are of: the GPU's name, or the CPU's cores and their products."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    exact = "bf16" if models.has_bf16(device) else "fp32"
    return f"{torch.get_num_threads()} CPU cores, products in {exact}"


def write(folder: Path, config: RunConfig, bundle: Bundle, records: Mapping[str, list[dict]],
          found: Mapping[str, dict], stages: Stages) -> dict:
    """`summary.json`, the figures and the report; the summary as it is stored."""
    said = {"insecure": records["undefended"][-1]["response"],
            "secure": records["secured"][-1]["response"]}
    with models.native_precision(bundle):
        shift = logprobs.shift_table(bundle, training.probe_pairs(config, "heldout", SHIFTED),
                                     config.max_length)
        diagram = logprobs.measure_diagram(bundle, evaluation.diagram_item(), **said)
    metrics = [json.loads(line) for line in
               (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    page = {"insecure": as_report(found["undefended"]), "secure": as_report(found["secured"]),
            "logprob": logprobs.mean_shift(shift), "seconds": stages.seconds}
    pictures = {"diagram": figures.diagram(diagram), "training": figures.training_curves(metrics),
                "shift": figures.shift_scatter(shift), "asr": figures.asr_bars(page)}
    pictures = {name: figures.png(figure) for name, figure in pictures.items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, png in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(png)
    examples = evaluation.examples(records["undefended"], records["secured"], 2)
    report.write_report(folder / "report.html", report.render_report(
        page, pictures, examples, asdict(config), NOTES))
    summary = demo.plain({
        **found, "logprob": page["logprob"], "logprob_pairs": len(shift), "diagram": said,
        "model": MODEL, "seed": config.seed, "device": machine(bundle.device),
        "stages": stages.done, "seconds": round(stages.seconds, 1),
        "versions": training.versions()})
    write_json(folder / "summary.json", summary)
    return summary
