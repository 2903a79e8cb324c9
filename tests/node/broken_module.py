"""Imports what is not there."""

import surely_not_installed  # noqa: F401
