"""Pages that read a run directory and nothing else."""
