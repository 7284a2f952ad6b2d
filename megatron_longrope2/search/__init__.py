"""The factor search: the evolution (pure), the objectives, the runner and the paired comparison."""
