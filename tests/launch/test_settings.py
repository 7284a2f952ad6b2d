"""A settings file is right, or is refused with the key and the fix."""

import re

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


def test_preprocessing_may_have_several_nodes(write: Write) -> None:
    stage = '[stages.preprocess]\ntime = "1"\nnodes = 3\n'
    settings = load_settings(write(("[stages.import]", f"{stage}[stages.import]")))
    assert settings.stages["preprocess"].ranks == 3


def test_the_example_explains_every_key() -> None:
    settings = load_settings(ROOT / "slurm/example.toml")
    text = (ROOT / "slurm/example.toml").read_text()
    assert re.findall(r"^(?:# )?\[stages\.(\w+)\]", text, re.MULTILINE) == list(NEEDS)
    for part in (settings.model, settings.slurm, settings.environment, settings.stages["train"]):
        for key in type(part).model_fields:
            assert key in text, key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_length", "target_lenght", "model: target_lenght: unknown key; did you mean target_length?"),
        ("[stages.train]", "[stages.trian]", "stages: trian: unknown key; did you mean train?"),
        ("attempts = 4", "zzz = 4", "slurm: zzz: unknown key; known are partition, account, options"),
        ("target_length = 512\n", "", "model.target_length: Field required"),
        ('name = "tiny"\n', "", "name: Field required"),
        ("512\n", '"512"\n', "model.target_length: Input should be a valid integer, not '512'"),
        ('"tiny"\nattempts', "true\nattempts", "slurm.partition: Input should be a valid string, not True"),
        ("[slurm]", "[slurm", "not valid TOML"),
        ('time = "1-00:00:00"', 'time = "a day"', "stages.train.time: 'a day' is not of the form 12:00:00"),
        ("nodes = 2", "nodes = 0", "stages.train.nodes: Input should be greater than or equal to 1, not 0"),
        ("context_parallel = 2", "context_parallel = 3", "8 processes do not divide into"),
        (
            "[stages.import]\n",
            "[stages.import]\nnodes = 2\n",
            "stages.import.nodes: this stage is a single process",
        ),
        (
            "[stages.import]\n",
            '[stages.import]\npools = ["long 1 a"]\n',
            "stages.import.pools: belongs in [stages.train]",
        ),
        (
            'pools = ["short 3 {run}/data/short", "long 7 {here}/long"]\n',
            "",
            "stages.train.pools: is missing, and so is mix",
        ),
        (
            "short 3 ",
            "shrt 3 ",
            "stages.train.pools.0: 'shrt 3 {run}/data/short' is not of the form 'short|long",
        ),
        ("--lr 1e-3", "--lr '1e-3", "stages.train.options: No closing quotation"),
        ('[stages.search]\ntime = "10:00"', "", "model.factors: is missing; name a factor file"),
        ('books = "', 'factors = "f.json"\nbooks = "', "model.factors: is given, and so is [stages.search]"),
        ('[stages.import]\ntime = "10:00"', "", "stages: search and train need [stages.import]"),
    ],
)
def test_refused(write: Write, old: str, new: str, message: str) -> None:
    file = write((old, new))
    with pytest.raises(InputError) as error:
        load_settings(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_at_once(write: Write) -> None:
    file = write(("attempts = 4", "attempts = 0"), ("target_length", "target_lenght"))
    with pytest.raises(InputError) as error:
        load_settings(file)
    first, second = str(error.value).split("\nerror: ")
    assert first.startswith(f"{file}: model: target_lenght: unknown key")
    assert second.startswith(f"{file}: slurm.attempts: ")
