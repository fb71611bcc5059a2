"""Study: every variant of the method, trained with several seeds, all measured on the same items.

One datum, a row of `measurements`: `variant=secalign, seed=0, condition=unseen, measure=asr,
attack=hijack, successes=0, n=150`.

A *variant* is a training that differs from the paper's in one thing (`VARIANTS`); "insecure" is the
model without any. A *condition* is one way to ask: which attacks, at which place, under which
prompting defense, with or without the filter (`CONDITIONS`). Each run folder holds what `training`
leaves there and one JSONL file of records per condition; a killed study goes on there.

Against four variants, GCG searches too (`SEARCHED`).

Numbers of pairs and rates were chosen on the validation split.

Limits: one pre-training of one small model; seeds change pairs, LoRA and order, not the model. All
seeds meet the same held-out items, so pooled intervals are of these items, not of all texts.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import attackers, evaluation, generation, injections, logprobs, models, training
from ..config import RunConfig
from ..defenses import PROMPTING
from ..evaluation import Item
from ..models import Bundle
from ..samples import load_samples, save_samples, shipped_samples, write_text

BASE = RunConfig(n_pairs=4800, learning_rate=5e-4, probe_every=15, save_steps=1000)
"""The paper's loss, beta and pairs; number of pairs and rate suit the embedded model."""

_STRUQ = {"loss": "sft", "naive": 0.5, "clean": 0.5}
_DOUBLE = {"learning_rate": 2 * BASE.learning_rate}
VARIANTS: dict[str, dict] = {
    "secalign": {},
    "struq": _STRUQ,
    "secalign_kit": {"clean": 0.3, "sft_weight": 1.0},  # the kit's two additions
    "ipo": {"loss": "ipo"},
    "orpo": {"loss": "orpo"},
    "kto": {"loss": "kto"},
    "simpo": {"loss": "simpo", "beta": 2.0},
    # random positions are learned more slowly, so both stand beside the double rate, not BASE
    "secalign_double_rate": _DOUBLE,
    "secalign_random": _DOUBLE | {"position": "random"},
    "secalign_plus": _DOUBLE | {"position": "random", "responses": "self"},
    "secalign_half_rate": {"learning_rate": BASE.learning_rate / 2},
    "secalign_10": {"n_pairs": 480},
    "secalign_20": {"n_pairs": 960},
    "secalign_20_as_long": {"n_pairs": 960, "epochs": 5},
    "secalign_50": {"n_pairs": 2400},
    "struq_20": _STRUQ | {"n_pairs": 960},
    "struq_50": _STRUQ | {"n_pairs": 2400},
}
"""Variant -> how its configuration differs from `BASE`."""

