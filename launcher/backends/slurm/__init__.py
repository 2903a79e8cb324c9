"""A SLURM cluster."""
