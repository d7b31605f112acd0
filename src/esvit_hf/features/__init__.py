"""Features of images: extraction, the store that keeps them, the frame of an image."""
