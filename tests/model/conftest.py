"""Megatron is imported by these tests, in this process."""

from megatron_longrope2 import device

device.install()
