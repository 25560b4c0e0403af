"""What clients notice when a machine of the mesh dies, freezes, or was leading the others."""
