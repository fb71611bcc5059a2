"""The same functions from a shell: `secalign-kit demo`, `train`, `evaluate`, `ledger` ...

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

from .config import RunConfig, recipe, recipes


def _settings(pairs: list[str]) -> dict[str, str]:
    """`["beta=0.2"]` as a dictionary. Raises ValueError for an entry without `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--set {pair!r} is no setting; write it as name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def _config(arguments) -> RunConfig:
    config = _named(arguments.config)
    if getattr(arguments, "output", None):
        config = config.replace(output=arguments.output)
    return config.replace(**_settings(arguments.set))


def _named(name: str) -> RunConfig:
    """A YAML file, a recipe of `data/recipes`, or a variant of the study."""
    if name.endswith((".yaml", ".yml")):
        return RunConfig.from_yaml(name)
    if name not in recipes():
        from .studies import study

        if name in study.VARIANTS:
            return study.config(name).replace(output=RunConfig().output)
    return recipe(name)


def demo(arguments) -> None:
    from . import demo as job
    from .studies import summaries

    config = _config(arguments)
    summary = job.run_demo(config=config, n=arguments.n)
    print("\n".join(summaries.table_lines(summary)))
    print(f"\ninsecure: {summary['diagram']['insecure']}")
    print(f"secure:   {summary['diagram']['secure']}")
    print(f"\n{summary['seconds']:.0f} s. Report: {Path(config.output) / 'report.html'}")


def train(arguments) -> None:
    from . import pairs, training

    config = _config(arguments)
    if config.output == RunConfig().output:
        config = config.replace(output=f"runs/{Path(arguments.config).stem}")
    bundle = training.base_model(config)
    dataset = (pairs.load_pairs(arguments.pairs) if arguments.pairs
               else training.training_pairs(config, bundle=bundle))
    probe = training.probe_pairs(config, "validation", 64)
    run = training.train(config, dataset, probe, bundle)
    print(f"{run.seconds:.0f} s. Adapter: {run.folder / 'adapter'}")


def _attacks(text: str) -> list:
    """Names, "all", or a JSON file of templates, separated by commas; each attack once.

    Raises ValueError for two files whose templates would have the same names.
    """
    from . import evaluation, injections

    known = {"all": tuple(injections.ATTACKS), "five": evaluation.ATTACKS}
    found: dict = {}
    for name in text.split(","):
        if not name.endswith(".json"):
            found |= {attack: attack for attack in known.get(name, (name,))}
            continue
        loaded = injections.load_attacks(name)
        if not found.keys().isdisjoint(loaded):
            raise ValueError(f"{name}: there are attacks of this name already; rename the file")
        found |= {attack: (attack, function) for attack, function in loaded.items()}
    return list(found.values())


def evaluate(arguments) -> None:
    from . import defenses, evaluation, injections, models
    from .samples import load_samples

    samples = load_samples(arguments.samples) if arguments.samples else None
    witness = injections.witness(arguments.witness) if arguments.witness else None
    bundle = models.load(arguments.model, four_bit=not arguments.no_four_bit,
                         adapter=models.ADAPTERS.get(arguments.adapter, arguments.adapter),
                         format=arguments.format)
    items = evaluation.evaluation_items(
        bundle, arguments.split, arguments.n, arguments.position, _attacks(arguments.attacks),
        arguments.targets.split(","), arguments.judge, samples, witness)
    items = evaluation.shard(items, arguments.shard)
    wanted = ",".join(defenses.DEFENSES) if arguments.defenses == "all" else arguments.defenses
    names = wanted.split(",")
    for name in names:
        options = dict(defense=name, frontend=not arguments.no_frontend,
                       max_new_tokens=arguments.max_new_tokens,
                       progress=f"evaluation, defense {name}")
        records = (evaluation.evaluate_file(bundle, items, Path(arguments.records), **options)
                   if arguments.records else evaluation.evaluate(bundle, items, **options))
        if len(names) > 1:
            print(f"\ndefense: {name}")
        for key, value in evaluation.flatten(evaluation.summarize(records)):
            print(f"{key:40} {value}")
        for record in evaluation.failing(records)[: arguments.failing]:
            print("\n" + "\n".join(evaluation.failing_lines(record)))


def ledger(arguments) -> None:
    from .samples import write_text
    from .studies import ledger as book
    from .studies import study

    folder = Path(arguments.folder)
    if not arguments.shipped:
        study.run_study(folder, arguments.seeds, arguments.n,
                        base=study.BASE.replace(**_settings(arguments.set)))
    evidence = book.load_evidence() if arguments.shipped else book.gather(folder)
    entries = book.ledger(evidence)
    if not arguments.shipped:
        book.save_evidence(evidence, folder / "evidence")
        write_text(folder / "ledger.md", book.markdown(entries))
    for number, entry in enumerate(entries, 1):
        print(f"{number:2}. {entry.text}  {entry.verdict.upper()}\n    papers: {entry.paper}\n"
              f"    here:   {entry.ours}\n    {entry.why}")


def pairs(arguments) -> None:
    from . import pairs as stage
    from .samples import load_samples

    dataset = stage.pairs_dataset(load_samples(arguments.samples), seed=arguments.seed,
                                  n=arguments.n, position=arguments.position)
    stage.save_pairs(dataset, arguments.folder, source=Path(arguments.samples).name)
    print(f"{len(dataset)} pairs: {arguments.folder}")


def doctor(arguments) -> None:
    import torch

    from . import models, training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    for key, value in training.versions().items():
        print(f"{key:14} {value}")
    print(f"{'device':14} {device} ({name})")
    print(f"{'4-bit products':14} {models.compute_dtype(device)}")


def adapters(arguments) -> None:
    from .studies import cards

    for name in arguments.names:
        print(f"{name}: {cards.make_adapter(name)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="secalign-kit", description=(
        "SecAlign: defending against prompt injection with preference optimization."))
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function, help: str, config: str | None = None):
        sub = commands.add_parser(function.__name__, help=help)
        sub.set_defaults(run=function)
        if config:
            sub.add_argument("--config", default=config,
                             help="a recipe, a variant of the ledger, or a YAML file")
            sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                             help="change one setting, e.g. beta=0.2; may be repeated")
            sub.add_argument("--output", help="the run's folder")
        return sub

    sub = command(demo, "the main job: insecure to secure, with a report", "demo")
    sub.add_argument("--n", type=int, help="attacked samples (default: all held-out ones)")
    sub = command(train, "train an adapter", "demo")
    sub.add_argument("--pairs", metavar="FOLDER", help="pairs that `secalign-kit pairs` made")
    sub = command(evaluate, "attack success rates and utility of a model")
    sub.add_argument("adapter", nargs="?",
                     help="a run, an adapter's folder, or a shipped one (default: none)")
    sub.add_argument("--model", default="toy", help="a preset, a Hub id or a folder")
    sub.add_argument("--format", help="prompt format, needed for a Hub id or a folder")
    sub.add_argument("--split", default="heldout", choices=("validation", "heldout"))
    sub.add_argument("--samples", metavar="FILE",
                     help="attack these samples (any Alpaca-shaped file) instead of the kit's own")
    sub.add_argument("--n", type=int, help="attacked samples")
    sub.add_argument("--position", default="end", choices=("end", "start", "middle", "random"))
    sub.add_argument("--attacks", default="five", metavar="NAMES",
                     help="five (default), all, names, or a JSON file of templates; with commas")
    sub.add_argument("--targets", default="witness", metavar="NAMES",
                     help="witness (default), payload: another sample's answer, fidelity: tasks "
                          "about the text of requests; with commas")
    sub.add_argument("--witness", metavar="WORDS",
                     help="what attackers want printed instead of the split's own word")
    sub.add_argument("--judge", default="begins_with", choices=("begins_with", "contains"),
                     help="what a response to the witness request must do to count as obeyed")
    sub.add_argument("--defenses", default="none", metavar="NAMES",
                     help="all, or names of prompting defenses with commas")
    sub.add_argument("--shard", default="1/1", help="k/n: every n-th sample only")
    sub.add_argument("--records", help="one JSON line per item; a killed evaluation goes on there")
    sub.add_argument("--max-new-tokens", type=int, default=48, metavar="N",
                     help="the longest response (default: 48)")
    sub.add_argument("--failing", type=int, default=0, metavar="N",
                     help="show N items that obeyed an injection, or were wrong without one")
    sub.add_argument("--no-four-bit", action="store_true")
    sub.add_argument("--no-frontend", action="store_true", help="no filter: delimiters are real")
    sub = command(ledger, "the papers' claims, decided by runs on the embedded model (an hour)")
    sub.add_argument("--folder", default="runs/ledger", help="runs and records; resumes there")
    sub.add_argument("--seeds", type=int, default=3)
    sub.add_argument("--n", type=int, default=150, help="attacked samples per attack")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="change the study's base, e.g. model=qwen2.5-0.5b; may be repeated")
    sub.add_argument("--shipped", action="store_true", help="no run: the evidence in data/ledger")
    sub = command(pairs, "make preference pairs from an Alpaca-shaped file")
    sub.add_argument("samples")
    sub.add_argument("folder")
    sub.add_argument("--n", type=int)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--position", default="end", choices=("end", "start", "random"))
    command(doctor, "versions, device and precision")
    sub = command(adapters, "make the shipped adapters anew")
    sub.add_argument("names", nargs="*", default=["secalign", "secalign_random"])
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command; bad input ends in one sentence and exit code 2."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # ours tell more
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to one another
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"secalign-kit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("secalign-kit: stopped; run the same command to go on", file=sys.stderr)
        return 130
    return 0
