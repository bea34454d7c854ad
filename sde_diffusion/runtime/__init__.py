"""Processes and devices, progress, the log of metrics."""
