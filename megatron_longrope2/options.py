"""How a dataclass of settings becomes options of the command line."""

from cyclopts import Group, Parameter


def options(title: str, *, first: bool = False) -> Parameter:
    """Decorates a dataclass: its fields become options under this title of the help, by their own names.

    The `Attributes:` of its docstring are the help. Titles are shown in the order of their definition.

    Args:
        first: show the title before all others.
    """
    return Parameter(name="*", group=Group(title, sort_key=0) if first else Group.create_ordered(title))
