"""Live semantic segmentation of lidar in ROS 2, taught by vision foundation models."""
