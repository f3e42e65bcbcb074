"""Image preparation and read-out for the vision networks the package ships or demonstrates."""
