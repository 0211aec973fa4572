"""A synthetic indoor world with exact labels: buildings, lidars, cameras, drives."""
