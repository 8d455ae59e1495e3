"""Model families, one file each, found through ``models.table``. Knows no executor."""
