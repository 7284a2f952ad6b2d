"""Segments are what the model and Megatron's loaders expect, for every layout, and resume exactly."""

import hashlib
import multiprocessing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.utils import flatten_batch_for_packed_sequences

from megatron_longrope2.data.manifest import Pool
from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.data.segments import SegmentConfig, SegmentDataset
from megatron_longrope2.errors import InputError
from tests import processes  # noqa: F401 (the fork server has Megatron imported)

VOCAB, PAD, EOS = 1000, 999, 0
SHORT, TARGET = 64, 512


def documents(lengths: list[int], base: int = 0) -> list[np.ndarray]:
    """Documents whose tokens tell which document and place they are from."""
    return [
        np.append((base + 7 * i + np.arange(length - 1)) % 900 + 1, EOS) for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, ...]:
    folder = tmp_path_factory.mktemp("pools")
    rng = np.random.default_rng(0)
    write_documents(folder / "short", documents(rng.integers(1, SHORT + 1, 400).tolist()), vocab_size=VOCAB)
    write_documents(
        folder / "long", documents([SHORT + 1, *rng.integers(SHORT + 1, 1500, 40).tolist()]), vocab_size=VOCAB
    )
    return (Pool(str(folder / "short"), "short", 3), Pool(str(folder / "long"), "long", 7))


def configuration(these: tuple[Pool, ...], **changes: Any) -> SegmentConfig:
    base = SegmentConfig(
        these, original_length=SHORT, target_length=TARGET, global_batch_size=10, seed=1, repeat=True
    )
    return replace(base, **changes)


def window(dataset: SegmentDataset, index: int) -> str:
    return dataset._pools[dataset._order.locate(index)[0]].pool.window


