"""What an extended model can do: needles, perplexity, RULER, generation, and the reports that show it."""
