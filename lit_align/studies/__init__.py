"""Commands that measure methods on Shapes and write the tables and figures of docs/."""
