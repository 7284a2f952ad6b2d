"""What needs a GPU to be shown. Every test body also runs without one, in small, on the CPU.

On a machine with a GPU `pytest tests/gpu` runs all of it; without one `-m gpu` shows what is not run.
"""
