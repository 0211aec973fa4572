"""The command `lidar-semseg`: one module per sub-command, which parses, calls and prints."""
