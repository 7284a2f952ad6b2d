"""Speed and memory, compared with what the same work takes elsewhere; README.md says how to run it."""
