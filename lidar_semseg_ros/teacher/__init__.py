"""Labels for points from foundation models that look at images: vision, lifting, voting, superpixels."""
