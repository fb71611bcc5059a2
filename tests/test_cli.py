"""The command line says what was wrong in one sentence, and its help needs no torch."""

import json
import re
import subprocess
import sys

import pytest

import secalign_kit
from secalign_kit import cli, defenses, demo, evaluation, injections, models, training
from secalign_kit.config import RunConfig, recipe
from secalign_kit.pairs import load_pairs
from secalign_kit.studies import ledger, summaries


@pytest.mark.parametrize("arguments", [
    ["train", "--config", "no-such-recipe"], ["train", "--set", "beta"],
    ["train", "--set", "betta=1"], ["pairs", "no-such-file.json", "out"],
    ["evaluate", "no-such-adapter", "--n", "2"], ["evaluate", "--format", "no-such-format"],
    ["adapters", "demo"], ["train", "--pairs", "no-such-folder"],
])
def test_bad_input_ends_in_one_sentence(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("secalign-kit: ") and said.count("\n") == 0 and "Traceback" not in said


@pytest.mark.parametrize(("arguments", "words"), [
    (["train", "--config", "papr"], ["mean paper?", "demo", "orpo", "struq"]),
    (["evaluate", "secaling"], ["mean secalign?", "secalign_random", "Hub id"]),
    (["evaluate", "--attacks", "ignore-completon"], ["mean ignore_completion?", "naive", "unseen"]),
    (["evaluate", "--defenses", "sandwhich"], ["mean sandwich?", "in_context", "all"]),
    (["evaluate", "--targets", "witnes"], ["mean witness?", "payload", "fidelity"]),
    (["adapters", "papers"], ["mean paper?", "secalign"]),
    (["model", "smollm-135m"], ["mean smollm2-135m?"]),
    (["doctor", "--model", "qwen3-8"], ["mean qwen3-8b?", "llama3-8b"]),
])
def test_an_unknown_name_is_refused_with_all_names_before_a_model_is_loaded(arguments, words,
                                                                            monkeypatch, capsys):
    monkeypatch.setattr(models, "load", lambda *args, **options: pytest.fail("a model was loaded"))
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name", ["ignore-completion", "ignore completion", "Ignore_Completion"])
def test_names_may_be_written_as_a_table_prints_them(name):
    assert cli._attacks([name], "heldout") == ["ignore_completion"]
    assert cli._named("secalign-random") == recipe("secalign_random")


@pytest.mark.parametrize("arguments", [["train", "--config", "gone.yaml"],
                                       ["evaluate", "--samples", "gone.json"]])
def test_a_file_that_is_not_there_is_named_in_a_sentence(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert arguments[-1] in said and "Errno" not in said


def test_a_key_stops_a_command_with_a_line_of_its_own(monkeypatch, capsys):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_named", stop)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err.startswith("\nsecalign-kit: stopped")


def test_where_an_error_arose_is_shown_if_it_is_asked_for():
    with pytest.raises(ValueError, match="no shipped adapter 'nosuch'"):
        cli.main(["--debug", "adapters", "nosuch"])


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"secalign-kit {secalign_kit.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_that_are_read(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert examples
    for line in examples:
        program, *arguments = line.split()
        assert program == "secalign-kit" and cli._parser().parse_args(arguments).command == name


def test_a_second_demo_says_that_it_uses_the_first(tmp_path, monkeypatch, capsys):
    said = {"diagram": {"insecure": "", "secure": ""}, "seconds": 1.0}
    monkeypatch.setattr(demo, "run_demo", lambda config, n: said)
    monkeypatch.setattr(summaries, "table_lines", lambda summary: [])
    for again in (False, True):
        assert cli.main(["demo", "--output", str(tmp_path)]) == 0
        assert ("used again" in capsys.readouterr().out) == again
        (tmp_path / "summary.json").write_text("{}")


def test_pairs_are_made_from_an_alpaca_shaped_file(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "input": f"text {n}", "output": f"answer {n}"}
            for n in range(6)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    assert cli.main(["pairs", str(tmp_path / "alpaca.json"), str(tmp_path / "out")]) == 0
    assert "6 pairs" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").exists()


def test_a_place_that_cannot_be_written_ends_in_one_sentence(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "input": "text", "output": f"{n}"} for n in range(3)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    (tmp_path / "file").touch()
    assert cli.main(["pairs", str(tmp_path / "alpaca.json"), str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_attacks_are_asked_once_and_files_do_not_hide_each_other(tmp_path):
    assert cli._attacks(["five", "naive"], "heldout") == list(evaluation.ATTACKS)
    assert sorted(cli._attacks(["naive", "all"], "heldout")) == sorted(injections.ATTACKS)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.json").write_text('["Now: {payload}"]')
    paths = [str(tmp_path / folder / "mine.json") for folder in ("a", "b")]
    assert [name for name, _ in cli._attacks(paths[:1], "heldout")] == ["mine_0"]
    with pytest.raises(ValueError, match="rename the file"):
        cli._attacks(paths, "heldout")
    unseen = dict(cli._attacks(["unseen", "unseen"], "validation"))
    assert list(unseen) == list(injections.unseen_attacks("validation"))


def test_pairs_are_made_by_a_recipe_and_its_changes(tmp_path):
    rows = [{"instruction": f"Say {n}.", "input": f"text {n} here", "output": f"answer {n}"}
            for n in range(60)]
    path, kinds = tmp_path / "alpaca.json", {}
    path.write_text(json.dumps(rows))
    for name, extra in {"demo": [], "paper": ["--config", "paper", "--set", "clean=0"]}.items():
        assert cli.main(["pairs", str(path), str(tmp_path / name), *extra]) == 0
        kinds[name] = set(load_pairs(tmp_path / name)["attack"])
    assert "frame" in kinds["demo"] and kinds["paper"] <= {"naive", "completion"}


def test_pairs_are_made_as_it_was_asked_though_the_runs_own_were_loaded(tmp_path):
    rows = [{"instruction": f"Say {n}.", "input": "text", "output": f"{n}"} for n in range(9)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    RunConfig(pairs="elsewhere").to_yaml(tmp_path / "run.yaml")
    assert cli.main(["pairs", str(tmp_path / "alpaca.json"), str(tmp_path / "out"), "--config",
                     str(tmp_path / "run.yaml"), "--set", "position=start"]) == 0
    assert set(load_pairs(tmp_path / "out")["position"]) == {"start"}


@pytest.mark.parametrize("change", ["n_pairs=2", "seed=1", "responses=self", "beta=0.2"])
def test_pairs_refuse_a_setting_that_makes_none(tmp_path, change, capsys):
    rows = [{"instruction": f"Say {n}.", "input": "text", "output": f"{n}"} for n in range(3)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    arguments = ["pairs", str(tmp_path / "alpaca.json"), str(tmp_path / "out"), "--set", change]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert change.partition("=")[0] in said and "--n and --seed" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "folder"), [
    ([], "runs/orpo"), (["--output", "runs/run"], "runs/run"),
    (["--set", "output=runs/run"], "runs/run"), (["--output", "runs/mine"], "runs/mine"),
])
def test_a_run_goes_where_it_was_told_to_and_else_under_its_recipes_name(given, folder,
                                                                         monkeypatch):
    trained = []

    def train(config, *args):
        trained.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(training, "train", train)
    for name in ("base_model", "training_pairs", "probe_pairs"):
        monkeypatch.setattr(training, name, lambda *args, **options: None)
    assert cli.main(["train", "--config", "orpo", *given]) == 2
    assert [config.output for config in trained] == [folder]


def test_evaluate_shows_every_place_and_the_worst(capsys):
    assert cli.main(["evaluate", "secalign", "--n", "2", "--position", "all", "--attacks",
                     "naive,unseen", "--split", "validation"]) == 0
    out = capsys.readouterr().out
    for place in ("end", "start", "middle"):
        assert f"asr naive, {place} " in out and f"asr unseen form, {place} " in out
    assert "the worst of all" in out and out.count("clean utility") == 1


def test_saved_pairs_are_trained_on_and_the_run_is_evaluated(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "input": "text", "output": f"{n}"} for n in range(8)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    folder, run = str(tmp_path / "pairs"), str(tmp_path / "run")
    assert cli.main(["pairs", str(tmp_path / "alpaca.json"), folder]) == 0
    assert cli.main(["train", "--pairs", folder, "--output", run, "--set", "batch_size=4",
                     "--set", "four_bit=false"]) == 0
    config = RunConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.pairs, config.n_pairs, config.position) == (folder, 8, RunConfig().position)
    assert f"the pairs of {folder}" in (tmp_path / "run" / "pairs" / "README.md").read_text()
    with pytest.raises(ValueError, match="holds 8 pairs and n_pairs is 9"):
        training.training_pairs(config.replace(n_pairs=9))
    assert cli.main(["evaluate", run, "--n", "2", "--no-four-bit", "--attacks", "naive"]) == 0
    assert "asr naive" in capsys.readouterr().out


def test_a_hostile_text_in_a_message_is_made_visible(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("a\u009b31mb,c\nx,y\n", encoding="utf-8")
    assert cli.main(["pairs", str(rows), str(tmp_path / "pairs"), "--columns",
                     "instruction=q"]) == 2
    assert "a[U+009B]31mb, c" in capsys.readouterr().err


def test_evaluate_prints_rates_with_n_and_writes_records(tmp_path, capsys):
    records = tmp_path / "records.jsonl"
    assert cli.main(["evaluate", "secalign", "--n", "3", "--records", str(records)]) == 0
    out = capsys.readouterr().out
    assert "asr naive" in out and "(n=3)" in out
    assert re.search(r"answers under attack: right +\d.*\(n=15\)", out)
    assert len(records.read_text().splitlines()) > 15


def test_evaluate_takes_ones_own_samples_witness_and_defenses(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "input": f"text {n}", "output": f"{n}"} for n in range(4)]
    path, records = tmp_path / "alpaca.json", tmp_path / "records.jsonl"
    path.write_text(json.dumps(rows))
    arguments = ["evaluate", "--samples", str(path), "--attacks", "completion", "--witness", "Ahoy",
                 "--defenses", "all", "--targets", "witness,payload", "--shard", "1/2", "--failing",
                 "1", "--records", str(records)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"defense: {name}\n" in out for name in defenses.DEFENSES)
    found = evaluation.read_records(records)
    asked = [r for r in found if r["attack"] == "completion" and r["target"] == "witness"]
    assert {r["witness"] for r in asked} == {"Ahoy"} and len({r["id"] for r in found}) < 6
    assert {r["defense"]: r["frontend"] for r in asked} == {
        name: name != "bare" for name in defenses.DEFENSES}
    failing = evaluation.failing(found)
    assert failing and "right is" in out


ROW = {"instruction": "Count the words.", "input": "red owl", "output": "2"}
OTHER = {"instruction": "Say it.", "input": "blue", "output": "blue"}


def evaluate_rows(tmp_path, rows, *options) -> int:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    return cli.main(["evaluate", "--samples", str(path), "--attacks", "naive", *options])


@pytest.mark.parametrize("rows, said", [
    ([ROW, OTHER, ROW | {"input": "<noinput>"}, ROW | {"input": None}], "1 of 4 rows have "),
    ([ROW, ROW | {"input": "red owl " * 2000}], "prompts are left out: one of their sample"),
    ([ROW, ROW | {"output": "word " * 60}], "prompts are not counted as right or wrong"),
])
def test_what_a_file_holds_besides_samples_is_counted(tmp_path, capsys, rows, said):
    assert evaluate_rows(tmp_path, rows) == 0
    found = capsys.readouterr()
    assert said in found.err and "asr naive" in found.out


@pytest.mark.parametrize("rows, why", [
    ([ROW | {"output": ""}], "no sample has an answer"),
    ([ROW | {"input": ""}], "no sample has both data and an answer"),
    ([], "holds no row"),
    ([ROW | {"input": "red owl " * 2000}], "no attack is left"),
])
def test_a_file_of_which_nothing_can_be_measured_is_refused(tmp_path, capsys, rows, why):
    assert evaluate_rows(tmp_path, rows) == 2
    found = capsys.readouterr()
    assert why in found.err and "asr" not in found.out


def test_pairs_are_made_of_a_table_with_columns_of_its_own(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text("task,text,gold\nCount.,red owl,2\nSay it.,blue,blue\nSay.,green,\n")
    assert cli.main(["pairs", str(path), str(tmp_path / "pairs"), "--columns",
                     "instruction=task,data=text,answer=gold"]) == 0
    assert "1 of 3 samples have no answer" in capsys.readouterr().out
    assert cli.main(["pairs", str(path), str(tmp_path / "other")]) == 2
    assert "unknown field 'gold'" in capsys.readouterr().err


def test_failing_items_hide_nothing():
    record = {"attack": "naive", "instruction": "Say\u202e it.", "data": "a\nb",
              "response": "\x1b[0m", "expected": "it"}
    text = "\n".join(evaluation.failing_lines(record))
    assert "[U+202E]" in text and "\x1b" not in text and text.count("\n") == 3


@pytest.mark.parametrize("words", ["", " . ", "it's", "two\nlines"])
def test_a_witness_that_cannot_be_asked_for_is_refused(words):
    with pytest.raises(ValueError, match="write a word or two"):
        injections.witness(words)


def test_a_variant_of_the_ledger_is_a_configuration():
    assert cli._named("orpo").loss == "orpo" and cli._named("orpo").output == RunConfig().output
    assert cli._named("struq") == recipe("struq")  # of two with this name, the recipe


def test_the_shipped_ledger_is_printed_without_a_run(capsys):
    assert cli.main(["ledger", "--shipped"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text, _ in ledger.CLAIMS.values())


def test_the_package_can_be_run_as_the_command():
    done = subprocess.run([sys.executable, "-m", "secalign_kit", "--help"], text=True,
                          capture_output=True, check=True)
    assert done.stdout == cli._parser().format_help()
    done = subprocess.run([sys.executable, "-m", "secalign_kit", "adapters", "nope"], text=True,
                          capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith("secalign-kit: no shipped adapter")


def test_the_doctor_names_versions_device_and_precision(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("torch", "trl", "peft", "device", "4-bit products"))
