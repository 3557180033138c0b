"""Methods that distil aligned policies into one."""
