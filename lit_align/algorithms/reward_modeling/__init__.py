"""Methods that train reward models on preferences."""
