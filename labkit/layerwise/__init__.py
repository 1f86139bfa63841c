"""Methods that train a few layers at a time, and in the end all of them (lesson 13)."""
