"""Experiments: one claim a file, run as ``python -m experiments.<claim>``."""
