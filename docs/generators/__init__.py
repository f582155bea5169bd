"""What the reference pages are made of, one module for each page."""
