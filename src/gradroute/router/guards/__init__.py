"""Everything that could lose a mask without a word, and what is done about it: one file for each way to lose it."""
