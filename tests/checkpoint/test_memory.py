"""Memory of a conversion grows with the largest tensor, not with the model."""

import json
from pathlib import Path

import pytest

from tests.checkpoint.test_parity import run_child

PROGRAM = """
import json, sys
from pathlib import Path
from megatron_longrope2.checkpoint.benchmark import measure_conversion
print("ANSWER" + json.dumps(measure_conversion(Path(sys.argv[1]), float(sys.argv[2]), rounds=0)))
"""


@pytest.mark.slow
def test_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = {}
    for gigabytes in (0.5, 2.0):
        output = run_child(["-c", PROGRAM, str(tmp_path / "model"), str(gigabytes)])
        answer = json.loads(output.split("ANSWER")[1])
        assert answer["bytes"] == pytest.approx(gigabytes * 1e9, rel=0.1)
        peaks[gigabytes] = answer["peak_rss_bytes"]
    print(peaks)
    assert peaks[2.0] < peaks[0.5] + 100e6
