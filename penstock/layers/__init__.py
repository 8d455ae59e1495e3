"""Building blocks that hold a method object. They know no checkpoint format and no backend name."""
