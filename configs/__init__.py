"""Configurations: base.py lists every key once; each other file overrides only what differs."""
