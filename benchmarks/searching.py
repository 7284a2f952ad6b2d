"""Settings of a search from the options that a user would type."""

from cyclopts import App, Parameter

from megatron_longrope2.search.settings import SearchSettings


def search_settings(options: str) -> SearchSettings:
    """What `longrope2 search` makes of these options."""
    app = App(default_parameter=Parameter(consume_multiple=True), result_action="return_value")

    @app.default
    def same(*, settings: SearchSettings) -> SearchSettings:
        return settings

    return app(options.split(), exit_on_error=False)
