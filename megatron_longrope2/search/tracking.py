"""Scalars for TensorBoard, where it is installed."""

from pathlib import Path
from types import TracebackType
from typing import Any


class Tracker:
    """Writes scalars under `output`/tensorboard; does nothing on other ranks or without TensorBoard.

    Args:
        step: where a resumed run goes on; later entries of an earlier run are dropped.
    """

    def __init__(self, output: Path, step: int, enabled: bool) -> None:
        self._writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a generation or step."""
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(f"search/{name}", value, step)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
