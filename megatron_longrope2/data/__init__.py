"""Documents to tokens, training segments of both windows, needle samples."""
