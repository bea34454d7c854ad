"""Settings of the command line: the sections that draw from several rooms, and all sections in one.

A section that has one owner lies beside it: denoisers/settings.py, data/settings.py, training/settings.py,
importers/settings.py. `root.Settings` holds them all, and is made of a configuration once, at the edge.
"""
