"""Files of the page at /. No code."""
