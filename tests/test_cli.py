"""`longrope2`: its verbs, its help, and how bad input ends."""

from megatron_longrope2.cli import VERBS
from tests.processes import ROOT, longrope2

VERB_NAMES = [verb for verbs in VERBS.values() for verb in verbs]


def test_help_lists_every_verb_with_a_line_in_the_pipelines_order() -> None:
    lines = longrope2("--help").stdout.splitlines()
    places = [next(n for n, line in enumerate(lines) if line.startswith(f"│ {verb} ")) for verb in VERB_NAMES]
    assert places == sorted(places)


def test_every_verb_has_a_tool_of_its_name_and_every_tool_a_verb() -> None:
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == {*VERB_NAMES, "__init__"}


def test_an_unknown_verb_is_one_line_and_status_2() -> None:
    run = longrope2("serch")
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith('error: Unknown command "serch". Did you mean "search"?')
