"""Programs, and their data, files and devices, around the pure library `uncertainty`."""
