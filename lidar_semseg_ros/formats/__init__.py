"""Bytes to core types and back: messages, images, bags, scans, configuration files. Needs no ROS installation."""
