"""Documents to tokens, the mixed-window dataset, needle samples."""
