"""Bad input ends in one sentence with place and remedy, exit code 2, and nothing written.

The rows of the table in docs/reliability.md: a command, and what its sentence says.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from secalign_kit import cli
from secalign_kit.models import ADAPTERS
from secalign_kit.samples import alone

KIT = [sys.executable, "-m", "secalign_kit"]
SMALL = ["--set", "n_pairs=64", "--set", "batch_size=8", "--set", "epochs=1", "--set", "lora_r=4",
         "--set", "save_steps=2"]

FILES = {
    "ok.json": b'[{"instruction": "a", "input": "b", "output": "c"}, '
               b'{"instruction": "x", "input": "y", "output": "z"}]',
    "cut.json": b'[{"instruction": "a"',
    "latin1.csv": b"instruction,input,output\na,caf\xe9,b\n",
    "broken.yaml": b"beta: [1\n",
    "list.yaml": b"- a\n",
    "attacks.json": b'["no slot"]',
    "occupied/notes.txt": b"mine",
    "pickle/adapter_config.json": b'{"peft_type": "LORA"}',
    "pickle/adapter_model.bin": b"\x80\x02",
}
BAD = [line.split(" | ") for line in """
train --set learning_rate=nan | learning_rate is nan; give a number above 0
train --set n_pairs=0 | n_pairs is 0; give a number above 0
train --set nonsense=1 | unknown setting 'nonsense'; did you mean
train --set beta | write it as name=value
train --set loss=dppo | no loss 'dppo'; did you mean dpo?
train --config demoo | did you mean demo?
train --config absent.yaml | there is no file 'absent.yaml'
train --config broken.yaml | broken.yaml, line 2 is no YAML
train --config list.yaml | list.yaml holds no mapping
train --pairs occupied | holds no saved pairs
evaluate secalgin | did you mean secalign?
evaluate pickle | holds no adapter_model.safetensors
evaluate cut | is broken
evaluate --attacks ignor | did you mean ignore?
evaluate --attacks attacks.json | is no text with the slot
evaluate --model tooy | did you mean toy?
evaluate --samples occupied | is a folder
evaluate --samples absent.json | is not a file
evaluate --samples cut.json | is not valid JSON
evaluate --samples latin1.csv | is not UTF-8 at byte
evaluate --samples ok.json --columns instruction=nope | has no column 'nope'
evaluate --columns instruction=question | names the columns of a file, and there is none
evaluate --failing -1 | --failing -1 is no number of items
evaluate --n 0 | n is 0
evaluate --max-new-tokens 0 | max_new_tokens is 0; give a response at least 1 token
evaluate --witness !!! | write a word or two
pairs ok.json occupied | holds other files
pairs ok.json made --n 0 | n is 0
pairs ok.json made --set beta=1 | changes no pair
export secalign occupied | is not empty
adapters nosuch | no shipped adapter 'nosuch'; choose
attack none --attackers nope | no attacker 'nope'; choose
attack none --n 1 --attackers embeddings --radii=-1 | radius is -1.0; give a number above 0
attack none --budgets abc | --budgets 'abc' is no number of steps
attack none --budgets 50,-5 | --budgets '-5' is no number of steps
universal none --found-on 0 | --found-on is 0; give at least 1 sample
universal none --n -1 | --n is -1; give at least 1 sample
model nosuch | choose one of smollm2-135m
demo --set output= | output is empty
""".strip().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "cut").mkdir()
    shipped = ADAPTERS["paper"]
    shutil.copy(shipped / "adapter_config.json", tmp_path / "cut")
    weights = (shipped / "adapter_model.safetensors").read_bytes()
    (tmp_path / "cut" / "adapter_model.safetensors").write_bytes(weights[:3000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def held(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "said"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(folder, capsys, command, said):
    before = held(folder)
    assert cli.main(command.split()) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "secalign-kit" in line]
    assert len(lines) == 1 and said in lines[0]
    assert held(folder) == before


def test_a_folder_that_cannot_be_written_is_a_sentence(folder, capsys):
    assert cli.main(["pairs", "ok.json", "ok.json/pairs"]) == 2
    assert "Traceback" not in capsys.readouterr().err


# --- no network -----------------------------------------------------------------------------------

OFFLINE = """
import os, socket, sys

tried = []

def watch(event, arguments):
    if event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "127.0.0.1"  # or a file
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0] or "localhost"
    else:
        return
    if str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
        tried.append(f"{event} {host}")
        raise OSError("there is no network here")

sys.addaudithook(watch)
try:
    socket.create_connection(("192.0.2.1", 80), 1)
    sys.exit("the network is not closed")
except OSError:
    pass
assert tried.pop() and not tried

import secalign_kit
from secalign_kit import cli, evaluation, training

whole = training.shipped_samples
for module in (evaluation.items, training):
    module.shipped_samples = lambda split: whole(split)[:40]  # enough for a demo of seconds
