"""Pictures and other media in prompts: where they stand, and how many tokens they take. Knows no torch."""
