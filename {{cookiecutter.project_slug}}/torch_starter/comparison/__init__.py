"""Compare the settings and metrics of finished runs, averaged over seeds and folds."""
