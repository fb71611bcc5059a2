"""Bad input ends in one sentence with place and remedy, exit code 2, and nothing written.

The rows of the table in docs/reliability.md: a command, and what its sentence says.
"""

import shutil

import pytest

from secalign_kit import cli
from secalign_kit.models import ADAPTERS

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
train --set loss=dppo | loss is 'dppo'; choose
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
evaluate --witness !!! | write a word or two
pairs ok.json occupied | holds other files
pairs ok.json made --n 0 | n is 0
pairs ok.json made --set beta=1 | changes no pair
export secalign occupied | is not empty
adapters nosuch | no shipped adapter 'nosuch'; choose
attack none --attackers nope | no attacker 'nope'; choose
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
