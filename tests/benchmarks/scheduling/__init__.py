"""What it costs to hand the layers of a checkpoint to the workers of a cluster."""
