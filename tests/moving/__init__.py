"""What other code does, written from its description in a few lines each, and held against what docs/moving.md says of it."""
