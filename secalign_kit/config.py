"""One configuration for YAML, notebook and command line.

One datum: `RunConfig(beta=0.1, learning_rate=1e-3)`; `config.to_yaml("run.yaml")` and back.

Limits: where `pairs` names a folder, how its pairs were made stands in that folder's card, not
here: the settings of `MAKING` then have their defaults. `model` may be a preset or a Hub id.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from .samples import DATA, write_text

RECIPES = DATA / "recipes"
LOSSES = ("dpo", "ipo", "orpo", "kto", "simpo", "sft")  # sft is StruQ's, the others preferences
MAKING = ("samples", "naive", "frames", "position", "clean", "responses")  # how pairs are made
PAIR_POSITIONS = ("end", "start", "random", "everywhere")  # where training shows injections
ADVERSARY_PLACES = ("suffix", "prefix", "behind", "around", "payload", "any")
BESIDE = ("none", "role_vectors", "role_embedding", "role_rotation", "defensive_tokens")
CHOICES = {"loss": LOSSES, "position": PAIR_POSITIONS, "adversary_place": ADVERSARY_PLACES,
           "beside": BESIDE, "samples": ("toy", "english"), "responses": ("samples", "self")}
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Lengths in tokens, `n_pairs` and `batch_size` in pairs.

    Raises ValueError for a value out of range, naming field and remedy.
    """

    model: str = "toy"
    format: str = ""  # the prompt format, for a model that is no preset
    four_bit: bool = True
    seed: int = 0
    pairs: str = ""  # a folder of saved pairs; if empty, they are made of the kit's own samples
    samples: str = "toy"  # of the embedded model's world, or "english" for real models
    n_pairs: int = 6000
    naive: float = 0.9
    frames: float = 0.0  # share of random frames; what naive and frames leave is completion
    position: str = "end"
    clean: float = 0.0
    responses: str = "samples"
    loss: str = "dpo"
    beta: float = 0.1
    learning_rate: float = 1e-3
    batch_size: int = 32
    accumulation: int = 1  # batches per step of the optimizer
    gradient_checkpointing: bool = False  # less memory, more time
    epochs: int = 1
    sft_weight: float = 0.0
    # the attacker in the loop (`adversary`): moves of a step, 0 for none; how far one may go, in
    # root mean squares of the embeddings; for which share of the injected pairs, by how many tokens
    # and where: suffix and prefix are those of the data, behind and around are beside the
    # injection, payload is the injection itself; any is one of the others, drawn for each pair
    adversary_moves: int = 0
    adversary_radius: float = 1.0
    adversary_share: float = 0.5
    adversary_tokens: int = 12
    adversary_place: str = "suffix"
    start: str = ""  # the adapter to begin with: shipped, a folder or a Hub id; if empty, a new one
    # what is learned beside the adapter (`roles`); with defensive_tokens, the weights stay as they
    # are and only the tokens are learned
    beside: str = "none"
    max_length: int = 256
    lora_r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ALL_LINEAR
    shared_prefix: bool = True
    probe_every: int = 5
    save_steps: int = 100
    output: str = "runs/run"

    def __post_init__(self) -> None:
        for name in _TYPES:  # so that RunConfig(beta="0.2") and --set beta=0.2 are the same
            object.__setattr__(self, name, _typed(name, getattr(self, name)))
        for name, known in CHOICES.items():
            object.__setattr__(self, name, chosen(name, getattr(self, name), known))
        for name in MAKING if self.pairs else ():  # made elsewhere, nobody knows how
            object.__setattr__(self, name, _DEFAULTS[name])
        for name in ("n_pairs", "batch_size", "accumulation", "epochs", "max_length", "lora_r",
                     "probe_every", "save_steps", "beta", "learning_rate", "lora_alpha",
                     "adversary_radius", "adversary_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("naive", "frames", "clean", "adversary_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; give a number from 0 below 1")
        if not 0 <= self.sft_weight < math.inf:
            raise ValueError(f"sft_weight is {self.sft_weight}; give 0 or more")
        if self.adversary_moves < 0:
            raise ValueError(f"adversary_moves is {self.adversary_moves}; give 0 for no adversary, "
                             "or more")
        if self.adversary_moves and not self.adversary_share:
            raise ValueError("adversary_share is 0, so the adversary would attack nothing; give a "
                             "share above 0 or set adversary_moves=0")
        if self.adversary_moves and not self.shared_prefix:
            raise ValueError("shared_prefix false means TRL's own step, which has no adversary; "
                             "leave it true or set adversary_moves=0")
        if self.beside == "defensive_tokens" and (self.loss == "kto" or not self.shared_prefix):
            raise ValueError("defensive_tokens keep the weights frozen, which loss kto and "
                             "shared_prefix false would train; choose another loss, leave "
                             "shared_prefix true, or set beside=none")
        if self.naive + self.frames > 1:
            raise ValueError(f"naive and frames are {self.naive} and {self.frames}; together they "
                             "can be 1 at most")
        if not self.shared_prefix and (self.loss not in ("dpo", "ipo") or self.sft_weight):
            raise ValueError("shared_prefix false means TRL's own DPO step, for loss dpo or ipo "
                             "without sft_weight; leave it true for others")
        if self.loss == "kto" and self.batch_size < 2:
            raise ValueError("batch_size is 1; loss kto compares with other pairs of a batch, give "
                             "2 or more")
        if not self.output.strip():
            raise ValueError("output is empty; name a folder, e.g. runs/mine")
        if not self.lora_targets:
            raise ValueError("lora_targets is empty; name layers, e.g. [q_proj, v_proj]")

    def replace(self, **changes) -> "RunConfig":
        """A copy with other values. Raises ValueError for an unknown name or a wrong type."""
        for name in changes:
            _known(name)  # before dataclasses.replace answers with a TypeError
        return dataclasses.replace(self, **changes)

    def on_saved_pairs(self, folder: str | os.PathLike, n: int) -> "RunConfig":
        """A copy for the n pairs of a folder; how pairs are made is as if it had not been set."""
        return self.replace(pairs=str(folder), n_pairs=n)

    def to_yaml(self, path: str | os.PathLike) -> None:
        """Writes the configuration so that `from_yaml` gives an equal one."""
        values = dataclasses.asdict(self) | {"lora_targets": list(self.lora_targets)}
        if self.pairs:  # defaults, which would read as how the pairs were made
            values = {name: value for name, value in values.items() if name not in MAKING}
        write_text(path, yaml.safe_dump(values, sort_keys=False))

    @staticmethod
    def from_yaml(path: str | os.PathLike) -> "RunConfig":
        """Reads a YAML file; absent keys keep their defaults. Raises ValueError, naming the key."""
        values = _yaml(Path(path).read_text(encoding="utf-8"), str(path)) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no mapping; write lines like `beta: 0.1`")
        return RunConfig().replace(**{str(k): v for k, v in values.items()})


def chosen(kind: str, name: str, known: Iterable[str], other: str = "") -> str:
    """`name` as it stands in `known`; hyphens, underscores and spaces are the same.

    Raises ValueError for an unknown one, with the nearest and all that there are; `other` says in
    words what else could be given.
    """
    same = {re.sub("[-_ ]", "", one).lower(): one for one in known}
    asked = re.sub("[-_ ]", "", name).lower()
    if asked in same:
        return same[asked]
    near = difflib.get_close_matches(asked, same, n=1)
    hint = f"did you mean {same[near[0]]}? Choose" if near else "choose"
    raise ValueError(f"no {kind} {name!r}; {hint} one of {', '.join(same.values())}"
                     f"{other and f', or {other}'}")


def recipe(name: str) -> RunConfig:
    """A shipped recipe of `data/recipes`, such as `demo`. Raises ValueError for others."""
    found = chosen("recipe", name, recipes(), "a YAML file")
    return RunConfig.from_yaml(RECIPES / f"{found}.yaml")


def recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


_DEFAULTS = {field.name: field.default for field in fields(RunConfig)}
_TYPES = {name: type(default) for name, default in _DEFAULTS.items()}


def _yaml(text: str, where: str):
    """Parsed YAML. Raises ValueError with the place of a mistake instead of a YAMLError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line} is no YAML; write values like `beta: 0.1`") from None


def _known(name: str) -> None:
    if name not in _TYPES:
        near = difflib.get_close_matches(name, _TYPES, n=3) or sorted(_TYPES)
        raise ValueError(f"unknown setting {name!r}; did you mean {', '.join(near)}?")


def _typed(name: str, value):
    """The value in the field's type; text is read as YAML, so that flags and files agree."""
    wanted = _TYPES[name]
    if isinstance(value, str) and wanted is not str:
        value = _yaml(value, name)
    if wanted is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}; give a number") from None
    if wanted is tuple and isinstance(value, (list, tuple)):
        return tuple(map(str, value))
    if type(value) is not wanted:
        raise ValueError(f"{name} is {value!r}; give {wanted.__name__}")
    return value
