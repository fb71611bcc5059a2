"""Export: a run as a folder that others can run, checked before it is called done.

One datum: `export("runs/mine", "mine-secure")` writes `config.json`, `model.safetensors`, the
tokenizer, `chat_template.jinja`, `README.md` and `export.json`.

    template   a chat template that is the kit's prompt, front-end included
    weights    the adapter added to the weights that it was trained on
    reload     a process that knows nothing of the kit
    check      whether that process answers as the run does
    card       what a reader should know

Limits: what a plain model cannot carry is refused. vLLM and llama.cpp are not run; docs/export.md.
"""

import contextlib
import copy
import json
import os
import shutil
from pathlib import Path

import torch

from .. import adapters, application, models, roles, training
from ..application import Source
from ..models import Bundle
from ..samples import write_json, write_text
from . import check, weights
from .card import card, licence, table
from .check import Check
from .template import chat_template
from .weights import DTYPES

__all__ = ["Check", "KINDS", "MARK", "card", "chat_template", "export", "licence", "table"]

KINDS = ("merged", "adapter")
MARK = "export.json"  # says that a folder is an export of the kit, and may be written anew
CARRIED = {adapters.WEIGHTS, "reference.safetensors"}


def export(name: str, folder: str | Path, kind: str = "merged", strength: float = 1.0,
           dtype: str = "bf16", model: str | None = None, device: str | None = None,
           n: int = check.N, measured: str = "") -> Check:
    """Writes the folder and returns how near it is to the run, `n` prompts compared.

    The folder appears when it is whole and checked. `strength` scales the adapter (0 is the
    insecure model). `measured` is the card's table, in Markdown, for a run that has none of its own
    (the demo's has, in `summary.json`). Raises ValueError for a folder that is not empty and no
    export, for a run without an adapter or with something that a plain model cannot carry, for a
    tokenizer with which no template keeps the front-end's promise, and for a reloaded folder that
    does not agree with the run.
    """
    folder = Path(folder)
    _refuse_settings(folder, kind, strength, dtype)
    source = application.find(str(name), model)
    _refuse_uncarried(source, name, kind)
    bundle = application.open_source(source, device=device)
    _refuse_hooks(bundle, name)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with _scaled(bundle, strength):
            written = chat_template(bundle.tokenizer, bundle.format)
            items = check.questions(bundle, n)
            ours = check.expected(bundle, items)
            _write(bundle, source, fresh, kind, strength, dtype, written)
            base = models.path_of(source.model) if kind == "adapter" else ""
            theirs = check.reloaded(fresh, bundle, items, base)
            # an adapter is not rounded, but 4-bit weights under it may be, each time they are read
            found = check.compare(bundle, ours, theirs, dtype if kind == "merged" else "bf16")
        if not found.passed:
            raise ValueError("the reloaded export differs from the run by more than it may "
                             f"({'; '.join(' '.join(line.split()) for line in found.lines())}); "
                             "nothing was written" + _hint(dtype, kind))
        _describe(source, bundle, fresh, kind, strength, dtype, found, folder.name, measured)
        _put(fresh, folder)
    except torch.OutOfMemoryError:
        raise ValueError("the GPU's memory is too small for the run in fp32, in which an export is "
                         "checked; set CUDA_VISIBLE_DEVICES=-1 to export on the CPU; nothing was "
                         "written") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return found


def _hint(dtype: str, kind: str) -> str:
    return "; try --dtype fp32" if kind == "merged" and dtype != "fp32" else ""


def _refuse_settings(folder: Path, kind: str, strength: float, dtype: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength is {strength}; give a number from 0, 1 is the adapter as it is")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ValueError(f"{str(folder)!r} is not empty and no export; name another folder")


def _refuse_uncarried(source: Source, name: str, kind: str) -> None:
    if source.adapter is None:
        raise ValueError(f"{str(name)!r} has no adapter, so there is nothing to export; give a run "
                         f"or one of {', '.join(models.ADAPTERS)}")
    staged = "+" in source.model or adapters.stages(source.adapter)
    if kind == "adapter" and (staged or source.model.endswith(".gguf")):
        raise ValueError(f"{str(name)!r} stands on {source.model}, which no server loads as a base "
                         "model; use --merged")
    if (beside := roles.named(adapters.read(source.adapter))) != "none":
        raise ValueError(f"{str(name)!r} has {beside} beside its adapter, which a plain model "
                         "cannot carry; ask it through secalign_kit.load")
    files = {path.name for path in source.adapter.glob("*.safetensors")} - CARRIED
    if files:
        raise ValueError(f"{str(name)!r} has {', '.join(sorted(files))} beside its adapter, which "
                         "a plain model cannot carry; only LoRA, DoRA and modules_to_save can be "
                         "exported")


def _refuse_hooks(bundle: Bundle, name: str) -> None:
    """What a run does to a model beyond its weights hangs on the modules as hooks."""
    hooked = next((path for path, module in bundle.model.named_modules()
                   if module._forward_hooks or module._forward_pre_hooks), None)
    if hooked is not None:
        raise ValueError(f"{str(name)!r} changes what {hooked or 'the model'} computes, beyond its "
                         "weights, which a plain model cannot carry; only LoRA, DoRA and "
                         "modules_to_save can be exported")


def _scaled(bundle: Bundle, strength: float):
    return contextlib.nullcontext(bundle) if strength == 1 else models.strength(bundle, strength)


def _write(bundle: Bundle, source: Source, fresh: Path, kind: str, strength: float, dtype: str,
           written: str) -> None:
    fresh.mkdir(parents=True)
    if kind == "merged":
        weights.save_merged(bundle, fresh, dtype)
    else:
        weights.save_adapter(bundle, source.adapter, fresh, strength)
    tokenizer = copy.deepcopy(bundle.tokenizer)
    tokenizer.chat_template = written
    tokenizer.eos_token = bundle.format.end  # where servers stop
    tokenizer.save_pretrained(fresh)


def _describe(source: Source, bundle: Bundle, fresh: Path, kind: str, strength: float, dtype: str,
              found: Check, title: str, measured: str) -> None:
    stored = source.folder / "summary.json" if source.folder else None
    summary = json.loads(stored.read_text("utf-8")) if stored and stored.is_file() else None
    write_text(fresh / "README.md", card(source, title, kind, strength, dtype, bundle.four_bit,
                                         measured or table(source, summary), found))
    write_json(fresh / MARK, {
        "kind": kind, "strength": strength, "dtype": dtype, "base": source.model,
        "format": bundle.format.name, "versions": training.versions(), "check": found.as_dict()})


def _put(fresh: Path, folder: Path) -> None:
    """The fresh folder in its place; an earlier export goes when the new one is there."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
