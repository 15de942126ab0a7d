"""Measures of what the stages choose and answer."""
