"""Training from function values alone (lessons 14 to 16)."""
