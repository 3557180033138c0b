"""Methods that train what rewrites prompts."""
