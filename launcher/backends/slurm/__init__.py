"""Runs on a Slurm cluster: a job whose batch process is the supervisor, and in it one step a start of all ranks."""
