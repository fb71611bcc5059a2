"""One configuration for YAML, notebook and command line.

One datum: `RunConfig(beta=0.1, learning_rate=1e-3)`; `config.to_yaml("run.yaml")` and back.

Limits: it describes a training on the kit's own samples; `model` may be a preset or a Hub id.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Lengths in tokens, `n_pairs` and `batch_size` in pairs.

    Raises ValueError for a value out of range, naming field and remedy.
    """

    model: str = "toy"
    four_bit: bool = True
    seed: int = 0
    n_pairs: int = 6000
    naive: float = 0.9
    position: str = "end"
    clean: float = 0.0
    beta: float = 0.1
    learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 1
    sft_weight: float = 0.0
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
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for name in ("n_pairs", "batch_size", "epochs", "max_length", "lora_r", "probe_every",
                     "save_steps", "beta", "learning_rate", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("naive", "clean"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; give a number from 0 below 1")
        if self.sft_weight < 0:
            raise ValueError(f"sft_weight is {self.sft_weight}; give 0 or more")
        if self.position not in ("end", "start", "random"):
            raise ValueError(f"position is {self.position!r}; choose end, start or random")

    def replace(self, **changes) -> "RunConfig":
        """A copy with other values. Raises ValueError for an unknown name or a wrong type."""
        return dataclasses.replace(self, **{k: _typed(k, v) for k, v in changes.items()})

    def to_yaml(self, path: str | os.PathLike) -> None:
        """Writes the configuration so that `from_yaml` gives an equal one."""
        values = dataclasses.asdict(self) | {"lora_targets": list(self.lora_targets)}
        temporary = Path(path).with_suffix(".part")
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def from_yaml(path: str | os.PathLike) -> "RunConfig":
        """Reads a YAML file; absent keys keep their defaults. Raises ValueError, naming the key."""
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no mapping; write lines like `beta: 0.1`")
        return RunConfig().replace(**values)


_TYPES = {field.name: type(field.default) for field in fields(RunConfig)}


def _typed(name: str, value):
    """The value in the field's type; text is read as YAML, so that flags and files agree."""
    if name not in _TYPES:
        near = difflib.get_close_matches(name, _TYPES, n=3) or sorted(_TYPES)
        raise ValueError(f"unknown setting {name!r}; did you mean {', '.join(near)}?")
    wanted = _TYPES[name]
    if isinstance(value, str) and wanted is not str:
        value = yaml.safe_load(value)
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