PAPER_ATTACKS = ("ignore", "completion", "ignore_completion")
"""The optimization-free attacks of the paper's Table 6."""
SEEN = ("naive", *PAPER_ATTACKS)
UNSEEN = tuple(name for name in injections.ATTACKS if name not in SEEN)
"""Attacks that no training pair was made with; completion_other comes nearest to one that was."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


_WITNESSES = {w.id: w for w in (injections.WITNESS["heldout"], *injections.OTHER_WITNESSES)}


@dataclass(frozen=True)
class Condition:
    """One way to ask a model: attacks (or none), where they stand, and what guards the prompt."""

    attacks: tuple[str, ...] = ()
    position: str = "end"
    defense: str = "none"
    frontend: bool = True
    strength: float = 1.0
    target: str = "witness"
    witness: str = injections.WITNESS["heldout"].id

    def items(self, bundle: Bundle, n: int | None) -> list[Item]:
        """Held-out items: `n` attacked samples per attack, or all clean ones without attacks."""
        samples = shipped_samples("heldout")
        if self.target == "fidelity":
            return evaluation.fidelity_items(samples)
        if not self.attacks:
            return evaluation.clean_items(samples)
        hosts = [s for s in samples if s.data][:n]
        items = []
        for attack in self.attacks:
            if self.target == "payload":
                items += evaluation.payload_items(hosts, attack, bundle, position=self.position)
            else:
                items += evaluation.attacked_items(hosts, attack, _WITNESSES[self.witness], bundle,
                                                   position=self.position)
        return items


def _conditions() -> dict[str, Condition]:
    found = {
        "clean": Condition(),
        "seen": Condition(SEEN),
        "unseen": Condition(UNSEEN),
        "start": Condition(("naive", "ignore"), "start"),
        "middle": Condition(("naive", "ignore"), "middle"),
        "payload": Condition(SEEN, target="payload"),
        "fidelity": Condition(target="fidelity"),
        "no_filter": Condition(("completion", "ignore_completion"), frontend=False),
    }
    for witness in injections.OTHER_WITNESSES:
        found[witness.id] = Condition(SEEN, witness=witness.id)
    for name in PROMPTING:
        found[f"clean_{name}"] = Condition(defense=name)
        found[f"seen_{name}"] = Condition(SEEN, defense=name)
    for strength in STRENGTHS[1:-1]:  # 0 and 1 are the insecure model and the variant itself
        found[f"clean_strength_{strength}"] = Condition(strength=strength)
        found[f"seen_strength_{strength}"] = Condition(SEEN, strength=strength)
    return found


CONDITIONS = _conditions()
"""Condition by name; a name that begins with "clean" asks for utility."""

_BRIEF = ("clean", "seen")
_FULL = (*_BRIEF, "unseen", "start", "middle", "payload", "fidelity", "no_filter",
         *(w.id for w in injections.OTHER_WITNESSES))
_DEFENDED = tuple(name for name, c in CONDITIONS.items() if c.defense != "none")
_DIALLED = tuple(name for name, c in CONDITIONS.items() if c.strength != 1.0)
ASKED: dict[str, tuple[str, ...]] = dict.fromkeys(VARIANTS, _BRIEF) | {
    "insecure": (*_FULL, *_DEFENDED),
    "secalign": (*_FULL, *_DIALLED),
    "struq": _FULL,
    "secalign_kit": _FULL,
    **dict.fromkeys(("secalign_double_rate", "secalign_random", "secalign_plus"),
                    (*_BRIEF, "start", "middle")),
}
"""Variant -> the conditions it is measured under."""

SEARCHED = ("secalign", "struq", "orpo", "kto")
"""Variants that GCG attacks, with the first seed."""
GCG = attackers.Budget(steps=100, candidates=48)


def config(variant: str, base: RunConfig | None = None) -> RunConfig:
    """What a variant makes of the base (`BASE`, if none is given).

    Its pairs and rate keep their proportion to the base's. Raises ValueError for an unknown
    variant.
    """
    base = base or BASE
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    changes = dict(VARIANTS[variant])
    if "n_pairs" in changes:
        changes["n_pairs"] = round(base.n_pairs * changes["n_pairs"] / BASE.n_pairs)
    if "learning_rate" in changes:
        changes["learning_rate"] *= base.learning_rate / BASE.learning_rate
    return base.replace(**changes)


def run_study(folder: str | Path = "runs/ledger", seeds: int = 3, n: int = 150,
              variants: Iterable[str] | None = None,
              base: RunConfig | None = None, n_searched: int = 100) -> pd.DataFrame:
    """Trains and measures what the folder lacks; returns `measurements` of it.

    `n` held-out samples are attacked per attack, and `n_searched` by `search_study`; `variants` are
    all by default. Another model than the embedded one is named in `base`; it is asked about the
    same small world.
    Raises ValueError for an unknown variant, or for n, seeds or n_searched < 1.
    """
    folder, base = Path(folder), base or BASE
    variants = list(VARIANTS if variants is None else variants)
    if min(n, seeds, n_searched) < 1:
        raise ValueError(f"n is {n}, seeds is {seeds} and n_searched is {n_searched}; ask for at "
                         "least one of each")
    jobs = [(v, s, config(v, base).replace(seed=s, output=str(folder / f"{v}-{s}")))
            for s in range(seeds) for v in variants]
    for _, _, settings in jobs:
        training.refuse_other_run(settings)  # before the records of another model are touched
    insecure = training.base_model(base)
    measure(insecure, folder / "insecure-0", ASKED["insecure"], n, "insecure")
    for number, (variant, seed, settings) in enumerate(jobs, 1):
        name = f"{variant}-{seed} ({number} of {len(jobs)})"
        measure(_trained(settings, name), Path(settings.output), ASKED[variant], n, name)
    search_study(folder, n_searched, [v for v in SEARCHED if v in variants], base)
    return measurements(folder)


def search_study(folder: str | Path = "runs/ledger", n: int = 100,
                 variants: Iterable[str] = SEARCHED, base: RunConfig | None = None) -> list[dict]:
    """GCG against the first seed of variants, which are trained if the folder lacks them.

    The payload stands bare at the end of the first `n` held-out samples with data, twelve tokens
    behind it. Every search is kept in the run's `searches.jsonl`; the rows of `attackers.table`,
    with the variant as the model, are returned and kept in the folder's `searches.json`. Raises
    ValueError for an unknown variant or n < 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; search on at least one sample")
    folder, rows = Path(folder), []
    for variant in variants:
        settings = config(variant, base).replace(seed=0, output=str(folder / f"{variant}-0"))
        bundle = _trained(settings, f"{variant}-0")
        records = attackers.attack_file(
            bundle, ("gcg", attackers.gcg), Condition(("naive",)).items(bundle, n), GCG,
            Path(settings.output) / "searches.jsonl", progress=f"{variant}-0, gcg")
        rows.append({"model": variant, "where": "suffix, end", "target": "witness",
                     "split": "heldout", "seed": 0, **attackers.summary(records)})
        attackers.runs.keep(rows, folder / SEARCHES)
    return rows


