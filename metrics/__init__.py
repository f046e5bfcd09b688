"""What nodes show to the outside. Installed as `coord.metrics`; importing this package alone imports no library."""
