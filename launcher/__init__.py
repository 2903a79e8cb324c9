"""Launch, follow and resume one distributed training run: on this machine, on SLURM, on Cloud TPU VMs."""

__version__ = "0.1.0"