def _trained(settings: RunConfig, name: str) -> Bundle:
    """The run's model: its finished adapter on a fresh base, or a training that goes on."""
    folder = Path(settings.output)
    training.refuse_other_run(settings)
    bundle = training.base_model(settings)
    if (folder / "shift.csv").exists():  # written last, when the training was over
        return models.with_adapter(bundle, folder / "adapter")
    print(f"training {name}", flush=True)
    _share_reference(Path(settings.output), settings.seed)
    dataset = training.training_pairs(settings, samples=_samples(settings, bundle))
    run = training.train(settings, dataset, training.probe_pairs(BASE, "validation", 64), bundle)
    shift = logprobs.shift_table(run.bundle, training.probe_pairs(BASE, "heldout", 300),
                                 settings.max_length)
    write_text(folder / "shift.csv", shift.to_csv(index=False))
    return run.bundle


def _share_reference(folder: Path, seed: int) -> None:
    """Lends the run the reference log-probs of the same seed; by their content, it knows if they
    are those of its own pairs.
    """
    known = folder.parent / f"secalign-{seed}" / "reference.safetensors"
    if known.exists() and not (folder / known.name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(known, folder / "reference.part")
        os.replace(folder / "reference.part", folder / known.name)


def _samples(settings: RunConfig, bundle: Bundle):
    """The training samples; the insecure model's own answers are made once for all seeds."""
    if settings.responses != "self":
        return None
    path = Path(settings.output).parent / "own_answers.jsonl"
    if not path.exists():
        save_samples(generation.own_answers(bundle, shipped_samples("train"), "own answers"), path)
    return load_samples(path)


def measure(bundle: Bundle, folder: Path, conditions: Iterable[str], n: int, name: str) -> None:
    """Writes `records/<condition>.jsonl` for each condition; what is there already is not asked
    again.
    """
    for key in conditions:
        condition = CONDITIONS[key]
        path = folder / "records" / f"{key}.jsonl"
        dialled = condition.strength != 1.0
        with models.strength(bundle, condition.strength) if dialled else contextlib.nullcontext():
            records = evaluation.evaluate_file(
                bundle, condition.items(bundle, n), path, defense=condition.defense,
                frontend=condition.frontend, progress=f"{name}, {key}")
        evaluation.save_records(records, path)  # no others, such as those of another n


# --- What the records say -------------------------------------------------------------------------

SEARCHES = "searches.json"
COLUMNS = ("variant", "seed", "condition", "measure", "attack", "successes", "n")


def measurements(folder: str | Path) -> pd.DataFrame:
    """Counts of every run, condition, measure and attack, with the columns of `COLUMNS`.

    Measures are those of `evaluation.counts`. Raises ValueError if the folder holds no records.
    """
    rows = []
    for path in sorted(Path(folder).glob("*/records/*.jsonl")):
        for found, attack, _, *count in evaluation.counts(evaluation.read_records(path)):
            rows.append((*_run(path.parent.parent), path.stem, found, attack, *count))
    if not rows:
        raise ValueError(f"{folder} holds no records; run `secalign-kit ledger` there first")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _run(folder: Path) -> tuple[str, int]:
    """(variant, seed) of a run's folder."""
    variant, seed = folder.name.rsplit("-", 1)
    return variant, int(seed)


def trajectories(folder: str | Path) -> pd.DataFrame:
    """Mean log p on 64 validation pairs over each training: variant, seed, step, chosen, rejected.

    In summed nats per response.
    """
    rows = []
    for path in sorted(Path(folder).glob("*/metrics.jsonl")):
        rows += [(*_run(path.parent), record["step"], round(record["chosen_logprob"], 3),
                  round(record["rejected_logprob"], 3))
                 for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())
                 if "chosen_logprob" in record]
    return pd.DataFrame(rows, columns=["variant", "seed", "step", "chosen", "rejected"])


def shifts(folder: str | Path) -> pd.DataFrame:
    """Mean log p of 300 held-out pairs before and after each training, in summed nats."""
    rows = []
    for path in sorted(Path(folder).glob("*/shift.csv")):
        variant, seed = _run(path.parent)
        table = pd.read_csv(path)
        means = table[["chosen_before", "chosen_after", "rejected_before", "rejected_after"]].mean()
        rows.append({"variant": variant, "seed": seed, "n": len(table), **means.round(3)})
    return pd.DataFrame(rows)


def own_answer_agreement(folder: str | Path) -> tuple[int, int]:
    """(equal, all): in how many training samples the insecure model's own answer is the sample's.

    (0, 0) if no variant asked for them.
    """
    path = Path(folder) / "own_answers.jsonl"
    if not path.exists():
        return 0, 0
    pairs = list(zip(load_samples(path), shipped_samples("train"), strict=True))
    return sum(own.answer.strip() == s.answer.strip() for own, s in pairs), len(pairs)
