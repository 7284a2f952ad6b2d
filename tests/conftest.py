"""Settings for all tests."""

from hypothesis import settings

# Shared machines stall for seconds: time belongs in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
