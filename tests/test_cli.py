"""`longrope2`: its verbs, its help, and how bad input ends."""

from megatron_longrope2.cli import VERBS
from megatron_longrope2.cli import longrope2 as longrope2_app
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


def test_of_an_option_that_is_given_twice_the_last_one_counts() -> None:
    needed = "--load model --books books --target-length 512 --output out"
    twice = "--samples 2 --needle-depths 0 0.1 --samples 3 --needle-depths 0.5 1"
    _, bound, _ = longrope2_app().parse_args(f"search {needed} {twice}", exit_on_error=False)
    settings = bound.arguments["settings"]
    assert (settings.samples, settings.needle_depths) == (3, (0.5, 1.0))
