"""Checkpoints and modules of other projects, read and written."""
