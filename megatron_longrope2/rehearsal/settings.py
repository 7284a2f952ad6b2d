"""What is rehearsed, and on which machines. Imports no Megatron."""

from dataclasses import dataclass
from typing import Literal, get_args

from cyclopts.types import PositiveFloat, PositiveInt

from megatron_longrope2.errors import InputError
from megatron_longrope2.options import options

# The stages that run a model on GPUs.
Verb = Literal["search", "train", "evaluate"]
VERBS: tuple[Verb, ...] = get_args(Verb)


@dataclass(frozen=True)
class Stage:
    """A command of a job, as every rank of it runs it.

    Attributes:
        words: of the command, after `longrope2`: `train`, `search`, or `evaluate` and a measurement.
        ranks: how many processes run it.

    Raises:
        InputError: another verb.
    """

    words: tuple[str, ...]
    ranks: int

    def __post_init__(self) -> None:
        if self.words[0] not in VERBS:
            raise InputError(f"{self.words[0]}: cannot be rehearsed, only {', '.join(VERBS)}")

    @property
    def name(self) -> str:
        """The verb, and the measurement."""
        return " ".join(self.words[: 2 if self.words[0] == "evaluate" else 1])


@dataclass(frozen=True)
class Job:
    """What is rehearsed.

    Attributes:
        stages: the commands.
        model: a Hugging Face folder, a Megatron checkpoint, or a preset of the planner.
        target_length: the extended window in tokens.
        original_length: of the short window, tokens, if it is not the one that the model states.
    """

    stages: tuple[Stage, ...]
    model: str
    target_length: int
    original_length: int | None = None


@options("Machines")
@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """The machines that a job would run on.

    Attributes:
        memory: The memory of a GPU in GiB.
        gpus_per_node: The number of GPUs that share a fast link; traffic between more of them leaves the
            node.
        processes: The number of ranks that are rehearsed at once, on this machine.
    """

    memory: PositiveFloat = 80.0
    gpus_per_node: PositiveInt = 8
    processes: PositiveInt = 2