assert not cli.main(["demo", "--n", "2", "--set", "n_pairs=24", "--set", "batch_size=8",
                     "--set", "epochs=1", "--set", "lora_r=4", "--output", "run"])
assert not cli.main(["evaluate", "run", "--n", "2", "--attacks", "naive"])
assert secalign_kit.load("secalign").answer("Count the words.", "red, owl.")
assert not tried, tried
"""


@pytest.mark.parametrize("told", [True, False], ids=["offline", "not told"])
def test_the_embedded_model_is_trained_evaluated_and_reported_without_a_network(tmp_path, told):
    """Every attempt is refused, and noticed even if a library forgives it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(
        [str(Path(cli.__file__).parents[1]), environment.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1"} if told else {}
    done = subprocess.run([sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Hacked!" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


# --- faults ---------------------------------------------------------------------------------------


def started(arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([*KIT, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(process, condition) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_key_ends_a_training_with_a_line_of_its_own_and_it_goes_on(tmp_path):
    run = tmp_path / "run"
    # a shell in the background has it ignored, and a child would inherit that
    process = started(["train", *SMALL, "--output", run],
                      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(process, lambda: lines(run / "metrics.jsonl") > 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == (
        "secalign-kit: stopped; the same command goes on from what was saved")
    assert not (run / "adapter").exists()
    assert cli.main(["train", *SMALL, "--output", str(run)]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert steps == list(range(9)) and (run / "adapter").is_dir()


def test_a_second_run_in_a_folder_is_refused_and_the_first_ends_as_alone(tmp_path, capsys):
    run, second = tmp_path / "run", []

    def at_work(command):
        with alone(run / ".lock"):
            second.append(cli.main(command))
        return capsys.readouterr().err

    said = at_work(["train", *SMALL, "--output", str(run)])
    assert second == [2] and "another process is at work in" in said and str(run) in said
    assert not run.exists()
    assert cli.main(["train", *SMALL, "--output", str(run)]) == 0
    assert (run / "adapter").is_dir() and not (run / ".lock").exists()


@pytest.mark.parametrize("command", [["evaluate", "--n", "2", "--attacks", "naive", "--records"],
                                     ["attack", "none", "--n", "1", "--steps", "1", "--folder"]])
def test_records_have_one_writer(tmp_path, capsys, command):
    path = tmp_path / "records.jsonl"
    with alone(tmp_path / ".records.jsonl.lock"):
        assert cli.main([*command, str(path if command[-1] == "--records" else tmp_path)]) == 2
    assert "another process is at work" in capsys.readouterr().err and not path.exists()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = ("import sys, time\nfrom secalign_kit.samples import alone\n"
            "with alone(sys.argv[1]):\n    print('in', flush=True)\n    time.sleep(600)")
    lock = tmp_path / "run" / ".lock"
    process = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE,
                               cwd=Path(cli.__file__).parents[1])
    process.stdout.readline()
    with pytest.raises(ValueError, match="another process"), alone(lock):
        pass
    process.kill()
    process.wait()
    with alone(lock), pytest.raises(ValueError), alone(lock):
        pass
    assert not lock.exists()


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
])
def test_a_full_disk_is_a_sentence_however_it_is_said(monkeypatch, capsys, error):
    def full(name):
        raise error

    monkeypatch.setattr(cli, "_named", full)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err.startswith("secalign-kit: the disk is full; free some space")
    monkeypatch.setattr(cli, "_named", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for one checkpoint and not for two; a function makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> int:
        with suppress(FileNotFoundError):
            return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk],
                                  capture_output=True).returncode
        return 1

    if mount("size=1500k"):
        pytest.skip("no file system can be mounted here")
    yield disk, mount
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", ["pairs ok.json DISK/made", "demo --output DISK/run",
                                     "evaluate --n 2 --records DISK/records.jsonl"])
def test_a_read_only_folder_is_a_sentence(folder, small_disk, capsys, command):
    disk, mount = small_disk
    assert mount("remount,ro") == 0
    assert cli.main(command.replace("DISK", str(disk)).split()) == 2
    said, = capsys.readouterr().err.strip().splitlines()
    assert "read-only file system" in said and str(disk) in said


def test_a_disk_that_fills_leaves_the_checkpoint_and_the_run_goes_on_from_it(small_disk, capsys):
    disk, mount = small_disk
    command = ["train", *SMALL, "--output", str(disk / "run")]
    assert cli.main(command) == 2
    assert "the disk is full" in capsys.readouterr().err
    kept = disk / "run" / "checkpoints" / "checkpoint-2"
    assert json.loads((kept / "trainer_state.json").read_text())["global_step"] == 2
    assert mount("remount,size=20m") == 0 and cli.main(command) == 0
    assert (disk / "run" / "adapter").is_dir()
