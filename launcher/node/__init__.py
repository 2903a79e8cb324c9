"""What runs on the nodes, one process a rank. The only part of the launcher that imports torch."""
