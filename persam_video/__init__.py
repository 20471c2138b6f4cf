"""Follow one object through a video from one mask, without training."""
