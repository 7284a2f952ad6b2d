"""Chains of Slurm jobs: settings, submission, checks, attempts, status."""
