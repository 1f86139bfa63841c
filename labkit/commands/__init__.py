"""What the commands of `labkit.cli` do, one file each, so that `labkit --help` imports none of it."""
