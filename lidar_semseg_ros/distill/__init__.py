"""From labelled sweeps to a model: losses, augmentation, batches, the training loop."""
