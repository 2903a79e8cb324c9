"""Places to run attempts: each implements launcher.backend.Backend."""
