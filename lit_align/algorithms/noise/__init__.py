"""Methods that train networks of the initial noise."""
