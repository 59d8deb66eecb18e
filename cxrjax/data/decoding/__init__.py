"""An image file's bytes to gray levels, in processes of their own."""
