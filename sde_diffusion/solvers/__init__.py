"""Ordinary differential equations, and the probability flow as one."""
