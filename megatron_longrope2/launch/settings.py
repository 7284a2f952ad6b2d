"""The settings of a chain: one TOML file; `slurm/example.toml` says what each key means."""

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from megatron_longrope2.errors import InputError, refusals
from megatron_longrope2.files import read_text

ROOT = Path(__file__).parents[2]

NEEDS = {
    "import": (),
    "preprocess": (),
    "needles": (),
    "search": ("import",),
    "train": ("import", "preprocess", "needles", "search"),
    "export": ("train",),
    "evaluate": ("train",),
}
"""The stages in order, and which of them each waits for if they are part of the chain."""


def _refuse(wrong: object, message: str) -> None:
    if wrong:
        raise ValueError(message)


def _check_keys(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{name}: unknown key; {hint}")


def _resolved(path: Path, info: ValidationInfo) -> Path:
    base: Any = info.context
    return (base / path.expanduser()).resolve()


def _words(text: str) -> str:
    shlex.split(text)
    return text


def _like(pattern: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        _refuse(not re.fullmatch(pattern, text), f"{text!r} is not of the form {example}")
        return text

    return AfterValidator(check)


Place = Annotated[Path, AfterValidator(_resolved)]
"""A path, relative to the settings file's folder."""
Words = Annotated[str, AfterValidator(_words)]
"""Words as a shell splits them."""
Count = Annotated[int, Field(ge=1, strict=True)]


class Table(BaseModel):
    """A table of the file: its keys are the fields, and no others."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, table: Any) -> Any:
        if isinstance(table, dict):
            _check_keys(table, [name for name, field in cls.model_fields.items() if field.init is not False])
        return table


class ModelSettings(Table):
    """What is extended, to which length in tokens, and with which texts."""

    hf_dir: Place
    target_length: Count
    books: Place | None = None
    held_out_books: Place | None = None
    factors: str | None = None


class SlurmSettings(Table):
    """The cluster."""

    partition: str
    account: str | None = None
    options: tuple[str, ...] = ()
    warning_seconds: Count = 600
    attempts: Count = 20


class EnvironmentSettings(Table):
    """Where Python and its packages are."""

    python: str
    container_image: str | None = None
    container_mounts: tuple[str, ...] = ()
    network: Place = ROOT / "slurm" / "network.sh"


class StageSettings(Table):
    """The resources of a stage, its parallel layout, and further options of its command."""

    time: Annotated[str, _like(r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}|UNLIMITED", "12:00:00")]
    partition: str | None = None
    nodes: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0, strict=True)] = 0
    processes_per_node: Count | None = None
    cpus_per_process: Count = 1
    memory: str | None = None
    slurm_options: tuple[str, ...] = ()
    tensor_parallel: Count = 1
    pipeline_parallel: Count = 1
    context_parallel: Count = 1
    mix: str | None = None
    pools: tuple[Annotated[Words, _like(r"(short|long) +\d+ +\S.*", "'short|long WEIGHT PREFIX'")], ...] = ()
    measures: tuple[Words, ...] = ()
    options: Words = ""

    @property
    def processes(self) -> int:
        """Processes on one node: as many as GPUs, unless the settings say otherwise."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes

    @model_validator(mode="after")
    def _ranks_divide(self) -> Self:
        split = self.tensor_parallel * self.pipeline_parallel * self.context_parallel
        wrong = f"{self.ranks} processes do not divide into tensor x pipeline x context parallel = {split}"
        _refuse(self.ranks % split, f"nodes: {wrong}")
        return self


def _in_order(stages: dict[str, StageSettings]) -> dict[str, StageSettings]:
    _check_keys(stages, list(NEEDS))
    return {name: stages[name] for name in NEEDS if name in stages}


class Settings(Table):
    """A whole chain.

    Attributes:
        run: the folder of everything that the chain writes.
        stages: the stages that the chain has, in order.
        source: the settings file.
        base: the folder that the file's relative paths are relative to.
    """

    name: Annotated[str, _like(r"[\w.-]+", "letters, digits, - _ .")]
    run: Place
    model: ModelSettings
    slurm: SlurmSettings
    environment: EnvironmentSettings
    stages: Annotated[dict[str, StageSettings], Field(min_length=1), AfterValidator(_in_order)]
    source: Path = Field(default=Path(), init=False)
    base: Path = Field(default=Path(), init=False)

    def words(self, text: str) -> list[str]:
        """The words of an option, each of them filled."""
        return [self.fill(word) for word in shlex.split(text)]

    def fill(self, text: str) -> str:
        """The text with the run folder for `{run}` and the settings file's folder for `{here}`."""
        return text.replace("{run}", str(self.run)).replace("{here}", str(self.base))

    @model_validator(mode="after")
    def _is_a_chain(self) -> Self:
        has, given = self.stages.keys(), self.model
        _refuse(
            {"search", "train"} & has and "import" not in has, "stages: search and train need [stages.import]"
        )
        _refuse(
            {"export", "evaluate"} & has and "train" not in has,
            "stages: export and evaluate need [stages.train]",
        )
        _refuse(
            "train" in has and not ("search" in has or given.factors),
            "model.factors: is missing; name a factor file, or add [stages.search]",
        )
        _refuse(
            "search" in has and given.factors,
            "model.factors: is given, and so is [stages.search]; remove one of them",
        )
        _refuse(
            {"needles", "search"} & has and not given.books,
            "model.books: is missing; needles and search read them",
        )
        for name, stage in self.stages.items():
            _check_stage(name, stage)
        return self


def _check_stage(name: str, stage: StageSettings) -> None:
    where, is_train, is_evaluate = f"stages.{name}", name == "train", name == "evaluate"
    single = name not in ("preprocess", "search", "train", "evaluate")
    _refuse(single and stage.ranks > 1, f"{where}.nodes: this stage is a single process")
    _refuse(is_train and not (stage.mix or stage.pools), f"{where}.pools: is missing, and so is mix")
    _refuse(is_evaluate and not stage.measures, f"{where}.measures: is missing")
    _refuse(stage.pools and not is_train, f"{where}.pools: belongs in [stages.train]")
    _refuse(stage.mix and not is_train, f"{where}.mix: belongs in [stages.train]")
    _refuse(stage.measures and not is_evaluate, f"{where}.measures: belongs in [stages.evaluate]")


def load_settings(path: str | Path, base: Path | None = None) -> Settings:
    """Read and check a settings file; nothing on the cluster is asked.

    Args:
        path: the file.
        base: the folder that relative paths in it are relative to; None: the file's folder.

    Raises:
        InputError: unreadable, not TOML, a key unknown, missing or of the wrong type, or stages that do not
            make a chain.
    """
    path = Path(path)
    base = base or path.resolve().parent
    try:
        settings = Settings.model_validate(tomllib.loads(read_text(path)), context=base)
    except ValidationError as error:
        raise InputError("\nerror: ".join(f"{path}: {line}" for line in refusals(error))) from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    return settings.model_copy(update={"source": path, "base": base})
