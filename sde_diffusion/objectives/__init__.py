"""What a training minimises, and at which times."""
