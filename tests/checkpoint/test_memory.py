"""Memory of a conversion grows with the largest tensor, not with the model."""

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.test_parity import run_child

PROGRAM = """
import json, resource, sys
from pathlib import Path
from benchmarks.convert import write_random_model
from megatron_longrope2.checkpoint.export_hf import export_hf
from megatron_longrope2.checkpoint.import_hf import import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
folder = Path(sys.argv[1])
size = write_random_model(folder / "hf", float(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_hf(ImportSettings(folder / "hf", folder / "megatron"))
export_hf(ExportSettings(folder / "megatron", folder / "back"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("ANSWER" + json.dumps({"bytes": size, "before": before * 1024, "peak": peak * 1024}))
"""


@pytest.mark.slow
def test_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = {}
    for gigabytes in (0.5, 2.0):
        output = run_child(["-c", PROGRAM, str(tmp_path / "model"), str(gigabytes)])
        found = json.loads(output.split("ANSWER")[1])
        assert found["bytes"] == pytest.approx(gigabytes * 1e9, rel=0.1)
        peaks[gigabytes] = found["peak"]
        print(gigabytes, found)
        shutil.rmtree(tmp_path / "model")
    assert peaks[2.0] < peaks[0.5] + 100e6
