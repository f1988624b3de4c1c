"""Model hubs and registries: what they list, and the headers of their files."""
