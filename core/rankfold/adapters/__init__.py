"""What a framework has to offer."""
