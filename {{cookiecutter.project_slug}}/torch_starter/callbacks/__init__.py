from .. import quiet  # noqa: F401  (before Lightning says anything)
