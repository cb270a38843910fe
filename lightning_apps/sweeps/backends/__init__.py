"""Where the jobs of a sweep run: this machine, SLURM, Ray."""
