"""Families as data: `load`, `save`, `build_family`, `describe`."""
