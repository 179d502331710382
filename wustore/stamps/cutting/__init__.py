"""Many small windows of images: which chunks they touch, and how they are cut out of them."""
