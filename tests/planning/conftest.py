"""Upstream's figures are imported by these tests."""

from megatron_longrope2 import device

device.install()
