"""What `make` runs that no user of teacherfarm needs."""
