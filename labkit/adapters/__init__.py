"""Methods that train few values beside a frozen model."""
