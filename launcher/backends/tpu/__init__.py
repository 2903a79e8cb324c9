"""Cloud TPU VMs: created for an attempt, entered by ssh, deleted after it."""