def spans(item: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    ends = item["cu_seqlens"].tolist()
    return [(a, b) for a, b in pairwise(ends) if b > a]


LAYOUTS = st.sampled_from([(1, 1), (1, 4), (2, 1), (4, 1), (2, 2), (4, 2)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS, attention=st.sampled_from(["full", "document"]), index=st.integers(0, 200))
def test_item_keeps_the_contract(
    pools: tuple[Pool, ...], layout: tuple[int, int], attention: str, index: int
) -> None:
    context, sequence = layout
    config = configuration(
        pools,
        context_parallel_size=context,
        sequence_parallel_size=sequence,
        long_window_attention=attention,
    )
    dataset = SegmentDataset(config, 201, pad_id=PAD)
    item = dataset[index]
    assert [item[k].dtype for k in ("tokens", "labels", "position_ids")] == [torch.int64] * 3
    assert item["loss_mask"].dtype == torch.float32
    assert item["cu_seqlens"].dtype == item["max_seqlen"].dtype == torch.int32
    assert all(item[k].shape == (TARGET,) for k in ("tokens", "labels", "position_ids", "loss_mask"))
    assert item["cu_seqlens"].shape == (dataset.cu_seqlens_width,)
    assert item["cu_seqlens"][0] == 0
    assert item["cu_seqlens"][-1] == TARGET
    lengths = [b - a for a, b in spans(item)]
    assert sum(lengths) == TARGET
    assert item["max_seqlen"] == max(lengths)
    assert all(length % config.alignment == 0 for length in lengths)
    if window(dataset, index) == "short":
        assert max(lengths) <= SHORT
    elif attention == "full":
        assert lengths == [TARGET]
    for a, b in spans(item):
        assert item["position_ids"][a:b].tolist() == list(range(b - a))
        trained = item["loss_mask"][a : b - 1] > 0
        assert (item["labels"][a : b - 1][trained] == item["tokens"][a + 1 : b][trained]).all()
        real = item["tokens"][a:b] != PAD
        if real.any() and context > 1:
            # Chunks r and 2 cp - 1 - r go to rank r; each rank must get a real token.
            chunks = real.reshape(2 * context, -1)
            assert all((chunks[r] | chunks[-1 - r]).any() for r in range(context))
    # Loss only where there is a next token, and on every one of them.
    assert not item["loss_mask"][item["tokens"] == PAD].any()
    assert not (item["labels"][item["loss_mask"] > 0] == PAD).any()


def test_short_segments_hold_whole_documents(pools: tuple[Pool, ...]) -> None:
    dataset = SegmentDataset(configuration(pools), 100, pad_id=PAD)
    seen = 0
    for index in range(100):
        if window(dataset, index) == "long":
            continue
        item = dataset[index]
        for a, b in spans(item):
            tokens = item["tokens"][a:b]
            if (tokens == PAD).all():
                continue
            seen += 1
            assert tokens[-1] == EOS
            assert (tokens == EOS).sum() == 1
            assert item["loss_mask"][a:b].tolist() == [1.0] * (b - a - 1) + [0.0]
    assert seen > 100


def test_long_full_segments_train_on_every_token(pools: tuple[Pool, ...]) -> None:
    dataset = SegmentDataset(configuration(pools), 100, pad_id=PAD)
    rows = [dataset[i] for i in range(100) if window(dataset, i) == "long"]
    full = [row for row in rows if (row["tokens"] != PAD).all()]
    assert len(full) > len(rows) / 2
    # A segment that ends with a document's end has no target for its last token; every other token has one.
    for row in full:
        ends = row["tokens"][-1] == EOS
        assert row["loss_mask"].sum() == TARGET - int(ends)


def test_a_single_window_has_no_document_masks(pools: tuple[Pool, ...]) -> None:
    mixed = SegmentDataset(configuration(pools), 30, pad_id=PAD)
    single = SegmentDataset(configuration(pools, single_window=True), 30, pad_id=PAD)
    short = [index for index in range(30) if window(single, index) == "short"]
    assert short
    for index in range(30):
        item = single[index]
        assert spans(item) == [(0, TARGET)]
        assert item["position_ids"].tolist() == list(range(TARGET))
    for index in short:
        item, masked = single[index], mixed[index]
        assert torch.equal(item["tokens"], masked["tokens"])
        # The first token of a document is the target of the last one of the document before it.
        real = int((item["tokens"] != PAD).sum())
        assert item["loss_mask"].tolist() == [1.0] * (real - 1) + [0.0] * (TARGET - real + 1)
        assert item["labels"][: real - 1].tolist() == item["tokens"][1:real].tolist()
    apart = SegmentDataset(
        configuration(pools, single_window=True, long_window_attention="document"), 30, pad_id=PAD
    )
    assert all(spans(apart[index]) == spans(mixed[index]) for index in short)


def test_a_run_that_resumes_sees_the_same_samples(pools: tuple[Pool, ...]) -> None:
    config = configuration(pools)
    whole = [SegmentDataset(config, 60, pad_id=PAD)[i] for i in range(60)]
    resumed = SegmentDataset(config, 60, pad_id=PAD)
    for i in range(37, 60):
        assert all(torch.equal(resumed[i][key], whole[i][key]) for key in whole[i])


def test_an_epoch_reads_every_token_once_and_the_next_in_another_order(pools: tuple[Pool, ...]) -> None:
    config = configuration(pools[:1])
    packing = SegmentDataset(config, 1, pad_id=PAD)._pools[0].packing
    segments = packing.segments
    single = SegmentDataset(replace(config, global_batch_size=1), 2 * segments, pad_id=PAD)
    rows = [tuple(single[i]["tokens"].tolist()) for i in range(2 * segments)]
    assert sorted(rows[:segments]) == sorted(rows[segments:])
    assert rows[:segments] != rows[segments:]
    assert sum(sum(t != PAD for t in row) for row in rows[:segments]) == packing.tokens


def digests(config: SegmentConfig) -> list[str]:
    dataset = SegmentDataset(config, 40, pad_id=PAD)
    return [hashlib.sha256(dataset[i]["tokens"].numpy().tobytes()).hexdigest() for i in range(40)]


def test_another_process_sees_the_same_samples(pools: tuple[Pool, ...]) -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        theirs = pool.apply(digests, (configuration(pools),))
    assert theirs == digests(configuration(pools))
    assert len(set(theirs)) > 30


def test_upstream_collates_and_flattens_the_items(pools: tuple[Pool, ...]) -> None:
    dataset = SegmentDataset(configuration(pools), 40, pad_id=PAD)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1)
    batch = flatten_batch_for_packed_sequences(next(iter(loader)))
    expected = [a for i in range(4) for a in (torch.tensor(spans(dataset[i]))[:, 1] + i * TARGET).tolist()]
    assert batch["cu_seqlens"].tolist() == [[0, *expected]]
    assert batch["tokens"].shape == (1, 4 * TARGET)
    assert batch["max_seqlen"].tolist() == [max(int(dataset[i]["max_seqlen"]) for i in range(4))]


def test_the_table_accounts_for_the_run(pools: tuple[Pool, ...]) -> None:
    dataset = SegmentDataset(configuration(pools), 100, pad_id=PAD)
    assert dataset.samples == [30, 70]
    header, *rows = dataset.table().splitlines()
    assert header.split()[:4] == ["pool", "window", "weight", "documents"]
    short, long = (row.split() for row in rows)
    assert (short[1:4], long[1:4]) == (["short", "3", "400"], ["long", "7", "41"])
    assert 0 <= float(short[5].removesuffix("%")) < 10
    assert float(long[-1]) == pytest.approx(70 / int(long[4]), rel=0.01)


def test_a_pool_of_weight_zero_is_not_read(pools: tuple[Pool, ...]) -> None:
    control = (pools[0], Pool("/nowhere/long", "long", 0))
    dataset = SegmentDataset(configuration(control), 20, pad_id=PAD)
    assert {window(dataset, i) for i in range(20)} == {"short"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_parallel_size": 3}, "original_length: 64 is not a multiple of 6"),
        ({"sequence_parallel_size": 3}, "target_length: 512 not of 3"),
        ({"vocab_size": 500}, "holds token id .*, the model's vocabulary has 500"),
        ({"original_length": 32}, "too long for the short window of 32"),
        ({"original_length": 128}, "not longer than the short window of 128"),
        ({"repeat": False}, "short: the run needs 300 segments of 512 tokens, the pool has"),
        ({"pools": ()}, "none has a weight above 0"),
    ],
)
def test_bad_configuration_is_refused(pools: tuple[Pool, ...], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentDataset(configuration(pools, **changes), 1000, pad_id=PAD)


@pytest.mark.parametrize("attention", ["full", "document"])
def test_dealing_changes_neither_batches_nor_segments_and_evens_the_ranks(
    pools: tuple[Pool, ...], attention: str
) -> None:
    config = configuration(pools, global_batch_size=16, long_window_attention=attention)
    plain = SegmentDataset(config, 48, pad_id=PAD)
    dealt = SegmentDataset(replace(config, data_parallel_size=4, micro_batch_size=2), 48, pad_id=PAD)

    def batches(dataset: SegmentDataset) -> list[list[dict[str, torch.Tensor]]]:
        return [[dataset[16 * block + place] for place in range(16)] for block in range(3)]

    def rank_work(batch: list[dict[str, torch.Tensor]]) -> list[int]:
        work = [sum((end - start) ** 2 for start, end in spans(item)) for item in batch]
        return [sum(work[place] for place in range(16) if place // 2 % 4 == rank) for rank in range(4)]

    spread = []
    for before, after in zip(batches(plain), batches(dealt), strict=True):
        hashes = [sorted(item["tokens"].numpy().tobytes() for item in batch) for batch in (before, after)]
        assert hashes[0] == hashes[1]
        spread.append([max(rank_work(batch)) - min(rank_work(batch)) for batch in (before, after)])
    assert all(after <= before for before, after in spread), spread
    assert sum(after for _, after in spread) < 0.5 * sum(before for before, _ in spread), spread
    # A run is resumed anywhere.
    assert torch.equal(SegmentDataset(dealt.config, 48, pad_id=PAD)[37]["tokens"], dealt[37]["tokens"])
