"""The settings of a chain: one TOML file, `slurm/example.toml` says what each key means."""

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.launch.tables import check_keys, read_table

ROOT = Path(__file__).parents[2]

NEEDS = {
    "import": (),
    "preprocess": (),
    "needles": (),
    "search": ("import",),
    "train": ("import", "preprocess", "needles", "search"),
    "export": ("train",),
    "evaluate": ("train", "export"),
}
"""The stages in order, and which of them each waits for, as far as they are in the chain."""

_TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}|UNLIMITED")


@dataclass(frozen=True)
class ModelSettings:
    """What is extended, to where, and on which texts."""

    hf_dir: Path
    target_length: int
    books: Path | None = None
    held_out_books: Path | None = None
    factors: str | None = None


@dataclass(frozen=True)
class SlurmSettings:
    """The cluster."""

    partition: str
    account: str | None = None
    options: tuple[str, ...] = ()
    warning_seconds: int = 600
    attempts: int = 20


@dataclass(frozen=True)
class EnvironmentSettings:
    """Where Python and its packages are."""

    python: str
    container_image: str | None = None
    container_mounts: tuple[str, ...] = ()
    network: Path = ROOT / "slurm" / "network.sh"


@dataclass(frozen=True)
class StageSettings:
    """The resources of a stage, its parallel layout, and its command's further options."""

    time: str
    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int | None = None
    cpus_per_process: int = 1
    memory: str | None = None
    slurm_options: tuple[str, ...] = ()
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    mix: str | None = None
    pools: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    options: str = ""

    @property
    def processes(self) -> int:
        """On one node: as many as GPUs, unless the settings say otherwise."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes


@dataclass(frozen=True)
class Settings:
    """A whole chain.

    Attributes:
        source: the file. base: what its relative paths are relative to.
        run: folder of everything that the chain writes.
        stages: those that the chain has, in order.
    """

    source: Path
    base: Path
    name: str
    run: Path
    model: ModelSettings
    slurm: SlurmSettings
    environment: EnvironmentSettings
    stages: dict[str, StageSettings]

    def fill(self, text: str) -> str:
        """`{run}` in an option stands for the run folder, `{here}` for the settings file's folder."""
        return text.replace("{run}", str(self.run)).replace("{here}", str(self.base))


def load_settings(path: str | Path, base: Path | None = None) -> Settings:
    """Read and check a settings file; nothing on the cluster is asked.

    Args:
        path: the file.
        base: what relative paths in it are relative to; None: the file's folder.

    Raises:
        InputError: unreadable, not TOML, a key unknown, missing or of the wrong type, or stages that do not
            make a chain.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    top = ("name", "run", "model", "slurm", "environment", "stages")
    check_keys(content, top, str(path))
    for key in top:
        if key not in content:
            raise InputError(f"{path}: {key}: is missing")
    return _checked(_settings(path, content, base or path.resolve().parent))


def _settings(path: Path, content: dict[str, Any], base: Path) -> Settings:
    for key in ("name", "run"):
        if not isinstance(content[key], str) or not content[key]:
            raise InputError(f"{path}: {key}: {content[key]!r} is not a string")
    stages = content["stages"]
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{path}: stages: no stage; add at least one table such as [stages.import]")
    check_keys(stages, NEEDS, f"{path}: stages")
    return Settings(
        source=path,
        base=base,
        name=content["name"],
        run=(base / Path(content["run"]).expanduser()).resolve(),
        model=read_table(ModelSettings, content["model"], f"{path}: model", base),
        slurm=read_table(SlurmSettings, content["slurm"], f"{path}: slurm", base),
        environment=read_table(EnvironmentSettings, content["environment"], f"{path}: environment", base),
        stages={
            name: read_table(StageSettings, stages[name], f"{path}: stages.{name}", base)
            for name in NEEDS
            if name in stages
        },
    )


def _checked(settings: Settings) -> Settings:
    source, model = settings.source, settings.model

    def need(condition: object, field: str, what: str) -> None:
        if not condition:
            raise InputError(f"{source}: {field}: {what}")

    need(re.fullmatch(r"[\w.-]+", settings.name), "name", "use letters, digits, - _ . only")
    need(settings.slurm.attempts >= 1, "slurm: attempts", "must be 1 or more")
    need(settings.slurm.warning_seconds >= 1, "slurm: warning_seconds", "must be 1 or more")
    stages = settings.stages
    for name in ("search", "train"):
        need(name not in stages or "import" in stages, "stages", f"{name} needs [stages.import]")
    for name in ("export", "evaluate"):
        need(name not in stages or "train" in stages, "stages", f"{name} needs [stages.train]")
    if "train" in stages and "search" not in stages:
        need(model.factors, "model: factors", "is missing; name a factor file, or add [stages.search]")
    if "search" in stages:
        need(not model.factors, "model: factors", "is given, and so is [stages.search]; leave one out")
    for name in ("needles", "search"):
        need(name not in stages or model.books, "model: books", f"is missing; the stage {name} reads them")
    for name, stage in stages.items():
        _check_stage(name, stage, need)
    return settings


def _check_stage(name: str, stage: StageSettings, need: Any) -> None:
    where = f"stages.{name}"
    need(_TIME.fullmatch(stage.time), f"{where}: time", f"{stage.time!r} is not one; write 12:00:00")
    sizes = ("nodes", "cpus_per_process", "tensor_parallel", "pipeline_parallel", "context_parallel")
    for field in sizes:
        need(getattr(stage, field) >= 1, f"{where}: {field}", "must be 1 or more")
    need(stage.gpus_per_node >= 0, f"{where}: gpus_per_node", "must be 0 or more")
    need(stage.processes >= 1, f"{where}: processes_per_node", "must be 1 or more")
    if name not in ("search", "train", "evaluate"):
        need(stage.ranks == 1, f"{where}: nodes", "this stage is one process; leave out what makes it more")
    split = stage.tensor_parallel * stage.pipeline_parallel * stage.context_parallel
    need(
        stage.ranks % split == 0,
        f"{where}: nodes",
        f"{stage.ranks} processes do not divide into tensor x pipeline x context parallel = {split}",
    )
    need(bool(stage.pools) <= (name == "train"), f"{where}: pools", "belongs into stages.train")
    need(not stage.mix or name == "train", f"{where}: mix", "belongs into stages.train")
    need(name != "train" or stage.mix or stage.pools, f"{where}: pools", "are missing, and so is a mix")
    need(bool(stage.measures) == (name == "evaluate"), f"{where}: measures", "belongs into stages.evaluate")
    for pool in stage.pools:
        words = pool.split()
        good = len(words) == 3 and words[0] in ("short", "long") and words[1].isdecimal()
        need(good, f"{where}: pools", f"{pool!r} is not 'short|long WEIGHT PREFIX'")
    for text in (stage.options, *stage.measures):
        try:
            shlex.split(text)
        except ValueError as error:
            need(False, f"{where}: options", f"{text!r}: {error}")
