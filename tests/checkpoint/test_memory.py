"""Memory of a conversion grows with the largest tensor, not with the model."""

import json
from pathlib import Path

import pytest

from tests.checkpoint.test_parity import run_child

PROGRAM = """
import json, sys
from argparse import Namespace
from megatron_longrope2.benchmarks.convert import measure
found = measure(Namespace(folder=sys.argv[1], gigabytes=float(sys.argv[2]), repeats=0))
print("ANSWER" + json.dumps(found.measured))
"""


@pytest.mark.slow
def test_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = {}
    for gigabytes in (0.5, 2.0):
        output = run_child(["-c", PROGRAM, str(tmp_path), str(gigabytes)])
        found = json.loads(output.split("ANSWER")[1])
        assert found["bytes"] == pytest.approx(gigabytes * 1e9, rel=0.1)
        peaks[gigabytes] = found["peak_rss_bytes"]
    print(peaks)
    assert peaks[2.0] < peaks[0.5] + 100e6
