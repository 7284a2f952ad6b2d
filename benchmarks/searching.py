"""Settings of a search from the options that a user would type."""

from megatron_longrope2.cli import command_line
from megatron_longrope2.search.settings import SearchSettings


def search_settings(options: str) -> SearchSettings:
    """What `longrope2 search` makes of these options."""
    app = command_line("longrope2 search")

    @app.default
    def same(*, settings: SearchSettings) -> SearchSettings:
        return settings

    return app(options.split(), exit_on_error=False)
