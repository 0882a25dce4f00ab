"""What is handed to other machines: wheels with locked packages, container images, the bundle for a host."""
