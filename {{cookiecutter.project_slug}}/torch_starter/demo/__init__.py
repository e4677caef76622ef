"""The model of a run on a page in the browser."""
