"""Scaling laws for general audio representations, and one label-free number to compare them: RankMe."""

__version__ = "0.1.0"
