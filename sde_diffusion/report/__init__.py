"""Presentation: arrays and rows become pictures and tables. Pure functions, without files or networks."""
