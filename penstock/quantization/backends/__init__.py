"""Linear methods, one file each, named linear_*: ask, prepare a weight once, apply it."""
