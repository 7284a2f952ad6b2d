"""Memory of a conversion grows with the largest tensor, not with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

PROGRAM = """
import json, resource, shutil, sys
from pathlib import Path
from benchmarks.convert import write_random_model
from megatron_longrope2.checkpoint.conversion import export_hf
from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
peaks = []
for gigabytes in (0.5, 1.0):
    folder = Path(sys.argv[1]) / str(gigabytes)
    size = write_random_model(folder / "hf", gigabytes)
    import_hf(ImportSettings(folder / "hf", folder / "megatron"))
    export_hf(ExportSettings(folder / "megatron", folder / "back"))
    peaks.append({"bytes": size, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    shutil.rmtree(folder)
print("ANSWER" + json.dumps(peaks))
"""


@pytest.mark.slow
def test_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    small, large = json.loads(done.stdout.split("ANSWER")[1])
    print(small, large)
    assert large["bytes"] == pytest.approx(1e9, rel=0.1)
    assert large["peak"] < small["peak"] + 100e6
