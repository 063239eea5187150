"""Offline HTML reports with pictures."""
