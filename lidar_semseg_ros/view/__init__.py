"""Arrays into pictures, tables and reports."""
