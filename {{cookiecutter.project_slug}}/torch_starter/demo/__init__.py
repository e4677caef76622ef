"""Serve the model of a run on a web page."""
