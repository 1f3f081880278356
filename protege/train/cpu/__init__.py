"""What makes training fast on a CPU, and only there."""
