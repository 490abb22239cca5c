"""Programs: data, disk and devices around the pure library `uncertainty`."""
