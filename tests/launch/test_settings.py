"""A settings file is right, or is refused with the key and the mend."""

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.launch.settings import NEEDS, ROOT, load_settings
from tests.launch.conftest import Write


def test_read(write: Write) -> None:
    settings = load_settings(write())
    assert list(settings.stages) == ["import", "search", "train", "evaluate"]
    assert settings.run == settings.source.parent / "run"
    assert settings.stages["train"].ranks == 8
    assert settings.slurm.warning_seconds == 600
    assert settings.environment.network == ROOT / "slurm/network.sh"


def test_the_example_explains_every_key() -> None:
    settings = load_settings(ROOT / "slurm/example.toml")
    assert list(settings.stages) == list(NEEDS)
    text = (ROOT / "slurm/example.toml").read_text()
    for part in (settings.model, settings.slurm, settings.environment, settings.stages["train"]):
        for key in vars(part):
            assert key in text, key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_length", "target_lenght", "model: target_lenght: unknown key; did you mean target_length?"),
        ("[stages.train]", "[stages.trian]", "stages: trian: unknown key; did you mean train?"),
        ("attempts = 4", "zzz = 4", "slurm: zzz: unknown key; known are partition, account, options"),
        ("target_length = 512\n", "", "model: target_length: is missing"),
        ('name = "tiny"\n', "", "name: is missing"),
        ("512\n", '"512"\n', "model: target_length: '512' is not a whole number"),
        ('"tiny"\nattempts', "true\nattempts", "slurm: partition: True is not a string"),
        ("[slurm]", "[slurm", "not valid TOML"),
        ('time = "1-00:00:00"', 'time = "a day"', "stages.train: time: 'a day' is not one; write 12:00:00"),
        ("nodes = 2", "nodes = 0", "stages.train: nodes: must be 1 or more"),
        ("context_parallel = 2", "context_parallel = 3", "8 processes do not divide into"),
        (
            "[stages.import]\n",
            "[stages.import]\nnodes = 2\n",
            "stages.import: nodes: this stage is one process",
        ),
        ("[stages.import]\n", '[stages.import]\npools = ["a"]\n', "pools: belongs into stages.train"),
        ('pools = ["short 3 {run}/data/short", "long 7 {here}/long"]\n', "", "pools: are missing, and so is"),
        ("short 3 ", "shrt 3 ", "is not 'short|long WEIGHT PREFIX'"),
        ("--lr 1e-3", "--lr '1e-3", "stages.train: options: "),
        ('[stages.search]\ntime = "10:00"', "", "model: factors: is missing; name a factor file"),
        ('books = "', 'factors = "f.json"\nbooks = "', "leave one out"),
        ('[stages.import]\ntime = "10:00"', "", "stages: search needs [stages.import]"),
    ],
)
def test_refused(write: Write, old: str, new: str, message: str) -> None:
    file = write((old, new))
    with pytest.raises(InputError) as error:
        load_settings(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
