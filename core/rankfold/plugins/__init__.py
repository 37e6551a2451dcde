"""What plugins implement, and the registry that finds them."""
