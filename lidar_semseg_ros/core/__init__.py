"""The vocabulary of the package: values, class tables, geometry, cameras, metrics. NumPy only."""
