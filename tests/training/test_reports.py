"""What is logged, put together as Megatron does: sums over micro-batches, then a quotient."""

from argparse import Namespace
from collections.abc import Callable

import pytest
import torch

from megatron_longrope2.training import reports
from megatron_longrope2.training.batch import Batch
from megatron_longrope2.training.reports import TrainingReport, ValidationReport, position_edges
from tests.training.test_batch import batch

ARGS = Namespace(
    original_length=4,
    seq_length=16,
    mix=None,
    repeat_data=False,
    pool=[["short", "1", "a"], ["long", "1", "b"]],
    valid_pool=[["short", "1", "a"], ["long", "1", "b"]],
)
SHORT, LONG = batch([4, 8, 12, 16]), batch([16])


@pytest.fixture(autouse=True)
def _two_micro_batches_on_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "get_num_microbatches", lambda: 2)
    monkeypatch.setattr(reports.mpu, "get_data_parallel_world_size", lambda **_: 1)


def logged(report: Callable, *micro_batches: tuple[Batch, float]) -> dict[str, float]:
    """A step's log; every token of a micro-batch has the loss that is given."""
    parts = [report(batch_, loss * batch_.loss_mask.view(-1)) for batch_, loss in micro_batches]
    sums = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    return {name: float(total / count) for name, (total, count) in sums.items()}


def training_report(args: Namespace = ARGS) -> TrainingReport:
    report = TrainingReport(args)
    report.start()
    return report


def test_loss_and_tokens_of_each_window() -> None:
    log = logged(training_report(), (SHORT, 1.0), (LONG, 3.0))
    assert log["short window loss"] == 1
    assert log["long window loss"] == 3
    assert log["short window tokens"] == log["long window tokens"] == 16


def test_a_pack_of_both_windows() -> None:
    log = logged(training_report(), (batch([3, 16]), 1.0), (SHORT, 1.0))
    assert log["short window tokens"] == 3 + 16
    assert log["long window tokens"] == 13


def test_an_absent_window_keeps_its_latest_loss() -> None:
    report = training_report()
    first = logged(report, (SHORT, 1.0), (SHORT, 2.0))
    assert first["long window loss"] != first["long window loss"]  # NaN: never seen
    logged(report, (LONG, 3.0), (LONG, 5.0))
    third = logged(report, (SHORT, 1.5), (SHORT, 1.5))
    assert third["long window loss"] == pytest.approx(5)
    assert third["long window tokens"] == 0
    assert third["short window loss"] == 1.5


def test_a_window_without_a_pool_is_not_logged() -> None:
    short_only = Namespace(**{**vars(ARGS), "pool": [["short", "1", "a"], ["long", "0", "b"]]})
    log = logged(training_report(short_only), (SHORT, 1.0))
    assert set(log) == {"short window loss", "short window tokens", "tokens per second"}


def test_tokens_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 tokens in 0.5 s, 16 tokens in 1.5 s.
    clock = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(reports.time, "perf_counter", lambda: next(clock))
    assert logged(training_report(), (SHORT, 1.0), (LONG, 1.0))["tokens per second"] == 16


def test_context_parallel_ranks_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports.mpu, "get_data_parallel_world_size", lambda **_: 2)
    losses = torch.arange(16.0)
    shares = []
    for rank in range(2):
        share = batch([16], cp_size=2, cp_rank=rank)
        shares.append((ValidationReport(ARGS)(share, losses[share.packed.local_indices]), training_report()))
    total = shares[0][0]["long window loss at 4-8"] + shares[1][0]["long window loss at 4-8"]
    assert total.tolist() == [4 + 5 + 6 + 7, 4]


def test_validation_by_window_and_position() -> None:
    losses = torch.arange(16.0)
    report = ValidationReport(ARGS)
    sums = {name: report(LONG, losses)[name] for name in report(LONG, losses)}
    assert sums["long window loss at 0-4"].tolist() == [0 + 1 + 2 + 3, 4]
    assert sums["long window loss at 8-16"].tolist() == [sum(range(8, 16)), 8]
    assert sums["long window loss"].tolist() == [120, 16]
    assert sums["short window loss"].tolist() == [0, 0]
    assert report(SHORT, losses)["short window loss"].tolist() == [120, 16]
    assert report(SHORT, losses)["long window loss at 0-4"].tolist() == [0, 0]


def test_position_edges() -> None:
    assert position_edges(8192, 131072) == [0, 8192, 16384, 32768, 65536, 131072]
    assert position_edges(64, 200) == [0, 64, 128, 200]
