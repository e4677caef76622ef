"""Finished runs side by side: which settings they have, how they did, over seeds and folds."""
